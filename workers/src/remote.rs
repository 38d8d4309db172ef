//! Model servers: anything that speaks the Open Inference Protocol over HTTP, whoever started it. A container's
//! server, a server beside the worker and a plain HTTP function are all asked here.
//!
//! What this module owns: the request, the reading of the answer, and whose fault a failure is. What it must not do:
//! start, stop or retry anything.

pub(crate) mod http;

use crate::lane::{Ran, Task};
use crate::worker::offload::offload;
use http::{Http, HttpError, Parts, Reply};
use hyper::header::{CONTENT_TYPE, RETRY_AFTER};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};
use schemas::oip::{self, HEAD_LENGTH};
use schemas::{Failure, FailureKind, ModelName, Payload};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Everything as JSON, which every server reads.
    Json,
    /// Tensors as raw bytes behind a JSON head.
    Binary,
}

/// A model server at an address.
#[derive(Clone, Debug)]
pub(crate) struct ModelServer {
    http: Http,
    /// `http://host:port[/prefix]`, without a slash at its end.
    base: String,
    form: Form,
    /// Longest answer taken, in bytes.
    answer_bytes_max: usize,
}

/// An address that cannot be a server's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidServer(String);

/// Whether `uri` has a name or a password in it, which would be shown wherever it is.
pub(crate) fn has_login(uri: &Uri) -> bool {
    uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
}

/// Why `url` will not do, without the login that may be in it.
pub(crate) fn no_address(url: &str) -> String {
    let shown = url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, rest)| format!("***@{rest}"));
    format!("{shown:?} is no address: use http://host:port or https://host, without a login")
}

impl ModelServer {
    pub(crate) fn new(
        http: Http,
        url: &str,
        form: Form,
        answer_bytes_max: usize,
    ) -> Result<Self, InvalidServer> {
        let base = url.trim_end_matches('/').to_owned();
        let parsed: Option<Uri> = base.parse().ok();
        let valid = parsed.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.query().is_none()
                && !has_login(&uri)
        });
        if valid {
            Ok(Self { http, base, form, answer_bytes_max })
        } else {
            Err(InvalidServer(no_address(url)))
        }
    }

    /// Whether it says that it is ready, and else what it says.
    pub(crate) async fn ready(&self, limit: Duration) -> Result<(), String> {
        let request = self.request(Method::GET, "/v2/health/ready").body(Parts::default());
        let request = request.expect("a checked address and a plain path");
        match self.http.send(request, limit, self.answer_bytes_max).await {
            Ok(reply) if reply.status.is_success() => Ok(()),
            Ok(reply) => Err(format!("it answers {}: {}", reply.status.as_u16(), words(&reply))),
            Err(error) => Err(format!("it {error}")),
        }
    }

    /// Runs `task` there. A failure says whose fault it is.
    pub(crate) async fn infer(&self, task: &Task) -> Result<Ran, Failure> {
        let Payload::Tensors(inputs) = &task.input else {
            let message = format!(
                "model {} is behind the Open Inference Protocol: it takes tensors, not opaque bytes",
                task.model
            );
            return Err(Failure::new(FailureKind::InvalidInput, message));
        };
        let binary = self.form == Form::Binary;
        let id = task.id.to_string();
        // Tensors share their bytes, so this copies none.
        let (inputs, outputs, parameters) = (inputs.clone(), task.outputs.clone(), task.parameters.clone());
        let asking = move || oip::ask(&id, &inputs, &outputs, &parameters, binary);
        let asked = offload(task.input.data_bytes(), asking)
            .await
            .map_err(|error| Failure::new(FailureKind::InvalidInput, error))?;
        let request = self.request(Method::POST, &path(&task.model));
        let request = match asked.data.is_empty() {
            true => request.header(CONTENT_TYPE, "application/json"),
            false => {
                request.header(CONTENT_TYPE, "application/octet-stream").header(HEAD_LENGTH, asked.head.len())
            }
        };
        let body = std::iter::once(asked.head).chain(asked.data).collect();
        let request = request.body(body).expect("a checked address and a plain path");
        let began = Instant::now();
        let reply = self.http.send(request, task.limit, self.answer_bytes_max).await;
        let reply = reply.map_err(|error| unanswered(&task.model, &error))?;
        let run_time = began.elapsed();
        if reply.status != StatusCode::OK {
            return Err(refused(&task.model, &reply));
        }
        let length = reply.body.len() as u64;
        let head_length = reply.headers.get(HEAD_LENGTH).map(|value| value.as_bytes().to_vec());
        let reading = move || oip::answer(head_length.as_deref(), reply.body);
        let answer = offload(length, reading).await.map_err(|error| {
            Failure::new(
                FailureKind::ModelError,
                format!("server of {} answered what is no answer: {error}", task.model),
            )
        })?;
        // What the model itself took, where the server says so; else all of it.
        let told = answer.parameters.get("run_us").and_then(serde_json::Value::as_u64);
        let run_time = told.map_or(run_time, |us| Duration::from_micros(us).min(run_time));
        Ok(Ran { output: Payload::Tensors(answer.outputs), run_time })
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder().method(method).uri(format!("{}{path}", self.base))
    }
}

/// Model names are letters, digits and a few signs that need no escape in a path.
fn path(model: &ModelName) -> String {
    format!("/v2/models/{model}/infer")
}

/// What no answer means: a server that was not reached has not run the job.
pub(crate) fn unanswered(model: &ModelName, error: &HttpError) -> Failure {
    let kind = match error {
        HttpError::Unreachable(_) => FailureKind::LaneUnavailable,
        // Whoever runs the model is gone; our worker is well, so this is no sign of a job that kills workers.
        HttpError::Broken(_) => FailureKind::ModelError,
        HttpError::TimedOut(_) => FailureKind::Timeout,
        HttpError::TooLarge(_) => FailureKind::ModelError,
    };
    Failure::new(kind, format!("server of {model} {error}"))
}

/// What a status other than 200 means.
pub(crate) fn refused(model: &ModelName, reply: &Reply) -> Failure {
    let status = reply.status;
    let kind = match status.as_u16() {
        400 | 422 => FailureKind::InvalidInput,
        // The same job may do well where the model is there, the login is right, or larger inputs are taken.
        401 | 403 | 404 | 405 | 413 | 415 => FailureKind::LaneUnavailable,
        429 | 503 => FailureKind::Busy,
        502 => FailureKind::LaneUnavailable,
        _ => FailureKind::ModelError,
    };
    let failure =
        Failure::new(kind, format!("server of {model} answered {}: {}", status.as_u16(), words(reply)));
    match retry_after(&reply.headers) {
        Some(pause) => failure.after(pause),
        None => failure,
    }
}

/// For how long a server asks to be left alone. A date in place of seconds is not heeded: clocks differ.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a server says is wrong: the protocol's `error`, or the first of whatever it sent.
fn words(reply: &Reply) -> String {
    #[derive(Deserialize)]
    struct Told {
        error: String,
    }
    const WORDS_MAX: usize = 300;
    let told = serde_json::from_slice::<Told>(&reply.body).map(|told| told.error);
    let told = told.unwrap_or_else(|_| {
        String::from_utf8_lossy(&reply.body[..reply.body.len().min(4 * WORDS_MAX)]).into_owned()
    });
    let told: String =
        told.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(WORDS_MAX).collect();
    if told.is_empty() { "without a word".to_owned() } else { told }
}

#[cfg(test)]
mod tests;
