//! The Lambda Runtime API, version 2018-06-01, as one instance sees it. Each instance has a listener of its own, so that who
//! asks is known by where it asks. What a request means is [`super::instance`]'s; here are its bytes only.

use super::Failed;
use crate::serverless::InvokeError;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serving::Limits;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// Longest report of an error, in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// How much of an answer over the limit is read and thrown away, so that its sender lives to hear why.
const DISCARDED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a function does.
pub(super) enum Event {
    /// Asks for an event, and waits until there is one.
    Next(oneshot::Sender<Invocation>),
    /// Answers one.
    Answer { request_id: String, answer: Result<Bytes, Failed>, heard: oneshot::Sender<Heard> },
    /// Says that it cannot start.
    InitError(Failed),
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Taken,
    NotAwaited,
}

/// An event with what a function is told beside it.
pub(super) struct Invocation {
    pub(super) request_id: String,
    pub(super) deadline: SystemTime,
    pub(super) function_arn: String,
    pub(super) client_context: Option<String>,
    pub(super) trace: Option<String>,
    pub(super) event: Bytes,
}

#[derive(Clone)]
struct Door {
    events: mpsc::Sender<Event>,
    answer_bytes_max: usize,
}

/// One instance's connections, on which it may think over an event for as long as it likes.
const LIMITS: Limits = Limits { connections_max: 64, head_timeout: None, grace: Duration::ZERO };

/// Serves one instance until aborted.
pub(super) async fn serve(listener: TcpListener, events: mpsc::Sender<Event>, answer_bytes_max: usize) {
    let runtime = Router::new()
        .route("/invocation/next", get(next))
        .route("/invocation/{id}/response", post(response))
        .route("/invocation/{id}/error", post(error))
        .route("/init/error", post(init_error))
        .with_state(Door { events, answer_bytes_max });
    let router = Router::new().nest("/2018-06-01/runtime", runtime);
    serving::serve(listener, router, LIMITS, Box::pin(std::future::pending())).await;
}

async fn next(State(door): State<Door>) -> Response {
    let (asked, given) = oneshot::channel();
    if door.events.send(Event::Next(asked)).await.is_err() {
        return ending();
    }
    let Ok(invocation) = given.await else { return ending() };
    let since = invocation.deadline.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut response = Response::builder()
        .header("content-type", "application/json")
        .header("lambda-runtime-aws-request-id", invocation.request_id)
        .header("lambda-runtime-deadline-ms", since.as_millis().to_string())
        .header("lambda-runtime-invoked-function-arn", invocation.function_arn);
    let optional = [
        ("lambda-runtime-client-context", invocation.client_context),
        ("lambda-runtime-trace-id", invocation.trace),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            response = response.header(name, value);
        }
    }
    response.body(Body::from(invocation.event)).unwrap_or_else(|_| ending())
}

async fn response(State(door): State<Door>, Path(id): Path<String>, body: Body) -> Response {
    match read(body, door.answer_bytes_max).await {
        Ok(Some(answer)) => door.answer(id, Ok(answer)).await,
        Ok(None) => {
            let words = format!("answered with more than {} bytes", door.answer_bytes_max);
            let failed = Failed::function("Function.ResponseSizeTooLarge", &words);
            match door.answer(id, Err(failed)).await {
                taken if taken.status() == StatusCode::ACCEPTED => {
                    refuse(StatusCode::PAYLOAD_TOO_LARGE, "Function.ResponseSizeTooLarge", &words)
                }
                other => other,
            }
        }
        Err(error) => refuse(StatusCode::BAD_REQUEST, "InvalidRequest", &error),
    }
}

async fn error(State(door): State<Door>, Path(id): Path<String>, head: HeaderMap, body: Body) -> Response {
    let failed = failed(&head, body).await;
    door.answer(id, Err(failed)).await
}

async fn init_error(State(door): State<Door>, head: HeaderMap, body: Body) -> Response {
    let failed = failed(&head, body).await;
    match door.events.send(Event::InitError(failed)).await {
        Ok(()) => accepted(),
        Err(_) => ending(),
    }
}

impl Door {
    async fn answer(&self, request_id: String, answer: Result<Bytes, Failed>) -> Response {
        let (heard, taken) = oneshot::channel();
        if self.events.send(Event::Answer { request_id, answer, heard }).await.is_err() {
            return ending();
        }
        match taken.await {
            Ok(Heard::Taken) => accepted(),
            Ok(Heard::NotAwaited) => refuse(
                StatusCode::BAD_REQUEST,
                "InvalidRequestID",
                "no such event is awaited of this instance",
            ),
            Err(_) => ending(),
        }
    }
}

/// The whole body, or none if it is over the limit.
async fn read(body: Body, bytes_max: usize) -> Result<Option<Bytes>, String> {
    use http_body_util::BodyExt;
    let (mut body, mut kept, mut length) = (body, Vec::new(), 0usize);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        length += data.len();
        if length > DISCARDED_BYTES_MAX {
            break;
        }
        if length <= bytes_max {
            kept.extend_from_slice(&data);
        }
    }
    Ok((length <= bytes_max).then(|| kept.into()))
}

/// What a function reports: its own document where it is one, else the header and whatever it wrote.
async fn failed(head: &HeaderMap, body: Body) -> Failed {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Reported {
        #[serde(default)]
        error_type: Option<String>,
        #[serde(default)]
        error_message: Option<String>,
    }
    let body = to_bytes(body, ERROR_BYTES_MAX).await.unwrap_or_default();
    let header = head.get("lambda-runtime-function-error-type").and_then(|value| value.to_str().ok());
    let header = || header.unwrap_or("Runtime.Unknown").to_owned();
    match serde_json::from_slice::<Reported>(&body) {
        Ok(told) => {
            let type_ = told.error_type.filter(|type_| !type_.is_empty()).unwrap_or_else(header);
            let message = told.error_message.unwrap_or_else(|| "without a word".to_owned());
            Failed { error: InvokeError::Function { type_, message }, document: Some(body) }
        }
        Err(_) => Failed::function(&header(), &String::from_utf8_lossy(&body)),
    }
}

fn accepted() -> Response {
    (StatusCode::ACCEPTED, axum::Json(json!({ "status": "OK" }))).into_response()
}

/// The host is done with this instance.
fn ending() -> Response {
    refuse(StatusCode::GONE, "Container.Ending", "this instance ends")
}

fn refuse(status: StatusCode, type_: &str, message: &str) -> Response {
    (status, axum::Json(json!({ "errorType": type_, "errorMessage": message }))).into_response()
}
