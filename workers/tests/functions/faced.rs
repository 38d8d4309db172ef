//! AWS Lambda's Invoke API on the host, byte by byte; that boto3 takes it is a scenario's business.

use crate::acting::{Response, http};
use crate::stage::{config, host, of, trial, until};
use libtest_mimic::Trial;
use serde_json::json;
use std::time::Duration;
use workers::serverless::host::{Config, Host};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_invoke_api_answers_as_lambda_does", answers),
        trial("the_invoke_api_refuses_as_lambda_does", refusals),
    ]
}

async fn facing(limits: Config) -> Host {
    host(Config { invoke_listen: Some("127.0.0.1:0".parse().unwrap()), ..limits }).await
}

async fn post(host: &Host, name: &str, headers: &[(&'static str, &'static str)], body: &str) -> Response {
    let (api, headers) = (host.invoke_address().unwrap().to_string(), headers.to_vec());
    let (path, body) = (format!("/2015-03-31/functions/{name}/invocations"), body.to_owned());
    let sent = tokio::task::spawn_blocking(move || http(&api, "POST", &path, &headers, body.as_bytes()));
    sent.await.unwrap().unwrap()
}

async fn answers() {
    let host = facing(Config { invoke_timeout: Duration::from_secs(1), ..config(&["good", "crash"]) }).await;
    for name in ["good", "good:$LATEST", "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Agood"] {
        // {"custom":1}
        let told = [
            ("x-amz-client-context", "eyJjdXN0b20iOjF9"),
            ("x-amzn-trace-id", "Root=1-5759e988-bd862e3fe1be46a994272793"),
        ];
        let answer = post(&host, name, &told, r#"{"n": 7}"#).await;
        assert_eq!((answer.status, &answer.headers["x-amz-executed-version"]), (200, &"$LATEST".to_owned()));
        assert!(!answer.headers.contains_key("x-amz-function-error"));
        let seen = answer.json();
        assert_eq!(seen["event"]["n"], 7);
        assert_eq!(seen["headers"]["lambda-runtime-client-context"], r#"{"custom":1}"#);
        assert_eq!(seen["headers"]["lambda-runtime-trace-id"], told[1].1);
        assert_eq!(seen["headers"]["lambda-runtime-aws-request-id"], answer.headers["x-amzn-requestid"]);
    }
    assert_eq!(post(&host, "good", &[], "").await.json()["event"], json!({}));

    let failed = post(&host, "good", &[], r#"{"do": "error"}"#).await;
    assert_eq!((failed.status, failed.headers["x-amz-function-error"].as_str()), (200, "Unhandled"));
    assert_eq!(
        failed.json(),
        json!({"errorType": "ValueError", "errorMessage": "not a digit", "stackTrace": ["a", "b"]})
    );
    for (function, event, type_) in [
        ("good", r#"{"do": "crash"}"#, "Runtime.ExitError"),
        ("good", r#"{"do": "hang"}"#, "Sandbox.Timedout"),
        ("crash", "{}", "Runtime.ExitError"),
    ] {
        let failed = post(&host, function, &[], event).await;
        assert_eq!((failed.status, failed.headers["x-amz-function-error"].as_str()), (200, "Unhandled"));
        let told = failed.json();
        assert_eq!(told["errorType"], type_);
        assert!(told["errorMessage"].as_str().unwrap().starts_with("RequestId: "), "{told}");
    }
}

async fn refusals() {
    let host = facing(Config { concurrency_max: 1, payload_bytes_max: 100, ..config(&["good"]) }).await;
    let long = json!({ "padding": "x".repeat(100) }).to_string();
    for (name, headers, body, status, type_) in [
        ("nobody", &[][..], "{}", 404, "ResourceNotFoundException"),
        ("good", &[], long.as_str(), 413, "RequestTooLargeException"),
        ("good", &[], "{", 400, "InvalidRequestContentException"),
        ("good", &[("x-amz-invocation-type", "Perhaps")], "{}", 400, "InvalidParameterValueException"),
    ] {
        let refused = post(&host, name, headers, body).await;
        assert_eq!((refused.status, refused.headers["x-amzn-errortype"].as_str()), (status, type_));
        assert_eq!(refused.json()["Type"], "User");
    }
    assert_eq!(post(&host, "good", &[("x-amz-invocation-type", "DryRun")], "{}").await.status, 204);
    assert_eq!(of(&host, "good").cold, 0, "nothing has run");

    let event = [("x-amz-invocation-type", "Event")];
    assert_eq!(post(&host, "good", &event, r#"{"do": "hang"}"#).await.status, 202);
    until("it runs in the background", || of(&host, "good").busy == 1).await;
    for headers in [&[][..], &event] {
        let refused = post(&host, "good", headers, "{}").await;
        assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (429, "1"));
        assert_eq!(refused.json()["Reason"], "ConcurrentInvocationLimitExceeded");
    }
}
