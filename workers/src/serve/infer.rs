//! `POST /v2/models/{model}/infer`: a place, the body, a slot, the run, the answer.

use super::App;
use super::errors::Error;
use crate::lane::{Ran, Task};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use schemas::body::Parameter;
use schemas::oip::{self, About, Encoded, HEAD_LENGTH, Input, Parameters, Selection};
use schemas::{JobId, ModelContract, Payload, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Most bytes read on for the sake of the answer; a caller with more to send has it cut off.
const READ_ON_BYTES_MAX: usize = 256 << 20;
/// How long, for the same.
const READ_ON_TIME_MAX: Duration = Duration::from_secs(5);
/// Decoding less than this is quicker than handing it to another thread, in bytes.
const OFF_RUNTIME_BYTES: usize = 64 * 1024;

/// The handler.
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
    request: Request,
) -> Response {
    let (head, mut body) = request.into_parts();
    let answer = run(&app, &model, &head.headers, &mut body).await;
    if answer.is_err() && !head.headers.contains_key(header::EXPECT) {
        discard(body).await;
    }
    answer.into_response()
}

/// Reads what is left of a request that is refused: a caller that still sends while we close would see a broken pipe
/// in place of the answer. One that asks first gets the answer in place of the go-ahead.
pub(super) async fn read_on(request: Request) {
    if !request.headers().contains_key(header::EXPECT) {
        discard(request.into_body()).await;
    }
}

async fn discard(mut body: Body) {
    let mut read = 0;
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > READ_ON_BYTES_MAX {
                return;
            }
        }
    };
    // Its end, an error and the limit come to the same: nothing more can be done for the caller.
    let _ = timeout(READ_ON_TIME_MAX, rest).await;
}

async fn run(app: &App, model: &str, headers: &HeaderMap, body: &mut Body) -> Result<Response, Error> {
    let model = app.model(model)?;
    let full = |_| Error::come_back(format!("all {} places are taken", app.config.slots + app.config.queue));
    let _place = app.places.try_acquire().map_err(full)?;
    if let Some(obstacle) = app.obstacle() {
        return Err(Error::come_back(obstacle));
    }
    let (head, data) = read(app, headers, body).await?;
    let name = model.name.clone();
    let limit = app.config.run_timeout;
    let asked = off_runtime(head.len(), move || decode(&head, data)).await?;
    let Asked { input, selection, parameters, id } = asked;
    let task = Task {
        id: JobId::new(),
        model: name,
        attempt: 1,
        input,
        outputs: selection.names.clone(),
        parameters,
        limit,
    };
    let slot = app.slots.acquire().await.expect("this semaphore is never closed");
    let ran = app.executor.run(task).await?;
    drop(slot);
    respond(model, ran, selection, id).await
}

/// The body, split into its JSON and the binary data behind it.
async fn read(app: &App, headers: &HeaderMap, body: &mut Body) -> Result<(Bytes, Bytes), Error> {
    let config = &app.config;
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let message = format!("content encoding {encoding:?} is not supported: send the body as it is");
        return Err(Error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let binary = headers.contains_key(HEAD_LENGTH);
    let limit = if binary { config.body_bytes_max } else { config.json_bytes_max };
    let too_large = |what: &str, limit| {
        Error::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{what} is over {limit} bytes"))
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limit as u64) {
        return Err(too_large("body", limit));
    }
    let whole = match timeout(config.body_timeout, Limited::new(body, limit).collect()).await {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large("body", limit)),
        Ok(Err(error)) => return Err(Error::bad(format!("body ended early: {error}"))),
        Err(_) => {
            let message = format!("body did not arrive within {} ms", config.body_timeout.as_millis());
            return Err(Error::new(StatusCode::REQUEST_TIMEOUT, message));
        }
    };
    let (head, data) = oip::split(headers.get(HEAD_LENGTH).map(HeaderValue::as_bytes), whole)?;
    if head.len() > config.json_bytes_max {
        return Err(too_large("JSON (send large tensors as binary data: it)", config.json_bytes_max));
    }
    Ok((head, data))
}

/// A request, understood.
struct Asked {
    input: Payload,
    selection: Selection,
    parameters: BTreeMap<String, Parameter>,
    id: Option<String>,
}

fn decode(head: &[u8], data: Bytes) -> Result<Asked, Error> {
    let request: oip::Request =
        serde_json::from_slice(head).map_err(|error| Error::bad(format!("request: {error}")))?;
    let mut left = request.parameters;
    let binary = match left.remove("binary_data_output") {
        None => false,
        Some(Value::Bool(binary)) => binary,
        Some(_) => return Err(Error::bad("parameters.binary_data_output must be true or false")),
    };
    let parameter = |(name, value): (String, Value)| match serde_json::from_value(value) {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(Error::bad(format!("parameters.{name} must be text, a number, true or false"))),
    };
    let parameters = left.into_iter().map(parameter).collect::<Result<_, _>>()?;
    let selection = Selection::of(request.outputs, binary)?;
    let input = Payload::Tensors(Input::tensors(request.inputs, data)?);
    Ok(Asked { input, selection, parameters, id: request.id })
}

async fn respond(
    model: &ModelContract,
    ran: Ran,
    selection: Selection,
    id: Option<String>,
) -> Result<Response, Error> {
    let Payload::Tensors(tensors) = ran.output else {
        let message = format!("model {} gave opaque bytes, which the protocol cannot carry", model.name);
        return Err(Error::new(StatusCode::INTERNAL_SERVER_ERROR, message));
    };
    let run_us = u64::try_from(ran.run_time.as_micros()).unwrap_or(u64::MAX);
    let about = About {
        model_name: model.name.to_string(),
        model_version: model.version.clone(),
        id,
        parameters: Parameters::from([("run_us".to_owned(), run_us.into())]),
    };
    let bytes = tensors.iter().map(|tensor: &Tensor| tensor.data().len()).sum();
    let encoded = off_runtime(bytes, move || oip::respond(&about, &tensors, &selection)).await?;
    let length = HeaderValue::from(encoded.len());
    let Encoded { head, data } = encoded;
    if data.is_empty() {
        return Ok(([(header::CONTENT_TYPE, "application/json")], head).into_response());
    }
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, length),
        (HeaderName::from_static(HEAD_LENGTH), HeaderValue::from(head.len())),
    ];
    let parts = std::iter::once(head).chain(data).map(Ok::<_, Infallible>);
    Ok((headers, Body::from_stream(stream::iter(parts))).into_response())
}

/// Runs `work`, elsewhere if `bytes` are many. Places bound how many do so at once.
async fn off_runtime<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes < OFF_RUNTIME_BYTES {
        return work();
    }
    tokio::task::spawn_blocking(work).await.expect("decoding and encoding neither panic nor are aborted")
}
