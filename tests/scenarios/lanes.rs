//! All three lanes behind one queue, as processes of their own: who gets which job, and what becomes of jobs when a lane
//! fails.

use crate::deployment::{
    Production, each_once, jobs_file_of, mixture, more_results, placement_log, results_of,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tests::process::{Process, Program, python, workspace};
use tests::scenario::{Need, Scenario};
use tests::services::{Docker, RabbitVersion};
use tests::stage::Context;
use tests::until::until;
use tests::{http, ports};

const LONG: Duration = Duration::from_secs(600);
/// How long a change may take to be told.
const SOON: Duration = Duration::from_secs(60);

/// F and D of these deployments: the defaults, said aloud since the rule is computed anew here.
const F: f64 = 20.0;
const D: u64 = 64 * 1024;

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Need::{Binary, Python, Rabbit40, Rabbit310, Redis};
    let over_three = [Binary, Redis, Need::Docker];
    let mut all =
        Scenario::on_each_rabbit("lanes/placements_are_what_the_rule_says", &over_three, placements);
    let with = |more: &[Need]| [&over_three[..], more].concat();
    all.push(Scenario::new("lanes/engine_containers_and_host_die_under_load", &with(&[Rabbit40]), deaths));
    all.push(Scenario::new("lanes/a_broken_container_falls_back", &with(&[Rabbit310]), broken_containers));
    let functions = [Binary, Redis, Rabbit310, Python];
    all.push(Scenario::new("lanes/a_broken_function_falls_back", &functions, broken_functions));
    all.push(Scenario::new("lanes/flask_is_a_local_lane", &functions, flask));
    all.push(Scenario::new("lanes/gpus_are_told", &[Binary, Redis, Rabbit310], gpus));
    all.into_iter().map(|scenario| scenario.within(LONG)).collect()
}

async fn on(context: &Context, version: RabbitVersion, engine: &Docker) -> Result<Production> {
    let deployment = Production::shared(context, version).await?;
    Ok(deployment.with("STRAIGHTLINE_DOCKER__HOST", engine.host()))
}

/// Waits until `status` says `words`, wherever.
async fn told(deployment: &Production, context: &Context, words: &str) -> Result<()> {
    until(SOON, "status tells why", async || {
        let status = deployment.status(context).await?.to_string();
        ensure!(status.contains(words), "no {words:?} in {status}");
        Ok(())
    })
    .await
}

async fn available(deployment: &Production, context: &Context, lane: &str, wanted: bool) -> Result<()> {
    until(SOON, "a lane comes or goes", async || {
        let status = deployment.status(context).await?;
        let lanes = status["lanes"].as_array().context("no lanes")?;
        let found = lanes.iter().find(|found| found["lane"] == lane).context("no such lane")?;
        ensure!(found["available"] == wanted, "{found}");
        Ok(())
    })
    .await
}

/// Two dispatchers, a worker of each lane: every placement is what the documented rule makes of what was known, and
/// the results were placed so.
async fn placements(context: &Context, version: RabbitVersion) -> Result<()> {
    let engine = Docker::start(&context.folder().join("d")).await?;
    let deployment = on(context, version, &engine).await?;
    let mut workers = Vec::new();
    for lane in ["local", "docker", "serverless"] {
        workers.push(deployment.worker_of(context, lane, lane).await?);
    }
    available(&deployment, context, "docker", true).await?;
    let _dispatchers =
        [deployment.dispatcher(context, "d1").await?, deployment.dispatcher(context, "d2").await?];
    let (jobs, results) = (context.folder().join("jobs.jsonl"), context.folder().join("results.jsonl"));
    let labels = jobs_file_of(&jobs, 10_000, mixture)?;
    deployment.submit(context, &jobs, &results).await?.finish(LONG).await?.expect(0)?;
    let results = results_of(&results)?;
    each_once(&results, &labels)?;

    let mut entries = Vec::new();
    for dispatcher in ["d1", "d2"] {
        let of_one = results_of(&placement_log(context, dispatcher))?;
        ensure!(of_one.len() > 100, "{dispatcher} placed {} jobs", of_one.len());
        entries.extend(of_one);
    }
    entries.sort_by_key(|entry| entry["at"].as_u64());
    let mut placed: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for entry in entries {
        let expected = rule(&entry)?;
        let found = (text(&entry["lane"])?, text(&entry["reason"])?);
        ensure!(found == expected, "{found:?} in place of {expected:?}: {entry}");
        placed.entry(text(&entry["job"])?).or_default().push(expected);
    }
    let (mut table, mut recomputed) = (BTreeMap::new(), BTreeMap::new());
    for result in &results {
        let found = (text(&result["lane"])?, text(&result["reason"])?);
        let of_job = placed.get(&text(&result["id"])?).with_context(|| format!("never placed: {result}"))?;
        ensure!(of_job.contains(&found), "placed as {of_job:?}: {result}");
        *table.entry(found).or_insert(0u32) += 1;
        *recomputed.entry(of_job[of_job.len() - 1].clone()).or_insert(0u32) += 1;
    }
    eprintln!("placements: {table:?}");
    ensure!(table == recomputed, "recomputed: {recomputed:?}, results: {table:?}");
    for (lane, reason) in [("serverless", "frequent_small"), ("docker", "large"), ("local", "moderate")] {
        ensure!(table.contains_key(&(lane.to_owned(), reason.to_owned())), "no {lane} {reason}: {table:?}");
    }
    Ok(())
}

/// The rule as the documents have it, for what an entry of the placement log says was known.
fn rule(entry: &Value) -> Result<(String, String)> {
    let size = entry["size"].as_u64().context("no size")?;
    let per_second = entry["per_second"].as_f64().context("no frequency")?;
    let (mut row, order) = if size >= D {
        ("large", ["docker", "local", "serverless"])
    } else if per_second > F {
        ("frequent_small", ["serverless", "local", "docker"])
    } else {
        ("moderate", ["local", "docker", "serverless"])
    };
    let mut passed_over = None;
    for lane in order {
        match obstacle(entry, lane)? {
            None => return Ok((lane.to_owned(), passed_over.unwrap_or_else(|| row.to_owned()))),
            Some("full") if passed_over.is_none() && row == "moderate" => row = "local_full",
            Some("full") if passed_over.is_none() && row == "local_full" => row = "overflow",
            Some(obstacle) => _ = passed_over.get_or_insert_with(|| format!("{row}/{lane}_{obstacle}")),
        }
    }
    anyhow::bail!("no lane could take it: {entry}")
}

fn obstacle(entry: &Value, lane: &str) -> Result<Option<&'static str>> {
    let lanes = entry["lanes"].as_array().context("no lanes")?;
    let seen = lanes.iter().find(|seen| seen["lane"] == lane).context("no such lane")?;
    let failed = entry["failed"].as_array().context("no failed lanes")?;
    Ok(if seen["payload_max"].as_u64().is_some_and(|max| entry["size"].as_u64() > Some(max)) {
        Some("payload")
    } else if seen["live"] == false {
        Some("down")
    } else if seen["serves"] == false {
        Some("no_model")
    } else if failed.iter().any(|failed| failed == lane) {
        Some("failed")
    } else if seen["room"] == 0 {
        Some("full")
    } else {
        None
    })
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("no text: {value}"))?.to_owned())
}

/// Under load the engine is stopped and started, every container killed, and the function host killed with -9.
async fn deaths(context: &Context) -> Result<()> {
    let engine = Docker::start(&context.folder().join("d")).await?;
    let deployment = on(context, RabbitVersion::V4_0, &engine).await?;
    let _local = deployment.worker_of(context, "local", "local").await?;
    let _docker = deployment.worker_of(context, "docker", "docker").await?;
    let mut functions = deployment.worker_of(context, "serverless", "functions-1").await?;
    available(&deployment, context, "docker", true).await?;
    let _dispatcher = deployment.dispatcher(context, "d1").await?;
    let (jobs, results) = (context.folder().join("jobs.jsonl"), context.folder().join("results.jsonl"));
    // A tenth is large, so that containers are never without work; and so many that some are left when all has happened.
    let labels = jobs_file_of(&jobs, 20_000, |job| match job % 10 {
        3 => ("digits", 260),
        7 => ("digits-conv", 1),
        _ => ("digits", 1),
    })?;
    let mut submit = deployment.submit(context, &jobs, &results).await?;

    more_results(&mut submit, &results, 300).await?;
    told(&deployment, context, &format!(" at {}", engine.host())).await?;
    engine.stop().await?;
    told(&deployment, context, "cannot be reached").await?;
    available(&deployment, context, "docker", false).await?;
    more_results(&mut submit, &results, 300).await?;
    engine.resume().await?;
    available(&deployment, context, "docker", true).await?;
    more_results(&mut submit, &results, 300).await?;

    until(SOON, "every container is killed", async || {
        let containers = engine.cli(&["ps", "--quiet"]).await?;
        ensure!(!containers.is_empty(), "none runs");
        for container in containers.lines() {
            engine.cli(&["kill", container]).await?;
        }
        Ok(())
    })
    .await?;
    more_results(&mut submit, &results, 300).await?;

    functions.kill9().await?;
    available(&deployment, context, "serverless", false).await?;
    told(&deployment, context, "start one with `straightline worker --lane serverless`").await?;
    more_results(&mut submit, &results, 300).await?;
    let _functions = deployment.worker_of(context, "serverless", "functions-2").await?;
    available(&deployment, context, "serverless", true).await?;

    submit.finish(LONG).await?.expect(0)?;
    let results = results_of(&results)?;
    each_once(&results, &labels)?;
    // The last came after everything else: there was work left until the end.
    for worker in ["local", "docker", "functions-1", "functions-2"] {
        ensure!(results.iter().any(|result| result["worker"] == worker), "{worker} ran nothing");
    }
    Ok(())
}

/// Some jobs with `parameters` for the model digits go through `deployment`, and end well in `lane`.
async fn all_end_in(
    deployment: &Production,
    context: &Context,
    (group, count): (u32, usize),
    parameters: &Value,
    lane: &str,
) -> Result<()> {
    let file = |what: &str| context.folder().join(format!("{what}-{group}.jsonl"));
    let (jobs, results) = (file("jobs"), file("results"));
    jobs_file_of(&jobs, count, |_| ("digits", 1))?;
    let lines = results_of(&jobs)?.into_iter().enumerate().map(|(at, mut job)| {
        // Ids of its own: those of the group before have their results.
        job["id"] = json!(format!("{group:08x}-0000-7000-8000-{at:012x}"));
        job["parameters"] = parameters.clone();
        job["run_timeout_ms"] = json!(5_000);
        job.to_string() + "\n"
    });
    fs::write(&jobs, lines.collect::<String>())?;
    deployment.submit(context, &jobs, &results).await?.finish(LONG).await?.expect(0)?;
    let results = results_of(&results)?;
    ensure!(results.len() == count, "{} results of {count} jobs", results.len());
    for result in &results {
        ensure!(result["status"] == "succeeded" && result["lane"] == lane, "{result}");
    }
    Ok(())
}

/// Ends `processes` as an operator would.
async fn end<const N: usize>(processes: [Process; N]) -> Result<()> {
    for mut process in processes {
        process.term()?;
        process.finish(LONG).await?.expect(0)?;
    }
    Ok(())
}

/// An image that is missing, and a container that never gets ready: the jobs run in another lane, and `status` says why.
async fn broken_containers(context: &Context) -> Result<()> {
    let engine = Docker::start(&context.folder().join("d")).await?;
    let large = ("STRAIGHTLINE_DISPATCHER__SIZE_THRESHOLD", "1B");
    // Well first, which makes our image.
    let well = on(context, RabbitVersion::V3_10, &engine).await?.with(large.0, large.1);
    let worker = well.worker_of(context, "docker", "well").await?;
    let dispatcher = well.dispatcher(context, "d-well").await?;
    all_end_in(&well, context, (1, 300), &json!({}), "docker").await?;
    told(&well, context, "\"busy\":0,\"idle\":").await?;
    end([dispatcher, worker]).await?;

    let ours = engine.cli(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).await?;
    let cases = [
        (2, "image = \"not/there:1\"".to_owned(), "image not/there:1 of model digits is not on this machine"),
        (3, format!("image = {ours:?}, port = 1"), "was not ready within 2000 ms"),
    ];
    for (group, image, words) in cases {
        let broken = on(context, RabbitVersion::V3_10, &engine).await?.with(large.0, large.1);
        let broken = broken
            .with("STRAIGHTLINE_DOCKER__IMAGES", format!("{{ digits = {{ {image} }} }}"))
            .with("STRAIGHTLINE_DOCKER__READY_TIMEOUT", "2s");
        let worker = broken.worker_of(context, "docker", &format!("broken-{group}")).await?;
        let local = broken.worker_of(context, "local", &format!("local-{group}")).await?;
        available(&broken, context, "docker", true).await?;
        let dispatcher = broken.dispatcher(context, &format!("d-{group}")).await?;
        all_end_in(&broken, context, (group, 300), &json!({}), "local").await?;
        told(&broken, context, words).await?;
        end([dispatcher, worker, local]).await?;
    }
    Ok(())
}

/// A function that raises, crashes, hangs, answers rubbish or too much: the jobs run in another lane, and `status` says why.
async fn broken_functions(context: &Context) -> Result<()> {
    let root = workspace().join("tests/functions/python");
    let function = format!(
        "{{ digits = {{ command = [{:?}, \"-m\", \"awslambdaric\", \"function.handler\"], handler = \"function.handler\", task_root = {root:?}, memory = \"1GiB\" }} }}",
        python()
    );
    let deployment = Production::shared(context, RabbitVersion::V3_10).await?;
    let deployment = deployment
        .with("STRAIGHTLINE_DISPATCHER__FREQUENCY_THRESHOLD", "0")
        .with("STRAIGHTLINE_SERVERLESS__HOST", format!("{{ functions = {function} }}"));
    let _functions = deployment.worker_of(context, "serverless", "functions").await?;
    let _local = deployment.worker_of(context, "local", "local").await?;
    let _dispatcher = deployment.dispatcher(context, "d1").await?;
    // Each crash and each hang takes a process with it, and a hang its whole limit.
    for (group, count, wrong, words) in [
        (4, 300, "raise", "ValueError: not a digit"),
        (5, 60, "crash", "segmentation fault, nearly"),
        (6, 300, "rubbish", "what is no answer"),
        (7, 100, "too_much", "more than 6291456 bytes"),
        (8, 40, "hang", "did not answer within 5000 ms"),
    ] {
        all_end_in(&deployment, context, (group, count), &json!({ "do": wrong }), "local").await?;
        told(&deployment, context, words).await?;
    }
    Ok(())
}

/// A Flask application beside the worker, as in the paper; then one that fails, and one that is gone.
async fn flask(context: &Context) -> Result<()> {
    let port = ports::free();
    let url = format!("http://127.0.0.1:{port}");
    let failing = context.folder().join("failing");
    // The example as it is, with a switch in front of it.
    let app = "import os, sys\n\
        from flask import request\n\
        sys.path.insert(0, os.environ['APP'])\n\
        from flask_app import app\n\
        fails = lambda: request.path.endswith('/infer') and os.path.exists(sys.argv[2])\n\
        app.before_request(lambda: ('broken, as asked', 500) if fails() else None)\n\
        app.run(host='127.0.0.1', port=int(sys.argv[1]), threaded=True)\n";
    let mut flask = Program::new("flask", &python(), context.folder())
        .env("APP", workspace().join("workers/examples"))
        .env("MODEL", workspace().join("models/digits"))
        .args(["-c", app, &port.to_string()])
        .args([&failing])
        .start()?;
    flask.ready_http(&format!("{url}/v2/health/ready"), SOON).await?;
    let server = format!("{{ url = {url:?}, models = [\"digits\"] }}");
    let deployment = Production::shared(context, RabbitVersion::V3_10).await?;
    let deployment = deployment.with("STRAIGHTLINE_DISPATCHER__FREQUENCY_THRESHOLD", "1000000");
    let beside = deployment.clone().with("STRAIGHTLINE_WORKER__SERVER", server);
    let _local = beside.worker_of(context, "local", "flask").await?;
    available(&deployment, context, "local", true).await?;
    let _dispatcher = deployment.dispatcher(context, "d1").await?;

    let (jobs, results) = (context.folder().join("jobs.jsonl"), context.folder().join("results.jsonl"));
    let labels = jobs_file_of(&jobs, 1_000, |_| ("digits", 3))?;
    deployment.submit(context, &jobs, &results).await?.finish(LONG).await?.expect(0)?;
    let results = results_of(&results)?;
    each_once(&results, &labels)?;
    ensure!(results.iter().all(|result| result["worker"] == "flask"), "others ran some");

    let _functions = deployment.worker_of(context, "serverless", "functions").await?;
    available(&deployment, context, "serverless", true).await?;
    fs::write(&failing, "")?;
    all_end_in(&deployment, context, (9, 300), &json!({}), "serverless").await?;
    told(&deployment, context, "server of digits answered 500: broken, as asked").await?;
    flask.kill9().await?;
    available(&deployment, context, "local", false).await?;
    told(&deployment, context, &format!("server at {url}: it ")).await?;
    all_end_in(&deployment, context, (10, 300), &json!({}), "serverless").await
}

/// Two devices of a stand-in for NVIDIA's library, one of which does not tell its load: in the heartbeat, so in `status`, and
/// in metrics, where what is not known is left out.
async fn gpus(context: &Context) -> Result<()> {
    let library = context.folder().join("libnvidia-ml.so.1");
    let source = workspace().join("workers/tests/stand_in_nvml.c");
    let compiler = Program::new("cc", Path::new("cc"), context.folder());
    let compiler = compiler.args(["-shared", "-fPIC", "-D", "WELL", "-o"]).args([&library, &source]);
    compiler.run(LONG).await?.expect(0)?;
    let deployment = Production::shared(context, RabbitVersion::V3_10).await?;
    let metrics = format!("127.0.0.1:{}", ports::free());
    let worker = deployment.command(context, "worker").await?;
    let worker = worker.env("LD_LIBRARY_PATH", context.folder());
    let mut worker = worker.args(["worker", "--lane", "local", "--metrics", &metrics]).start()?;
    worker.ready_log("ready", LONG).await?;
    told(&deployment, context, r#""name":"Stand-in 9000""#).await?;
    let status = deployment.status(context).await?;
    let gpus = status["workers"][0]["resources"]["gpus"].as_array().context("no GPUs")?;
    ensure!(gpus.len() == 3 && gpus[0]["used"] == 0.37 && gpus[1]["used"].is_null(), "{gpus:?}");
    ensure!(gpus[2]["memory_bytes"].is_null(), "{gpus:?}");
    let shown = http::get(&format!("http://{metrics}/metrics")).await?.expect(200)?.text();
    ensure!(shown.contains(r#"straightline_gpu_used_ratio{gpu="0"} 0.37"#), "{shown}");
    ensure!(!shown.contains(r#"straightline_gpu_used_ratio{gpu="1"}"#), "{shown}");
    Ok(())
}
