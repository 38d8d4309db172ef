//! Functions that crash, hang or never start, and worker and host that end: each with its clear failure, and nothing left behind.

use crate::stage::{LONG, call, config, function_error, gone, host, invoke, of, trial, until};
use libtest_mimic::Trial;
use schemas::ModelName;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use workers::serverless::host::Config;
use workers::serverless::{Functions, InvokeError};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_crash_is_told_with_its_last_words_and_the_next_event_runs", crash),
        trial("one_that_hangs_is_killed_at_the_limit_and_the_next_event_runs", hang),
        trial("one_that_died_while_idle_costs_the_next_event_nothing", died_idle),
        trial("a_start_that_fails_says_why", starts),
        trial("children_it_leaves_behind_end_with_it", children),
        trial("a_host_that_stops_kills_what_is_busy", stop),
        trial("nothing_outlives_a_worker_that_is_killed", worker_killed),
    ]
}

async fn crash() {
    let host = host(config(&["good"])).await;
    let (type_, words) = function_error(invoke(&host, "good", &json!({ "do": "crash" })).await.unwrap_err());
    assert_eq!(type_, "Runtime.ExitError");
    assert!(words.contains("while it ran (signal: 6 (SIGABRT)): segfault, nearly"), "{words}");
    assert_eq!(invoke(&host, "good", &json!({ "n": 1 })).await.unwrap()["event"]["n"], 1);
    assert_eq!(of(&host, "good").starts_failed, 0);
}

async fn hang() {
    let host = host(config(&["good"])).await;
    let pid = invoke(&host, "good", &json!({})).await.unwrap()["pid"].clone();
    let began = Instant::now();
    let error =
        host.invoke(call("good", &json!({ "do": "hang" }), Duration::from_millis(150))).await.unwrap_err();
    assert_eq!(error, InvokeError::TimedOut("did not answer within 150 ms".to_owned()));
    assert!(began.elapsed() < LONG / 2);
    until("it is killed", || gone(&pid)).await;
    assert_ne!(invoke(&host, "good", &json!({})).await.unwrap()["pid"], pid);
}

async fn died_idle() {
    let host = host(config(&["good"])).await;
    for _ in 0..5 {
        let pid = invoke(&host, "good", &json!({})).await.unwrap()["pid"].clone();
        until("it waits", || of(&host, "good").idle == 1).await;
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
        until("the host has seen its end", || of(&host, "good").idle == 0).await;
        assert_ne!(invoke(&host, "good", &json!({})).await.unwrap()["pid"], pid);
    }
}

async fn starts() {
    let short = Duration::from_millis(300);
    let mut config = Config {
        init_timeout: short,
        ..config(&["crash", "init_error", "never_asks", "missing", "no_folder"])
    };
    // There when the host starts, and gone when the function does.
    let program = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(program.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let missing = ModelName::new("missing").unwrap();
    config.functions.get_mut(&missing).unwrap().command = vec![program.path().into()];
    let folder = tempfile::tempdir().unwrap();
    let no_folder = ModelName::new("no-folder").unwrap();
    config.functions.get_mut(&no_folder).unwrap().task_root = folder.path().to_owned();
    let host = host(config).await;
    let (program, folder) = (program.path().to_owned(), folder.keep());
    std::fs::remove_file(&program).unwrap();
    std::fs::remove_dir(&folder).unwrap();
    for (function, kind, expected) in [
        (
            "crash",
            "Runtime.ExitError",
            "before it asked for its first event (exit status: 3): no module named torch",
        ),
        ("init-error", "Runtime.ImportModuleError", "no module named torch"),
        ("never-asks", "Sandbox.InitTimedout", "within 300 ms of its start"),
        ("missing", "Runtime.ExitError", &format!("cannot start {}: No such file", program.display())),
    ] {
        for attempt in 1..=2 {
            let error = host.invoke(call(function, &json!({}), LONG)).await.unwrap_err();
            let (type_, words) = function_error(error);
            assert_eq!(type_, kind, "{words}");
            assert!(words.contains(expected), "{words}");
            assert_eq!(of(&host, function).starts_failed, attempt);
        }
    }
    let error = invoke(&host, "no-folder", &json!({})).await.unwrap_err();
    assert!(
        matches!(&error, InvokeError::Unreachable(words)
            if words.contains(&format!("cannot be started: {}: No such file", folder.display()))),
        "{error:?}"
    );
    let error = host.invoke(call("never-asks", &json!({}), Duration::from_millis(50))).await.unwrap_err();
    assert!(
        matches!(&error, InvokeError::TimedOut(words) if words.contains("cold start included")),
        "{error:?}"
    );
}

async fn children() {
    let host = host(Config { idle_timeout: Duration::from_millis(50), ..config(&["good"]) }).await;
    let left = invoke(&host, "good", &json!({ "do": "leave_child" })).await.unwrap();
    until("function and child are gone", || gone(&left["pid"]) && gone(&left["child"])).await;
}

async fn stop() {
    let host = Arc::new(host(config(&["good", "other"])).await);
    let idle = invoke(&host, "other", &json!({})).await.unwrap();
    let busy = Arc::clone(&host);
    let busy = tokio::spawn(async move { busy.invoke(call("good", &json!({ "do": "hang" }), LONG)).await });
    until("it is busy", || of(&host, "good").busy == 1).await;
    host.stop().await;
    assert!(gone(&idle["pid"]));
    assert!(matches!(busy.await.unwrap(), Err(InvokeError::Unreachable(_))));
    let error = invoke(&host, "other", &json!({})).await.unwrap_err();
    assert!(matches!(&error, InvokeError::Unreachable(words) if words.contains("host ends")), "{error:?}");
}

async fn worker_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let this = std::env::current_exe().unwrap();
    let mut worker = Command::new(this).arg("host").arg(&file).stdin(Stdio::piped()).spawn().unwrap();
    let pids = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.split(' ').filter_map(|pid| Some(json!(pid.parse::<u32>().ok()?))).collect::<Vec<Value>>()
    };
    until("the function runs", || pids().len() == 2).await;
    assert!(!gone(&pids()[0]) && !gone(&pids()[1]));
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("function and child are gone", || pids().iter().all(gone)).await;
}

/// A worker with one event under way that never ends.
pub(crate) fn host_to_be_killed() -> ExitCode {
    let file = std::env::args().nth(2).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ended = runtime.block_on(async {
        let host = host(config(&["good"])).await;
        invoke(&host, "good", &json!({ "do": "hold_child", "file": file })).await
    });
    println!("{ended:?}");
    ExitCode::FAILURE
}
