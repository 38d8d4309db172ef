//! The serverless lane: functions of several makes on the function host, and both sides of AWS Lambda's Invoke API.

use anyhow::{Context as _, Result, bail, ensure};
use schemas::{Failure, FailureKind, JobId, Lane, ModelName, Payload, Tensor};
use secrecy::SecretString;
use serde_json::Value;
use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tests::owned;
use tests::ports;
use tests::process::{self, Program, python, workspace};
use tests::scenario::{Need, Scenario};
use tests::stage::Context;
use tests::until::until;
use workers::catalog::Catalog;
use workers::lane::{Executor, Ran, Task};
use workers::local::{self, Local};
use workers::serverless::host::{self, Function, Host};
use workers::serverless::lambda::{self, Credentials, Lambda};
use workers::serverless::{Config, Functions, Serverless};

const LONG: Duration = Duration::from_secs(60);
/// The function is built first, on a machine that may be busy.
const WITH_BUILD: Duration = Duration::from_secs(900);

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Need::{Binary, Python};
    vec![
        Scenario::new("serverless/our_function_answers_as_the_local_lane", &[Binary], ours),
        Scenario::new("serverless/a_rust_lambda_function_runs_unchanged", &[Binary], rust).within(WITH_BUILD),
        Scenario::new(
            "serverless/a_python_lambda_function_runs_unchanged",
            &[Binary, Python],
            python_function,
        ),
        Scenario::new("serverless/functions_that_go_wrong_say_how", &[Binary, Python], going_wrong),
        Scenario::new("serverless/boto3_drives_the_host", &[Binary, Python], boto3),
        Scenario::new("serverless/our_invoke_client_drives_the_host", &[Binary, Python], client_and_host),
        Scenario::new("serverless/our_invoke_client_is_known_to_moto", &[Python], client_and_moto),
    ]
}

/// The same file, runtime and contract, in a process of its own behind an event.
async fn ours(_: &Context) -> Result<()> {
    let binary = process::build().await?;
    let models = workspace().join("models");
    let catalog = Catalog::new().with_folder(&models)?;
    let config = local::Config::default();
    let local = tokio::task::block_in_place(|| Local::start(config, &catalog))?;
    let command = |name: &str| vec![binary.clone().into(), "function".into(), "--model".into(), name.into()];
    let names = ["digits", "digits-conv"];
    let functions = names.map(|name| Ok((ModelName::new(name)?, Function::new(command(name)))));
    let functions = functions.into_iter().collect::<Result<BTreeMap<_, _>>>()?;
    let host = Arc::new(Host::start(hosting(&binary, functions)).await?);
    let lane = lane(Arc::clone(&host) as Arc<dyn Functions>, &names)?;
    for image in held_out(40)? {
        for name in names {
            let task = task(name, image.clone(), &[])?;
            let (here, there) = (local.run(task.clone()).await?, lane.run(task).await?);
            ensure!(here.output == there.output, "{name}: {here:?} here, {there:?} there");
        }
    }
    let wrong = Tensor::fp32("picture", [1, 1], &[1.0])?;
    let failure = failed(lane.run(task("digits", wrong, &[])?).await)?;
    ensure!(failure.kind == FailureKind::InvalidInput && failure.message.contains("picture"), "{failure}");
    let summary = host.summary();
    for function in &summary.functions {
        ensure!(function.cold == 1 && function.warm >= 39 && function.starts_failed == 0, "{summary:?}");
        ensure!(function.cold_start_s.is_some_and(|took| took < 10.0), "{summary:?}");
    }
    lane.stop().await;
    Ok(())
}

/// A function on AWS's own Rust runtime.
async fn rust(_: &Context) -> Result<()> {
    let (binary, function) = (process::build().await?, build_rust_function().await?);
    let function = Function::new(vec![function.into()]);
    let functions = BTreeMap::from([(ModelName::new("rust")?, function)]);
    let host = Arc::new(Host::start(hosting(&binary, functions)).await?);
    sums(&lane(Arc::clone(&host) as Arc<dyn Functions>, &["rust"])?, "rust", &host).await
}

/// A function on AWS's own Python runtime.
async fn python_function(_: &Context) -> Result<()> {
    let host = Arc::new(python_host(host::Config::default()).await?);
    sums(&lane(Arc::clone(&host) as Arc<dyn Functions>, &["python"])?, "python", &host).await
}

/// Many events, one after the other: one instance does them all.
async fn sums(lane: &Serverless, name: &str, host: &Host) -> Result<()> {
    for n in 0..50u8 {
        let input = Tensor::fp32("image", [3], &[1.0, 2.0, f32::from(n)])?;
        let ran = lane.run(task(name, input, &[])?).await?;
        ensure!(ran.output == sum_is(3.0 + f64::from(n))?, "{ran:?}");
    }
    let of = || host.summary().functions.into_iter().find(|found| found.model.as_str() == name);
    let summary = of().context("no such function")?;
    ensure!(summary.cold == 1 && summary.warm == 49, "{summary:?}");
    lane.stop().await;
    let summary = of().context("no such function")?;
    ensure!(summary.idle == 0 && summary.busy == 0, "{summary:?}");
    Ok(())
}

/// Each ends in its own failure, and the next event runs.
async fn going_wrong(_: &Context) -> Result<()> {
    let host = Arc::new(python_host(host::Config { concurrency_max: 2, ..host::Config::default() }).await?);
    let lane = lane(Arc::clone(&host) as Arc<dyn Functions>, &["python", "broken"])?;
    let image = Tensor::fp32("image", [3], &[1.0, 2.0, 3.5])?;
    for (do_, kind, words) in [
        ("raise", FailureKind::ModelError, "ValueError: not a digit"),
        ("crash", FailureKind::ModelError, "segmentation fault, nearly"),
        ("hang", FailureKind::Timeout, "did not answer within 2000 ms"),
        ("rubbish", FailureKind::ModelError, "what is no answer"),
        ("too_much", FailureKind::ModelError, "more than 6291456 bytes"),
    ] {
        let mut wrong = task("python", image.clone(), &[("do", do_)])?;
        // Time to start Python anew where the one before was killed, but not to wait for one that hangs.
        wrong.limit = if do_ == "hang" { Duration::from_secs(2) } else { LONG };
        let failure = failed(lane.run(wrong).await)?;
        ensure!(failure.kind == kind && failure.message.contains(words), "{do_}: {failure}");
        let ran = lane.run(task("python", image.clone(), &[])?).await?;
        ensure!(ran.output == sum_is(6.5)?, "after {do_}: {ran:?}");
    }
    let failure = failed(lane.run(task("broken", image.clone(), &[])?).await)?;
    ensure!(
        failure.kind == FailureKind::ModelError && failure.message.contains("no_such_module"),
        "{failure}"
    );

    let lane = Arc::new(lane);
    let hang = |image: &Tensor| {
        let (lane, hanging) = (Arc::clone(&lane), task("python", image.clone(), &[("do", "hang")]));
        tokio::spawn(async move { lane.run(hanging?).await.map_err(anyhow::Error::from) })
    };
    let hanging = [hang(&image), hang(&image)];
    until(LONG, "two are busy", async || {
        let summary = host.summary();
        let busy: u32 = summary.functions.iter().map(|function| function.busy).sum();
        ensure!(busy == 2, "{summary:?}");
        Ok(())
    })
    .await?;
    let failure = failed(lane.run(task("python", image, &[])?).await)?;
    ensure!(failure.kind == FailureKind::Busy, "{failure}");
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    lane.stop().await;
    Ok(())
}

/// AWS's own client.
async fn boto3(context: &Context) -> Result<()> {
    let listen = Some("127.0.0.1:0".parse()?);
    let config = host::Config { concurrency_max: 1, invoke_listen: listen, ..host::Config::default() };
    let host = python_host(config).await?;
    let endpoint = format!("http://{}", host.invoke_address().context("no Invoke API")?);
    let client = context.python("boto3", "tests/functions/python/invoking.py").args([&endpoint]);
    let calls = client.run(LONG).await?.expect(0)?.json_lines()?;
    ensure!(calls.len() == 10, "{calls:?}");
    for well in [0, 1, 4] {
        let call = &calls[well];
        ensure!(
            call["status"] == 200 && call["function_error"].is_null() && call["version"] == "$LATEST",
            "{call}"
        );
        ensure!(call["body"]["outputs"][0]["data"][0] == 6.5, "{call}");
        ensure!(call["body"]["parameters"]["remaining_ms"].as_u64().is_some_and(|ms| ms > 1_000), "{call}");
    }
    for (at, type_) in [(2, "ValueError"), (3, "Runtime.ExitError")] {
        let call = &calls[at];
        ensure!(call["status"] == 200 && call["function_error"] == "Unhandled", "{call}");
        ensure!(call["body"]["errorType"] == type_, "{call}");
    }
    ensure!(calls[5]["status"] == 204 && calls[8]["status"] == 202, "{calls:?}");
    for (at, status, error) in [
        (6, 404, "ResourceNotFoundException"),
        (7, 413, "RequestTooLargeException"),
        (9, 429, "TooManyRequestsException"),
    ] {
        ensure!(calls[at]["status"] == status && calls[at]["error"] == error, "{}", calls[at]);
    }
    Ok(())
}

/// Our client against our own host: through bytes on a wire, and what either side makes of errors.
async fn client_and_host(_: &Context) -> Result<()> {
    let listen = Some("127.0.0.1:0".parse()?);
    let config = host::Config { concurrency_max: 1, invoke_listen: listen, ..host::Config::default() };
    let host = python_host(config).await?;
    let address = host.invoke_address().context("no Invoke API")?;
    let config = lambda::Config {
        endpoint: Some(format!("http://{address}")),
        function: "arn:aws:lambda:us-east-1:000000000000:function:{model}".to_owned(),
        ..lambda::Config::new(key("anyone", "anything"))
    };
    let lane = lane(Arc::new(Lambda::new(config)?), &["python", "nobody"])?;
    let image = Tensor::fp32("image", [3], &[1.0, 2.0, 3.5])?;
    ensure!(lane.run(task("python", image.clone(), &[])?).await?.output == sum_is(6.5)?);
    for (model, do_, kind, words) in [
        ("python", "raise", FailureKind::ModelError, "ValueError: not a digit"),
        ("python", "crash", FailureKind::ModelError, "Runtime.ExitError"),
        ("nobody", "sum", FailureKind::LaneUnavailable, "is not there"),
    ] {
        let failure = failed(lane.run(task(model, image.clone(), &[("do", do_)])?).await)?;
        ensure!(failure.kind == kind && failure.message.contains(words), "{failure}");
    }
    let lane = Arc::new(lane);
    let (busy, hanging) = (Arc::clone(&lane), task("python", image.clone(), &[("do", "hang")])?);
    let busy = tokio::spawn(async move { busy.run(hanging).await });
    until(LONG, "it is busy", async || {
        let summary = host.summary();
        ensure!(summary.functions.iter().any(|function| function.busy == 1), "{summary:?}");
        Ok(())
    })
    .await?;
    let failure = failed(lane.run(task("python", image.clone(), &[])?).await)?;
    ensure!(
        failure.kind == FailureKind::Busy && failure.message.contains("come back after 1 s"),
        "{failure}"
    );
    host.stop().await;
    let failure = failed(busy.await?)?;
    ensure!(
        failure.kind == FailureKind::LaneUnavailable || failure.kind == FailureKind::ModelError,
        "{failure}"
    );
    Ok(())
}

/// Our client against a server not ours, which checks the signature. It runs no code without Docker: its answers are laid
/// out for it beforehand.
async fn client_and_moto(context: &Context) -> Result<()> {
    let port = ports::free();
    let endpoint = format!("http://127.0.0.1:{port}");
    let server = Program::new("moto", &python(), context.folder());
    let server = server.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
    // The calls that prepare it; from the sixth on it asks who calls.
    let mut server = server.env("INITIAL_NO_AUTH_ACTION_COUNT", "5").start()?;
    server.ready_http(&format!("{endpoint}/moto-api/data.json"), LONG).await?;
    let prepare = context.python("at-moto", "tests/functions/python/at_moto.py").args([&endpoint]);
    let prepared = prepare.run(LONG).await?.expect(0)?.json()?;
    let told = |name: &str| prepared[name].as_str().map(str::to_owned).context("no key");
    let (id, secret) = (told("id")?, told("secret")?);
    let client = |secret: &str| -> Result<Serverless> {
        let config =
            lambda::Config { endpoint: Some(endpoint.clone()), ..lambda::Config::new(key(&id, secret)) };
        lane(Arc::new(Lambda::new(config)?), &["m"])
    };
    let image = Tensor::fp32("image", [1], &[1.0])?;
    let ran = client(&secret)?.run(task("m", image.clone(), &[])?).await?;
    ensure!(ran.output == sum_is(6.5)?, "{ran:?}");
    let failure = failed(client("another")?.run(task("m", image, &[])?).await)?;
    let refused = failure.message.contains("SignatureDoesNotMatch");
    ensure!(failure.kind == FailureKind::LaneUnavailable && refused, "{failure}");
    Ok(())
}

/// A host of functions started by the binary under test.
fn hosting(binary: &Path, functions: BTreeMap<ModelName, Function>) -> host::Config {
    host::Config { functions, keeper: vec![binary.into(), "keep".into()], ..host::Config::default() }
}

/// A host with the Python function, and another that cannot start.
async fn python_host(limits: host::Config) -> Result<Host> {
    let function = |handler: &str| Function {
        handler: handler.to_owned(),
        task_root: workspace().join("tests/functions/python"),
        // The runtime is started as in Lambda's own image: it is told the handler and finds the module in its folder.
        ..Function::new([python().into(), "-m".into(), "awslambdaric".into(), handler.into()].to_vec())
    };
    let functions = [("python", "function.handler"), ("broken", "no_such_module.handler")];
    let functions = functions.map(|(name, handler)| Ok((ModelName::new(name)?, function(handler))));
    let config = hosting(&process::build().await?, functions.into_iter().collect::<Result<_>>()?);
    Ok(Host::start(host::Config { functions: config.functions, keeper: config.keeper, ..limits }).await?)
}

fn lane(functions: Arc<dyn Functions>, models: &[&str]) -> Result<Serverless> {
    let models = models.iter().map(|name| Ok(ModelName::new(name)?)).collect::<Result<_>>()?;
    let lane = Serverless::new(&Config::default(), functions, models)?;
    ensure!(lane.lane() == Lane::Serverless);
    Ok(lane)
}

fn task(model: &str, input: Tensor, parameters: &[(&str, &str)]) -> Result<Task> {
    let parameter = |(name, value): &(&str, &str)| {
        ((*name).to_owned(), schemas::body::Parameter::Text((*value).to_owned()))
    };
    Ok(Task {
        id: JobId::new(),
        model: ModelName::new(model)?,
        attempt: 1,
        input: Payload::Tensors(vec![input]),
        outputs: Vec::new(),
        parameters: parameters.iter().map(parameter).collect(),
        limit: LONG,
    })
}

fn failed(ran: Result<Ran, Failure>) -> Result<Failure> {
    match ran {
        Err(failure) => Ok(failure),
        Ok(ran) => bail!("it ran: {ran:?}"),
    }
}

fn sum_is(sum: f64) -> Result<Payload> {
    let data = sum.to_le_bytes().to_vec();
    Ok(Payload::Tensors(vec![Tensor::new("sum", schemas::tensor::Datatype::Fp64, [1], data)?]))
}

fn key(id: &str, secret: &str) -> Credentials {
    let secret_access_key = SecretString::from(secret);
    Credentials { access_key_id: id.to_owned(), secret_access_key, session_token: None }
}

/// Held-out digits as the models take them.
fn held_out(count: usize) -> Result<Vec<Tensor>> {
    let text = std::fs::read_to_string(workspace().join("models/data/digits-heldout.csv"))?;
    let image = |line: &str| -> Result<Tensor> {
        let pixels: Vec<f32> =
            line.split(',').take(64).map(|cell| cell.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Tensor::fp32("image", [1, 64], &pixels)?)
    };
    text.lines().skip(1).take(count).map(image).collect()
}

/// Builds the function beside everything else that is built, and gives back its path.
async fn build_rust_function() -> Result<PathBuf> {
    let mut command = owned::command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "--locked", "--message-format=json-render-diagnostics"]);
    command.current_dir(workspace().join("tests/functions/rust"));
    if env::var_os("CARGO_TARGET_DIR").is_none() {
        command.env("CARGO_TARGET_DIR", workspace().join("target"));
    }
    let printed = owned::printed("cargo build", command, WITH_BUILD).await?;
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built = messages
        .filter(|message| message["target"]["name"] == "summing")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    built.context("cargo built no program named summing")
}
