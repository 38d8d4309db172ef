//! Bad input from every side: each has a clear answer that names what is wrong, and nothing is lost or loops.

use crate::deployment::{Production, Up};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::time::Duration;
use tests::http;
use tests::ports;
use tests::process::{Program, python};
use tests::scenario::{Need, Scenario};
use tests::services::RabbitVersion;
use tests::stage::Context;

const BOUND: Duration = Duration::from_secs(120);

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Need::{Binary, Python, Redis};
    let mut all = vec![
        Scenario::new("bad_input/over_http", &[Binary], over_http),
        Scenario::new("bad_input/configuration", &[Binary], configuration),
        Scenario::new("bad_input/dead_jobs_from_the_command_line", &[Binary], dead_jobs),
    ];
    all.extend(Scenario::on_each_rabbit("bad_input/over_amqp", &[Binary, Redis, Python], over_amqp));
    all.extend(Scenario::on_each_rabbit("bad_input/services", &[Binary, Redis], services));
    all.into_iter().map(|scenario| scenario.within(BOUND * 3)).collect()
}

fn image(shape: &[u64], values: usize) -> Value {
    json!({ "name": "image", "datatype": "FP32", "shape": shape, "data": vec![0; values] })
}

async fn over_http(context: &Context) -> Result<()> {
    let up = Up::start(context, "up", &context.folder().join("data")).await?;
    let infer = |model: &str| format!("{}/v2/models/{model}/infer", up.url);
    let good = json!({ "inputs": [image(&[1, 64], 64)] });
    http::post_json(&infer("digits"), &good).await?.expect(200)?;

    let mut wrong_type = image(&[1, 64], 64);
    wrong_type["datatype"] = "INT8".into();
    let with = |extra: (&str, Value)| {
        let mut body = good.clone();
        body["parameters"] = json!({ extra.0: extra.1 });
        body
    };
    let cases = [
        ("an unknown model", infer("didgits"), good.clone(), 404, "didgits"),
        ("a name that is no model's", infer("..%2F..%2Fetc"), good.clone(), 404, ""),
        ("a missing field", infer("digits"), json!({ "parameters": {} }), 400, "inputs"),
        ("a missing tensor", infer("digits"), json!({ "inputs": [] }), 400, "image"),
        ("a wrong type", infer("digits"), json!({ "inputs": [wrong_type] }), 400, "FP32"),
        ("a wrong shape", infer("digits"), json!({ "inputs": [image(&[1, 8, 8], 64)] }), 400, "[-1, 64]"),
        ("too few values", infer("digits"), json!({ "inputs": [image(&[2, 64], 64)] }), 400, "image"),
        ("an unknown class", infer("digits"), with(("priority", "urgent".into())), 400, "priority"),
        (
            "a deadline too far",
            infer("digits"),
            with(("deadline_ms", 999_999_999_u64.into())),
            400,
            "deadline",
        ),
        (
            "an output that is none",
            infer("digits"),
            json!({ "inputs": [image(&[1, 64], 64)], "outputs": [{ "name": "lable" }] }),
            400,
            "lable",
        ),
    ];
    for (what, url, body, status, word) in cases {
        let answer = http::post_json(&url, &body).await?.expect(status).context(what)?;
        let error = answer.json().context(what)?["error"].as_str().unwrap_or_default().to_owned();
        ensure!(!error.is_empty() && error.contains(word), "{what}: {error:?} does not say {word:?}");
    }
    let json_header = [("content-type", "application/json")];
    let not_json = http::send(hyper::Method::POST, &infer("digits"), &json_header, "{not json").await?;
    ensure!(not_json.expect(400)?.json()?["error"].is_string(), "not JSON has no error");
    let huge = bytes::Bytes::from(vec![b' '; 70 << 20]);
    let too_large = http::send(hyper::Method::POST, &infer("digits"), &json_header, huge).await?;
    ensure!(too_large.expect(413)?.json()?["error"].is_string(), "too large has no error");

    let slow = json!({ "inputs": [], "parameters": { "ms": 2000, "deadline_ms": 100 } });
    let late = http::post_json(&infer("diagnose.sleep"), &slow).await?;
    ensure!([404, 408, 504].contains(&late.status), "a passed deadline is {}: {}", late.status, late.text());
    for id in ["no-id", "019aa0f2"] {
        http::get(&format!("{}/v1/jobs/{id}", up.url)).await?.expect(400)?;
    }
    let long_ago = "01800000-0000-7000-8000-000000000000";
    http::get(&format!("{}/v1/jobs/{long_ago}", up.url)).await?.expect(404)?;
    // After all that it still works.
    http::post_json(&infer("digits"), &good).await?.expect(200)?;
    Ok(())
}

/// Runs the binary with what cannot work: it must end with this code and say these words, and no password.
async fn refuses(program: Program, code: i32, words: &[&str]) -> Result<()> {
    let finished = program.run(BOUND).await?.expect(code)?;
    for word in words {
        ensure!(finished.stderr.contains(word), "it does not say {word:?}: {}", finished.stderr);
    }
    ensure!(!format!("{}{}", finished.stdout, finished.stderr).contains("hunter2"), "a password is shown");
    Ok(())
}

async fn configuration(context: &Context) -> Result<()> {
    let file = context.folder().join("straightline.toml");
    let path = file.to_str().context("a plain path")?.to_owned();
    let cases: [(&str, &[&str]); 5] = [
        ("[broker\n", &["line 1"]),
        ("[broker]\nurl = \"amqp://u:hunter2@h\" x", &["line 2"]),
        ("[dispatcher]\nfrequency_treshold = 1", &["line 2", "frequency_treshold"]),
        ("[dispatcher]\nwindow = \"soon\"", &["line 2"]),
        ("[worker]\nslots = -1", &["line 2"]),
    ];
    for (number, (text, words)) in cases.iter().enumerate() {
        fs::write(&file, text)?;
        let program = context.straightline(&format!("broken-{number}")).await?;
        refuses(
            program.args(["--config", &path, "config", "show"]),
            64,
            &[words, &["straightline.toml"][..]].concat(),
        )
        .await?;
    }
    let program =
        context.straightline("no-file").await?.args(["--config", "/nonexistent.toml", "config", "show"]);
    refuses(program, 64, &["/nonexistent.toml"]).await?;
    let program = context.straightline("variable").await?.env("STRAIGHTLINE_WORKER__SLOTS", "many");
    refuses(program.args(["config", "show"]), 64, &["STRAIGHTLINE_WORKER__SLOTS"]).await?;
    let settings: [(&str, &str, &[&str]); 5] = [
        ("DISPATCHER__POLICY", "best", &["dispatcher.policy", "best"]),
        ("RETRY__ATTEMPTS_MAX", "21", &["retry.attempts_max is 21: use 1 to 20"]),
        ("WORKER__RUN_TIMEOUT", "26m", &["worker.run_timeout", "25 minutes"]),
        ("WORKER__MEMORY_BUDGET", "1KB", &["worker.memory_budget"]),
        ("RECORDS__BLOBS_KEEP", "1day", &["records.blobs_keep", "172800"]),
    ];
    for (name, value, words) in settings {
        let program = context.straightline("setting").await?.env(&format!("STRAIGHTLINE_{name}"), value);
        refuses(program.args(["config", "check", "--data-dir", "data-setting"]), 64, words).await?;
    }
    ensure!(!context.folder().join("data-setting").exists(), "something was opened");
    let program =
        context.straightline("misspelt").await?.env("STRAIGHTLINE_BROKER_URL", "amqp://u:hunter2@h");
    refuses(program.args(["config", "show"]), 64, &["STRAIGHTLINE_BROKER_URL", "STRAIGHTLINE_BROKER__URL"])
        .await?;
    let both = ["broker.url", "STRAIGHTLINE_BROKER__URL", "state.url", "STRAIGHTLINE_STATE__URL"];
    for arguments in [&["dispatcher"][..], &["worker", "--lane", "local"]] {
        refuses(context.straightline("alone").await?.args(arguments), 64, &both).await?;
        let half = context.straightline("half").await?.env("STRAIGHTLINE_STATE__URL", "redis://:hunter2@h");
        refuses(half.args(arguments), 64, &both[..2]).await?;
    }
    for arguments in [&["up"][..], &["config", "check"], &["status"]] {
        let half = context.straightline("half").await?.env("STRAIGHTLINE_BROKER__URL", "amqp://u:hunter2@h");
        refuses(half.args(arguments), 64, &both[2..]).await?;
    }
    let program = context.straightline("usage").await?.args(["worker", "--lane", "fast"]);
    refuses(program, 64, &["fast", "serverless, docker or local"]).await?;
    let program = context.straightline("nobody").await?.args(["status", "--server", "http://127.0.0.1:1"]);
    refuses(program, 1, &["127.0.0.1:1", "straightline up"]).await?;

    let shown = context.straightline("show").await?.env("STRAIGHTLINE_BROKER__URL", "amqp://u:hunter2@h/v");
    let shown = shown.args(["config", "show"]).run(BOUND).await?.expect(0)?;
    ensure!(
        shown.stdout.contains("amqp://u:***@h/v") && !shown.stdout.contains("hunter2"),
        "{}",
        shown.stdout
    );

    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let program =
        context.straightline("port").await?.args(["up", "--listen", &address, "--data-dir", "data-port"]);
    refuses(program, 1, &[&address, "--listen"]).await?;
    let data = context.folder().join("data-held");
    let _up = Up::start(context, "up", &data).await?;
    let listen = format!("127.0.0.1:{}", ports::free());
    let program =
        context.straightline("held").await?.args(["up", "--listen", &listen, "--data-dir"]).args([&data]);
    refuses(program, 1, &["data-held"]).await?;
    let beside = context.straightline("beside").await?.args(["config", "check", "--data-dir"]).args([&data]);
    let told = beside.run(BOUND).await?.expect(0)?.stdout;
    ensure!(told.contains("data-held") && told.contains("not looked at"), "{told}");
    let models = context.folder().join("models/wrong");
    fs::create_dir_all(&models)?;
    fs::write(models.join("model.toml"), "name = \"other\"\n")?;
    let program = context
        .straightline("models")
        .await?
        .env("STRAIGHTLINE_WORKER__MODELS", context.folder().join("models"));
    refuses(program.args(["config", "check", "--data-dir", "data-models"]), 1, &["model.toml"]).await
}

/// What a foreign client can get wrong on the wire; every reply that can be sent says what.
const SEND: &str = r#"
import json, sys, time, uuid, msgpack, pika
url = sys.argv[1]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
reply_to = f"reply.guest.{uuid.uuid4()}"
channel.queue_declare(reply_to, durable=True, arguments={"x-expires": 3600000})
body = lambda **fields: msgpack.packb({"version": 1, "input": {"tensors": [
    {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}]}, **fields})
model = {"sl-model": "digits"}
cases = {
    "good": (model, body()),
    "not_messagepack": (model, b"\xc1\xff not at all"),
    "missing_field": (model, msgpack.packb({"version": 1})),
    "wrong_type": (model, msgpack.packb({"version": 1, "input": 7})),
    "newer_body": (model, body(version=9)),
    "newer_header": ({"sl-version": 9, **model}, body()),
    "broken_header": ({"sl": b"\x93\x01"}, body()),
    "no_model": ({}, body()),
    "unknown_model": ({"sl-model": "didgits"}, body()),
    "bad_name": ({"sl-model": "../digits"}, body()),
    "bad_class": ({"sl-class": "urgent", **model}, body()),
    "passed_deadline": ({"sl-deadline-ms": 1, **model}, body()),
    "bad_deadline": ({"sl-deadline-ms": "soon", **model}, body()),
    "wrong_shape": (model, msgpack.packb({"input": {"tensors": [
        {"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": [0.0] * 64}]}})),
    "no_such_blob": (model, msgpack.packb({"input": {"blob": {"id": "0" * 32, "size": 5}}})),
    "path_as_blob": (model, msgpack.packb({"input": {"blob": {"id": "../../etc/passwd", "size": 5}}})),
}
names = {}
def send(name, headers, body, reply_to=reply_to):
    job = str(uuid.uuid4())
    names[job] = name
    channel.basic_publish("sl.jobs", "normal", body, pika.BasicProperties(delivery_mode=2, correlation_id=job,
        reply_to=reply_to, user_id="guest", headers={"sl-attempts-max": 1, **headers}), mandatory=True)
for name, (headers, content) in cases.items():
    send(name, headers, content)
send("foreign_reply_queue", model, body(), reply_to="reply.alice.1")
send("reply_queue_gone", model, body(), reply_to=f"reply.guest.{uuid.uuid4()}")
results, until = {}, time.monotonic() + 60
while len(results) < len(cases) and time.monotonic() < until:
    connection.process_data_events(time_limit=0.05)
    method, properties, content = channel.basic_get(reply_to)
    if method:
        channel.basic_ack(method.delivery_tag)
        result = msgpack.unpackb(content)
        name = names[properties.correlation_id]
        assert name not in results, f"{name} was answered twice"
        assert result["id"] == properties.correlation_id, result
        results[name] = [result["status"], result.get("error", {}).get("kind"), result.get("error", {}).get("message")]
print(json.dumps(results))
"#;

async fn over_amqp(context: &Context, version: RabbitVersion) -> Result<()> {
    let deployment = Production::shared(context, version).await?;
    let _worker = deployment.worker(context, "w1").await?;
    let _dispatcher = deployment.dispatcher(context, "d1").await?;
    let sent = Program::new("send", &python(), context.folder())
        .args(["-c", SEND, deployment.broker_url()])
        .run(BOUND)
        .await?
        .expect(0)?;
    let results = sent.json()?;
    let expected = [
        ("good", "succeeded", Value::Null, ""),
        ("not_messagepack", "failed", "undecodable".into(), "MessagePack"),
        ("missing_field", "failed", "undecodable".into(), "input"),
        ("wrong_type", "failed", "undecodable".into(), ""),
        ("newer_body", "failed", "unsupported_version".into(), "version 9"),
        ("newer_header", "failed", "unsupported_version".into(), "9"),
        ("broken_header", "failed", "undecodable".into(), "sl"),
        ("no_model", "failed", "undecodable".into(), "sl-model"),
        ("unknown_model", "failed", "unknown_model".into(), "didgits"),
        ("bad_name", "failed", "undecodable".into(), "model"),
        ("bad_class", "failed", "undecodable".into(), "high, normal or low"),
        ("passed_deadline", "expired", "deadline_exceeded".into(), "deadline"),
        ("bad_deadline", "failed", "undecodable".into(), "sl-deadline-ms"),
        ("wrong_shape", "failed", "invalid_input".into(), "[-1, 64]"),
        ("no_such_blob", "failed", Value::Null, "blob"),
        ("path_as_blob", "failed", Value::Null, "blob"),
    ];
    for (name, status, kind, word) in expected {
        let found = &results[name];
        ensure!(found[0] == status, "{name} is {found}, not {status}");
        ensure!(kind.is_null() || found[1] == kind, "{name} is {found}, not {kind}");
        ensure!(
            found[2].as_str().unwrap_or_default().contains(word),
            "{name} does not say {word:?}: {found}"
        );
    }
    // Everything that failed rests in `dead` with its reason; nothing goes round.
    let list = deployment.command(context, "dead").await?.args(["dead", "list", "--json"]).run(BOUND).await?;
    let dead = list.expect(0)?.json_lines()?;
    // 14 that failed, and the one that asked for another client's replies. A passed deadline is no fault.
    ensure!(dead.len() == 15, "{} dead: {dead:?}", dead.len());
    ensure!(dead.iter().any(|entry| entry["failure"]["kind"] == "forbidden"), "{dead:?}");
    Ok(())
}

/// Services that are not there, or that do not let us in.
async fn services(context: &Context, version: RabbitVersion) -> Result<()> {
    let good = Production::shared(context, version).await?;
    let port = ports::free();
    let check = |name: &'static str| good.command(context, name);
    let wrong = good.broker_url().replace("guest:guest", "guest:hunter2");
    let program = check("password").await?.env("STRAIGHTLINE_BROKER__URL", &wrong);
    refuses(program.args(["config", "check"]), 1, &["guest", "broker.url"]).await?;
    let program = check("broker")
        .await?
        .env("STRAIGHTLINE_BROKER__URL", format!("amqp://guest:hunter2@127.0.0.1:{port}/%2f"));
    refuses(program.args(["config", "check"]), 1, &[&format!("127.0.0.1:{port}")]).await?;
    let program =
        check("state").await?.env("STRAIGHTLINE_STATE__URL", format!("redis://:hunter2@127.0.0.1:{port}/0"));
    refuses(program.args(["config", "check"]), 1, &[&format!("127.0.0.1:{port}")]).await?;
    let program = check("no-url").await?.env("STRAIGHTLINE_BROKER__URL", "rabbit:hunter2");
    refuses(program.args(["config", "check"]), 64, &["broker.url"]).await?;
    check("good").await?.args(["config", "check"]).run(BOUND).await?.expect(0)?;
    Ok(())
}

/// A job that fails for good is listed, shown, requeued as a new job, and dropped.
async fn dead_jobs(context: &Context) -> Result<()> {
    let up = Up::start(context, "up", &context.folder().join("data")).await?;
    let server = ["--server", up.url.as_str()];
    let run = async |name: &str, args: &[&str]| {
        anyhow::Ok(context.straightline(name).await?.args(args).args(server).run(BOUND).await?)
    };
    let job = json!({ "model": "digits", "inputs": [image(&[1, 8, 8], 64)] });
    // The face refuses what it knows to be wrong; so the job comes as one that fails while it runs.
    let refused = http::post_json(&format!("{}/v1/jobs", up.url), &job).await?.expect(400)?;
    ensure!(refused.text().contains("[-1, 64]"), "{}", refused.text());
    let input = context.folder().join("input.bin");
    fs::write(&input, b"anything")?;
    let input = input.to_str().context("a plain path")?;
    let submitted = run("submit", &["submit", input, "--model", "diagnose.fail", "--quiet"]).await?;
    let submitted = submitted.expect(0)?.json_lines()?;
    let id = submitted[0]["id"].as_str().context("an id")?.to_owned();
    let result = run("result", &["result", &id, "--wait", "100s"]).await?.expect(1)?.json_lines()?;
    ensure!(result[0]["status"] == "failed" && result[0]["attempts"].as_u64() > Some(1), "{result:?}");
    let listed = run("list", &["dead", "list", "--json"]).await?.expect(0)?.json_lines()?;
    ensure!(listed.len() == 1 && listed[0]["id"] == id.as_str(), "{listed:?}");
    let shown = run("show", &["dead", "show", &id]).await?.expect(0)?.json()?;
    ensure!(shown["entry"]["history"].as_array().is_some_and(|history| history.len() > 1), "{shown}");
    let requeued = run("requeue", &["dead", "requeue", &id]).await?.expect(0)?;
    ensure!(
        requeued.stdout.contains(&id) && requeued.stdout.contains("1 job requeued"),
        "{}",
        requeued.stdout
    );
    let again = requeued
        .stdout
        .lines()
        .next()
        .and_then(|line| line.rsplit(' ').next())
        .context("a new id")?
        .to_owned();
    let result = run("again", &["result", &again, "--wait", "100s"]).await?.expect(1)?.json_lines()?;
    ensure!(result[0]["origin"] == id.as_str(), "{result:?}");
    run("drop", &["dead", "drop", &again]).await?.expect(0)?;
    let listed = run("list-again", &["dead", "list", "--json"]).await?.expect(0)?.json_lines()?;
    ensure!(listed.is_empty(), "{listed:?}");
    run("drop-none", &["dead", "drop", &again]).await?.expect(1)?;
    Ok(())
}
