//! AWS Lambda's Invoke API in front of the host, so that any client of it, boto3 among them, can call the functions here.
//!
//! Loopback only, and nobody is asked for a signature. An `Event` is answered 202 and run at once in the background; there is
//! no queue behind it, so at the concurrency limit it is refused like any other.

use super::{Failed, Request, Shared};
use crate::serverless::InvokeError;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use schemas::{JobId, ModelName};
use serde_json::{Value, json};
use serving::Limits;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Longest client context, in bytes: AWS Lambda's limit.
const CLIENT_CONTEXT_BYTES_MAX: usize = 3583;

/// Its callers' connections; it ends with the host.
const LIMITS: Limits =
    Limits { connections_max: 1_024, head_timeout: Some(Duration::from_secs(30)), grace: Duration::ZERO };

/// Listens at `address`; where that is in fact, and the task that serves.
pub(super) async fn serve(
    address: SocketAddr,
    shared: Arc<Shared>,
) -> std::io::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let router =
        Router::new().route("/2015-03-31/functions/{name}/invocations", post(invoke)).with_state(shared);
    let serving = serving::serve(listener, router, LIMITS, Box::pin(std::future::pending()));
    Ok((
        address,
        tokio::spawn(async {
            serving.await;
        }),
    ))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    RequestResponse,
    Event,
    DryRun,
}

async fn invoke(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    head: HeaderMap,
    body: Body,
) -> Response {
    let id = JobId::new().to_string();
    let answer = accept(shared, &id, &name, &head, body).await.unwrap_or_else(|refusal| refusal);
    ([("x-amzn-requestid", id)], answer).into_response()
}

async fn accept(
    shared: Arc<Shared>,
    id: &str,
    name: &str,
    head: &HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let text = |name: &str| head.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let bad = |message: &str| refuse(StatusCode::BAD_REQUEST, "InvalidParameterValueException", message);
    let Some(function) = function(name).filter(|name| shared.config.functions.contains_key(name)) else {
        let shown: String = name.chars().take(140).collect();
        let message = format!("Function not found: {shown}");
        return Err(refuse(StatusCode::NOT_FOUND, "ResourceNotFoundException", &message));
    };
    let kind = match text("x-amz-invocation-type").as_deref() {
        None | Some("RequestResponse") => Kind::RequestResponse,
        Some("Event") => Kind::Event,
        Some("DryRun") => Kind::DryRun,
        Some(_) => return Err(bad("X-Amz-Invocation-Type must be RequestResponse, Event or DryRun")),
    };
    let event = event(body, shared.config.payload_bytes_max).await?;
    let client_context = text("x-amz-client-context");
    if client_context.as_ref().is_some_and(|context| context.len() > CLIENT_CONTEXT_BYTES_MAX) {
        return Err(bad("X-Amz-Client-Context is too long"));
    }
    let request = Request {
        id: id.to_owned(),
        event,
        client_context: client_context.and_then(|context| decoded(&context)),
        trace: text("x-amzn-trace-id"),
        limit: shared.config.invoke_timeout,
    };
    match kind {
        Kind::DryRun => Ok(StatusCode::NO_CONTENT.into_response()),
        Kind::RequestResponse => {
            let ended = shared.invoke(&function, request).await;
            Ok(answer(&function, id, ended, shared.config.invoke_timeout))
        }
        Kind::Event => {
            // Polled once, so that a refusal is still told.
            let mut running = Box::pin(async move { shared.invoke(&function, request).await });
            match futures_util::poll!(&mut running) {
                std::task::Poll::Ready(Err(failed)) if refusal(&failed.error).is_some() => {
                    Err(refusal(&failed.error).unwrap_or_default())
                }
                std::task::Poll::Ready(_) => Ok(StatusCode::ACCEPTED.into_response()),
                std::task::Poll::Pending => {
                    tokio::spawn(running);
                    Ok(StatusCode::ACCEPTED.into_response())
                }
            }
        }
    }
}

/// The function that a name, a partial ARN or a whole one means, whatever its version.
fn function(name: &str) -> Option<ModelName> {
    let name = name.rsplit_once("function:").map_or(name, |(_, name)| name);
    let name = name.split(':').next().unwrap_or(name);
    ModelName::new(name).ok()
}

/// The event: JSON, and an empty one in place of none.
async fn event(body: Body, bytes_max: usize) -> Result<Bytes, Response> {
    let Ok(bytes) = to_bytes(body, bytes_max).await else {
        let message =
            format!("Request must be smaller than {bytes_max} bytes for the InvokeFunction operation");
        return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", &message));
    };
    if bytes.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let message = format!("Could not parse request body into json: {error}");
            Err(refuse(StatusCode::BAD_REQUEST, "InvalidRequestContentException", &message))
        }
    }
}

/// A header may hold no bytes beyond ASCII, which is why callers send the context in base64.
fn decoded(context: &str) -> Option<String> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(context).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

fn answer(function: &ModelName, id: &str, ended: Result<Bytes, Failed>, limit: Duration) -> Response {
    let version = ("x-amz-executed-version", "$LATEST");
    let json = ("content-type", "application/json");
    let failed = match ended {
        Ok(answer) => return ([version, json], answer).into_response(),
        Err(failed) => failed,
    };
    if let Some(refusal) = refusal(&failed.error) {
        return refusal;
    }
    let document = match (failed.document, failed.error) {
        (Some(document), _) => document,
        (None, InvokeError::Function { type_, message }) => {
            document(&type_, &format!("RequestId: {id} Error: function of {function} {message}"))
        }
        (None, _) => document(
            "Sandbox.Timedout",
            &format!("RequestId: {id} Error: Task timed out after {:.2} seconds", limit.as_secs_f64()),
        ),
    };
    // Lambda says Unhandled of every error that comes through the Runtime API, the function's own included.
    ([version, json, ("x-amz-function-error", "Unhandled")], document).into_response()
}

fn document(type_: &str, message: &str) -> Bytes {
    let document: Value = json!({ "errorType": type_, "errorMessage": message });
    document.to_string().into()
}

/// The answer where no function was run.
fn refusal(error: &InvokeError) -> Option<Response> {
    match error {
        InvokeError::Function { .. } | InvokeError::TimedOut(_) => None,
        InvokeError::Throttled { words, .. } => {
            let refusal = refuse(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", words);
            Some(([("retry-after", "1")], refusal).into_response())
        }
        InvokeError::TooLarge(words) => {
            Some(refuse(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", words))
        }
        InvokeError::Unreachable(words) => {
            Some(refuse(StatusCode::INTERNAL_SERVER_ERROR, "ServiceException", words))
        }
    }
}

fn refuse(status: StatusCode, type_: &'static str, message: &str) -> Response {
    let whose = if status.is_server_error() { "Service" } else { "User" };
    let mut body = json!({ "Type": whose, "Message": message, "message": message });
    if status == StatusCode::TOO_MANY_REQUESTS {
        body["Reason"] = Value::from("ConcurrentInvocationLimitExceeded");
    }
    (status, [("x-amzn-errortype", type_)], axum::Json(body)).into_response()
}
