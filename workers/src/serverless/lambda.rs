//! AWS Lambda's Invoke API, at AWS or at any endpoint that speaks it.
//!
//! What this module owns: which function a model has, the signed request, and what an answer means. What it must not do:
//! retry, or create, change or look for functions. Credentials are never logged.
//!
//! A function's error arrives with status 200 and a header; every other status is the service's own.

use super::{Call, Functions, InvokeError, LAMBDA_PAYLOAD_BYTES_MAX};
use crate::lane::InvalidConfig;
use crate::remote::http::{Http, HttpError, Parts, Reply};
use crate::remote::{has_login, no_address, retry_after};
use async_trait::async_trait;
use aws_credential_types::Credentials as Keys;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use hyper::{Request, StatusCode, Uri};
use schemas::ModelName;
use schemas::heartbeat::Backend;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

/// Where [`Config::function`] has the model's name.
const PLACE: &str = "{model}";
/// Longest part of a service's own words that is passed on, in characters.
const WORDS_MAX: usize = 300;

/// Settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host` or `http://host:port`. Default: AWS Lambda in the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for. Default `us-east-1`.
    pub region: String,
    /// The name or ARN of a model's function, `{model}` being the model's name. Default `{model}`.
    pub function: String,
    /// Functions of models whose names that does not give. Default: none.
    pub functions: BTreeMap<ModelName, String>,
    /// The version or alias to invoke. Default: the unpublished one.
    pub qualifier: Option<String>,
    /// Who asks.
    pub credentials: Credentials,
    /// Longest answer, in bytes. Default: AWS Lambda's 6 MiB.
    pub answer_bytes_max: usize,
}

/// A key of AWS.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: SecretString,
    /// `AWS_SESSION_TOKEN`, of keys that are lent.
    pub session_token: Option<SecretString>,
}

impl Credentials {
    /// What the standard variables say, `variable` being how one is looked up; none where they say nothing.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        Some(Self {
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY")?.into(),
            session_token: variable("AWS_SESSION_TOKEN").map(SecretString::from),
        })
    }

    fn keys(&self) -> Keys {
        let token = self.session_token.as_ref().map(|token| token.expose_secret().to_owned());
        Keys::new(&*self.access_key_id, self.secret_access_key.expose_secret(), token, None, "configured")
    }
}

impl Config {
    /// Defaults for all but who asks.
    pub fn new(credentials: Credentials) -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            function: PLACE.to_owned(),
            functions: BTreeMap::new(),
            qualifier: None,
            credentials,
            answer_bytes_max: LAMBDA_PAYLOAD_BYTES_MAX,
        }
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        let invalid = |field, problem: &str| Err(InvalidConfig::new(field, problem));
        let endpoint = self.endpoint();
        let uri: Option<Uri> = endpoint.parse().ok();
        let valid = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.query().is_none()
                && !has_login(&uri)
        });
        if !valid {
            let problem = no_address(&endpoint);
            return Err(InvalidConfig::new("serverless.lambda.endpoint", problem));
        }
        if self.region.is_empty() {
            return invalid("serverless.lambda.region", "is empty: name the region, such as us-east-1");
        }
        if self.function.is_empty() || self.functions.values().any(String::is_empty) {
            return invalid("serverless.lambda.function", "is empty: use a name or ARN, such as {model}");
        }
        let Credentials { access_key_id, secret_access_key, session_token } = &self.credentials;
        let token = session_token.as_ref().map_or("-", |token| token.expose_secret());
        for (field, value) in [
            ("serverless.lambda.access_key_id", access_key_id.as_str()),
            ("serverless.lambda.secret_access_key", secret_access_key.expose_secret()),
            ("serverless.lambda.session_token", token),
        ] {
            // They travel in headers.
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return invalid(field, "is empty or has characters that no key has");
            }
        }
        Ok(())
    }

    fn endpoint(&self) -> String {
        let endpoint = self.endpoint.clone();
        let endpoint = endpoint.unwrap_or_else(|| format!("https://lambda.{}.amazonaws.com", self.region));
        endpoint.trim_end_matches('/').to_owned()
    }

    fn function(&self, model: &ModelName) -> String {
        let named = self.functions.get(model).cloned();
        named.unwrap_or_else(|| self.function.replace(PLACE, model.as_str()))
    }
}

/// The functions.
#[derive(Clone, Debug)]
pub struct Lambda {
    http: Http,
    config: Config,
}

impl Lambda {
    /// Checks the settings. Nothing is asked yet.
    pub fn new(config: Config) -> Result<Self, InvalidConfig> {
        config.check()?;
        Ok(Self { http: Http::new(), config })
    }

    fn request(&self, function: &str, event: &Bytes, now: SystemTime) -> Result<Request<Parts>, String> {
        let mut url =
            format!("{}/2015-03-31/functions/{}/invocations", self.config.endpoint(), escaped(function));
        if let Some(qualifier) = &self.config.qualifier {
            url += &format!("?Qualifier={}", escaped(qualifier));
        }
        let headers = [("content-type", "application/json"), ("x-amz-invocation-type", "RequestResponse")];
        let mut request = Request::post(&url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Parts::from_iter([event.clone()]));
        let mut request = request.map_err(|error| error.to_string())?;
        let identity = self.config.credentials.keys().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.config.region)
            .name("lambda")
            .time(now)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| error.to_string())?;
        let signable =
            SignableRequest::new("POST", url.as_str(), headers.into_iter(), SignableBody::Bytes(event));
        let signed = signable.and_then(|signable| sign(signable, &parameters.into()));
        let (instructions, _) = signed.map_err(|error| error.to_string())?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }
}

#[async_trait]
impl Functions for Lambda {
    fn backend(&self) -> Backend {
        Backend { name: format!("AWS Lambda's API at {}", self.config.endpoint()), ..Backend::default() }
    }

    async fn invoke(&self, call: Call) -> Result<Bytes, InvokeError> {
        let function = self.config.function(&call.model);
        let unreachable = |problem: String| InvokeError::Unreachable(format!("({function}) {problem}"));
        // Hashing the event is CPU work, about a millisecond a megabyte.
        let (asking, name, event) = (self.clone(), function.clone(), call.event);
        let length = event.len() as u64;
        let signed =
            crate::worker::offload::offload(length, move || asking.request(&name, &event, SystemTime::now()));
        let request = signed.await.map_err(|error| unreachable(format!("cannot be asked: {error}")))?;
        match self.http.send(request, call.limit, self.config.answer_bytes_max).await {
            Ok(reply) => read(&function, reply),
            Err(error @ HttpError::Unreachable(_)) => Err(unreachable(error.to_string())),
            Err(error @ HttpError::TimedOut(_)) => {
                Err(InvokeError::TimedOut(format!("({function}) {error}")))
            }
            // It may have run.
            Err(error @ HttpError::Broken(_)) => Err(failed("ConnectionLost", &error.to_string())),
            Err(error @ HttpError::TooLarge(_)) => {
                Err(failed("Function.ResponseSizeTooLarge", &error.to_string()))
            }
        }
    }

    async fn stop(&self) {}
}

/// What the service answered for `function`.
fn read(function: &str, reply: Reply) -> Result<Bytes, InvokeError> {
    if reply.status == StatusCode::OK {
        return match reply.headers.contains_key("x-amz-function-error") {
            false => Ok(reply.body),
            true => Err(function_error(&reply.body)),
        };
    }
    let status = reply.status.as_u16();
    let words = format!("({function}) answered {status}: {}", words(&reply));
    Err(match status {
        413 => InvokeError::TooLarge(words),
        429 => InvokeError::Throttled { words, retry_after: retry_after(&reply.headers) },
        404 => InvokeError::Unreachable(format!("({function}) is not there: {words}")),
        _ => InvokeError::Unreachable(words),
    })
}

/// What the function's own report says.
fn function_error(body: &[u8]) -> InvokeError {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Reported {
        error_type: Option<String>,
        error_message: Option<String>,
    }
    let told: Reported = serde_json::from_slice(body).unwrap_or_default();
    let type_ = told.error_type.unwrap_or_else(|| "Unhandled".to_owned());
    let message = told.error_message.unwrap_or_else(|| first(&String::from_utf8_lossy(body)));
    // Older runtimes say it in words only.
    if type_ == "Sandbox.Timedout" || message.contains("Task timed out after") {
        return InvokeError::TimedOut(format!("ran longer than it may there: {message}"));
    }
    failed(&type_, &message)
}

fn failed(type_: &str, message: &str) -> InvokeError {
    InvokeError::Function { type_: type_.to_owned(), message: message.to_owned() }
}

/// What the service says is wrong, and when to come back if it says that.
fn words(reply: &Reply) -> String {
    let header = |name: &str| reply.headers.get(name).and_then(|value| value.to_str().ok());
    let type_ = header("x-amzn-errortype").and_then(|type_| type_.split(':').next()).unwrap_or_default();
    let told = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(&reply.body).ok();
    let told = told.and_then(|mut told| {
        told.remove("Message").or_else(|| told.remove("message"))?.as_str().map(str::to_owned)
    });
    let told = told.unwrap_or_else(|| String::from_utf8_lossy(&reply.body).into_owned());
    let after =
        header("retry-after").map(|after| format!(" (come back after {after} s)")).unwrap_or_default();
    first(format!("{type_} {told}{after}").trim())
}

fn first(text: &str) -> String {
    let text: String = text.chars().take(WORDS_MAX).collect();
    if text.is_empty() { "without a word".to_owned() } else { text }
}

/// A name as one segment of a path: an ARN has colons.
fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |mut path, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => path.push(byte.into()),
            other => drop(write!(path, "%{other:02X}")),
        }
        path
    })
}

#[cfg(test)]
mod tests;
