use super::*;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use std::time::{Duration, UNIX_EPOCH};

fn config() -> Config {
    let variables = |name: &str| {
        let value = match name {
            "AWS_ACCESS_KEY_ID" => "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY" => "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            _ => return None,
        };
        Some(value.to_owned())
    };
    Config::new(Credentials::from_environment(variables).unwrap())
}

fn model(name: &str) -> ModelName {
    ModelName::new(name).unwrap()
}

fn reply(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Reply {
    let header = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: headers.iter().map(header).collect::<HeaderMap>(),
        body: Bytes::from_static(body.as_bytes()),
    }
}

#[test]
fn a_request_is_signed_as_botocore_signs_it() {
    let mut config = config();
    config.qualifier = Some("live".to_owned());
    config.functions.insert(model("digits"), "arn:aws:lambda:eu-west-1:123456789012:function:d".to_owned());
    config.region = "eu-west-1".to_owned();
    let lambda = Lambda::new(config).unwrap();
    let now = UNIX_EPOCH + Duration::from_secs(1_440_938_160);
    let event = Bytes::from_static(b"{\"a\":1}");
    let function = lambda.config.function(&model("digits"));
    let request = lambda.request(&function, &event, now).unwrap();
    assert_eq!(
        request.uri(),
        "https://lambda.eu-west-1.amazonaws.com/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A123456789012%3Afunction%3Ad/invocations?Qualifier=live"
    );
    let header = |name: &str| request.headers()[name].to_str().unwrap();
    assert_eq!(header("x-amz-date"), "20150830T123600Z");
    assert_eq!(
        header("authorization"),
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/eu-west-1/lambda/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-invocation-type, Signature=eb0d10dc79134faa25500bcab4c4e706146f3f725168693b53176a79c20c790b"
    );
}

#[test]
fn what_the_service_answers_is_told_apart() {
    let error = [("x-amz-function-error", "Unhandled")];
    let function = |type_: &str, message: &str| failed(type_, message);
    for (reply, expected) in [
        (
            reply(200, &error, r#"{"errorType":"ValueError","errorMessage":"no"}"#),
            function("ValueError", "no"),
        ),
        (reply(200, &error, "rubbish"), function("Unhandled", "rubbish")),
        (
            reply(200, &error, r#"{"errorMessage":"x Task timed out after 3.00 seconds"}"#),
            InvokeError::TimedOut(
                "ran longer than it may there: x Task timed out after 3.00 seconds".to_owned(),
            ),
        ),
        (
            reply(
                429,
                &[("x-amzn-errortype", "TooManyRequestsException:http://x"), ("retry-after", "7")],
                r#"{"message":"Rate exceeded","Reason":"CallerRateLimitExceeded"}"#,
            ),
            InvokeError::Throttled {
                words: "(f) answered 429: TooManyRequestsException Rate exceeded (come back after 7 s)"
                    .to_owned(),
                retry_after: Some(Duration::from_secs(7)),
            },
        ),
        (reply(413, &[], ""), InvokeError::TooLarge("(f) answered 413: without a word".to_owned())),
        (
            reply(404, &[], r#"{"Type":"User","Message":"Function not found: f"}"#),
            InvokeError::Unreachable("(f) is not there: (f) answered 404: Function not found: f".to_owned()),
        ),
        (reply(502, &[], "oh"), InvokeError::Unreachable("(f) answered 502: oh".to_owned())),
        (reply(403, &[], "oh"), InvokeError::Unreachable("(f) answered 403: oh".to_owned())),
    ] {
        assert_eq!(read("f", reply).unwrap_err(), expected);
    }
    assert_eq!(read("f", reply(200, &[], "{}")).unwrap(), "{}");
}

#[test]
fn a_model_has_the_function_that_the_template_or_the_table_gives() {
    let mut config = config();
    config.function = "prod-{model}".to_owned();
    config.functions.insert(model("digits.v2"), "digits-v2".to_owned());
    assert_eq!(config.function(&model("digits")), "prod-digits");
    assert_eq!(config.function(&model("digits.v2")), "digits-v2");
}

#[test]
fn settings_that_cannot_work_are_refused_and_secrets_not_shown() {
    let broken = |change: fn(&mut Config)| {
        let mut config = config();
        change(&mut config);
        let shown = format!("{config:?}");
        assert!(!shown.contains("EXAMPLEKEY"), "{shown}");
        Lambda::new(config).err().unwrap().to_string()
    };
    assert!(broken(|config| config.endpoint = Some("localhost:80".to_owned())).contains("http://host:port"));
    assert!(broken(|config| config.region.clear()).contains("region is empty"));
    assert!(broken(|config| config.function.clear()).contains("function is empty"));
    assert!(
        broken(|config| config.credentials.secret_access_key = "a b".into()).contains("secret_access_key")
    );
    assert!(broken(|config| config.credentials.session_token = Some("\n".into())).contains("session_token"));
    assert!(Credentials::from_environment(|_| Some(String::new())).is_none());
}
