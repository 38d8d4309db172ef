//! What the tests stand on: hosts with short limits, and bounded waiting.

use bytes::Bytes;
use libtest_mimic::Trial;
use schemas::ModelName;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};
use workers::serverless::host::{Config, Function, FunctionSummary, Host};
use workers::serverless::{Call, Functions, InvokeError};

/// Far more than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn trial(name: &str, test: impl AsyncFnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime
            .block_on(async { tokio::time::timeout(2 * LONG, test()).await.expect("the test ends in time") });
        Ok(())
    })
}

pub(crate) fn model(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

/// Functions by name; each is started as its name says.
pub(crate) fn config(functions: &[&str]) -> Config {
    let this: OsString = std::env::current_exe().unwrap().into();
    let function = |name: &&str| {
        let command = vec![this.clone(), "function".into(), name.into()];
        (model(&name.replace('_', "-")), Function::new(command))
    };
    let functions: BTreeMap<_, _> = functions.iter().map(function).collect();
    Config { functions, keeper: vec![this.clone(), "keep".into()], ..Config::default() }
}

pub(crate) async fn host(config: Config) -> Host {
    Host::start(config).await.unwrap()
}

pub(crate) fn call(function: &str, event: &Value, limit: Duration) -> Call {
    Call { model: model(function), event: event.to_string().into(), limit }
}

/// Invokes and reads the answer.
pub(crate) async fn invoke(host: &Host, function: &str, event: &Value) -> Result<Value, InvokeError> {
    let answer: Bytes = host.invoke(call(function, event, LONG)).await?;
    Ok(serde_json::from_slice(&answer).unwrap())
}

/// The kind and the words of a function's error.
pub(crate) fn function_error(error: InvokeError) -> (String, String) {
    match error {
        InvokeError::Function { type_, message } => (type_, message),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn of(host: &Host, function: &str) -> FunctionSummary {
    host.summary().functions.into_iter().find(|found| found.model == model(function)).unwrap()
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < LONG, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process is no more, or a zombie that nobody has reaped yet.
pub(crate) fn gone(pid: &Value) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_err()
        || stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}
