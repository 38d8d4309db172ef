//! Instances: cold and warm, how many, what they see.

use crate::stage::{LONG, call, config, function_error, gone, host, invoke, model, of, trial, until};
use libtest_mimic::Trial;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use workers::serverless::host::{Config, Host};
use workers::serverless::{Functions, InvokeError};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_first_event_finds_it_cold_and_the_next_warm", cold_and_warm),
        trial("what_a_function_reports_comes_through", reports),
        trial("it_sees_a_function_s_environment_and_nothing_of_ours", environment),
        trial("memory_over_its_limit_is_not_had", memory),
        trial("payloads_are_limited_both_ways", payloads),
        trial("idle_instances_end", idle),
        trial("at_the_limit_it_is_throttled_and_the_idle_make_room", limits),
        trial("many_at_once_each_get_their_own_answer", many),
        trial("settings_that_cannot_work_are_refused", settings),
    ]
}

async fn cold_and_warm() {
    let host = host(config(&["good"])).await;
    assert_eq!(of(&host, "good").cold_start_s, None);
    let first = invoke(&host, "good", &json!({ "n": 1 })).await.unwrap();
    let second = invoke(&host, "good", &json!({ "n": 2 })).await.unwrap();
    assert_eq!((&first["event"]["n"], &second["event"]["n"]), (&json!(1), &json!(2)));
    assert_eq!(first["pid"], second["pid"]);
    let headers = &second["headers"];
    let arn = "arn:aws:lambda:us-east-1:000000000000:function:good";
    assert_eq!(headers["lambda-runtime-invoked-function-arn"], arn);
    assert!(
        headers["lambda-runtime-deadline-ms"].as_str().unwrap().parse::<u64>().unwrap() > 1_700_000_000_000
    );
    assert_ne!(first["headers"]["lambda-runtime-aws-request-id"], headers["lambda-runtime-aws-request-id"]);
    let summary = of(&host, "good");
    assert_eq!((summary.cold, summary.warm, summary.starts_failed), (1, 1, 0));
    assert!(summary.cold_start_s.unwrap() > 0.0);
}

async fn reports() {
    let host = host(config(&["good"])).await;
    let error = invoke(&host, "good", &json!({ "do": "error" })).await.unwrap_err();
    assert_eq!(function_error(error), ("ValueError".to_owned(), "not a digit".to_owned()));
    let error = invoke(&host, "good", &json!({ "do": "ask_again" })).await.unwrap_err();
    assert_eq!(function_error(error).0, "Runtime.NoAnswer");
    let other = invoke(&host, "good", &json!({ "do": "other_id" })).await.unwrap();
    assert_eq!(other, json!({ "status": 400, "type": "InvalidRequestID" }));
    assert_eq!(of(&host, "good").cold, 1, "none of it cost the instance its life");
}

async fn environment() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&["good"]);
    let function = config.functions.get_mut(&model("good")).unwrap();
    function.handler = "app.handler".to_owned();
    function.task_root = folder.path().to_owned();
    function.environment.insert("STAGE".to_owned(), "test".to_owned());
    function.limits.files_max = 77;
    let host = host(config).await;
    let seen = invoke(&host, "good", &json!({ "do": "environment" })).await.unwrap();
    let names: Vec<&String> = seen["environment"].as_object().unwrap().keys().collect();
    let known = |name: &&String| {
        name.starts_with("AWS_")
            || ["LAMBDA_TASK_ROOT", "LANG", "PATH", "STAGE", "TZ", "_HANDLER"].contains(&name.as_str())
    };
    assert!(names.iter().all(known), "{names:?}");
    let environment = &seen["environment"];
    assert_eq!((&environment["_HANDLER"], &environment["STAGE"]), (&json!("app.handler"), &json!("test")));
    assert_eq!(environment["AWS_LAMBDA_FUNCTION_NAME"], "good");
    assert_eq!(environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "512");
    assert_eq!(environment["LAMBDA_TASK_ROOT"], seen["folder"]);
    let limits = seen["limits"].as_str().unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max data size"), (512u64 << 20).to_string());
    assert_eq!(
        (limit("Max open files"), limit("Max processes"), limit("Max core file size")),
        ("77".into(), "4096".into(), "0".into())
    );
}

async fn memory() {
    let mut config = config(&["good"]);
    config.functions.get_mut(&model("good")).unwrap().limits.memory_bytes = 64 << 20;
    let host = host(config).await;
    let some = invoke(&host, "good", &json!({ "do": "take", "bytes": 16 << 20 })).await.unwrap();
    assert_eq!(some["touched"], 16 << 20);
    let (type_, words) = function_error(
        invoke(&host, "good", &json!({ "do": "take", "bytes": 128 << 20 })).await.unwrap_err(),
    );
    assert_eq!(type_, "Runtime.ExitError");
    assert!(words.contains("memory allocation of 134217728 bytes failed"), "{words}");
}

async fn payloads() {
    let host = host(Config { payload_bytes_max: 10_000, ..config(&["good"]) }).await;
    let long = json!({ "padding": "x".repeat(10_000) });
    let error = invoke(&host, "good", &long).await.unwrap_err();
    assert!(
        matches!(&error, InvokeError::TooLarge(words) if words.contains("at most 10000 bytes")),
        "{error:?}"
    );
    assert_eq!(of(&host, "good").cold, 0, "it was not invoked");
    let before = invoke(&host, "good", &json!({})).await.unwrap();
    for bytes in [10_001, 3_000_000] {
        let error = invoke(&host, "good", &json!({ "do": "large", "bytes": bytes })).await.unwrap_err();
        assert_eq!(function_error(error).0, "Function.ResponseSizeTooLarge");
    }
    let after = invoke(&host, "good", &json!({})).await.unwrap();
    assert_eq!(before["pid"], after["pid"], "it heard why and lived");
}

async fn idle() {
    let host = host(Config { idle_timeout: Duration::from_millis(100), ..config(&["good"]) }).await;
    let pid = invoke(&host, "good", &json!({})).await.unwrap()["pid"].clone();
    until("the idle instance has ended", || of(&host, "good").idle == 0 && gone(&pid)).await;
    let next = invoke(&host, "good", &json!({})).await.unwrap();
    assert_ne!(next["pid"], pid);
    assert_eq!(of(&host, "good").cold, 2);
}

async fn limits() {
    let limited =
        Config { concurrency_max: 2, function_concurrency_max: 1, ..config(&["good", "other", "third"]) };
    let host = Arc::new(host(limited).await);
    let hanging = |name: &'static str| {
        let host = Arc::clone(&host);
        tokio::spawn(async move { host.invoke(call(name, &json!({ "do": "hang" }), LONG)).await })
    };
    let idle = invoke(&host, "third", &json!({})).await.unwrap();
    let first = hanging("good");
    until("one is busy", || of(&host, "good").busy == 1).await;
    let error = invoke(&host, "good", &json!({})).await.unwrap_err();
    assert!(
        matches!(&error, InvokeError::Throttled { words, .. } if words.contains("function_concurrency_max")),
        "{error:?}"
    );

    let second = hanging("other");
    until("the other one is busy", || of(&host, "other").busy == 1).await;
    until("the idle one made room", || gone(&idle["pid"])).await;
    let error = invoke(&host, "third", &json!({})).await.unwrap_err();
    assert!(
        matches!(&error, InvokeError::Throttled { words, .. } if words.contains("2 of instances run")),
        "{error:?}"
    );

    first.abort();
    until("the one nobody waits for has ended", || of(&host, "good").busy == 0).await;
    invoke(&host, "third", &json!({})).await.unwrap();
    second.abort();
}

async fn many() {
    let host = Arc::new(host(Config { concurrency_max: 4, ..config(&["good"]) }).await);
    let calls = (0..4).map(|lane| {
        let host = Arc::clone(&host);
        tokio::spawn(async move {
            for n in 0..50 {
                let event = json!({ "n": lane * 1_000 + n });
                assert_eq!(invoke(&host, "good", &event).await.unwrap()["event"], event);
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    let summary = of(&host, "good");
    assert_eq!(summary.cold + summary.warm, 200);
    assert!(summary.cold <= 4, "{summary:?}");
}

async fn settings() {
    for (broken, expected) in [
        (Config::default(), "functions is empty"),
        (Config { keeper: Vec::new(), ..config(&["good"]) }, "keeper is empty"),
        (Config { concurrency_max: 0, ..config(&["good"]) }, "concurrency_max is 0"),
        (
            Config { invoke_listen: Some("0.0.0.0:0".parse().unwrap()), ..config(&["good"]) },
            "not on the loopback",
        ),
    ] {
        let error = Host::start(broken).await.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let host = host(config(&["good"])).await;
    let error = invoke(&host, "unknown", &json!({})).await.unwrap_err();
    assert!(
        matches!(&error, InvokeError::Unreachable(words) if words.contains("not configured")),
        "{error:?}"
    );
}
