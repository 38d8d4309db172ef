//! `POST /v2/models/{model}/infer`: submit and wait. And the answer a finished job makes, shared with `/v1/jobs`.

use super::asks::Asks;
use super::body::{self, InHand};
use super::errors::Error;
use super::{App, models};
use crate::submission::{Identity, Submission};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use schemas::oip::{self, About, Encoded, HEAD_LENGTH, Input, Parameters, Selection};
use schemas::{Class, JobResult, ModelContract, Payload, Status, Tensor};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The header that carries an idempotency key.
pub(super) const KEY: &str = "idempotency-key";
/// The header that names the job behind an answer.
const JOB: HeaderName = HeaderName::from_static("straightline-job");
/// How long after a job's deadline its end may take to get here.
const SLACK: Duration = Duration::from_secs(1);

/// `POST /v2/models/{model}/infer`.
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let model = app.model(&model, None)?;
    run(&app, model, &headers, body).await
}

/// `POST /v2/models/{model}/versions/{version}/infer`.
pub(super) async fn infer_version(
    State(app): State<Arc<App>>,
    Path((model, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let model = app.model(&model, Some(&version))?;
    run(&app, model, &headers, body).await
}

async fn run(
    app: &Arc<App>,
    model: Arc<ModelContract>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let _place = app.wait_place()?;
    let (body, head, data) = read(app, headers, body).await?;
    let (identity, trace) = (identity(headers)?, trace(headers));
    let (contract, deadline) = (model.clone(), app.limits.infer_deadline);
    let (mut submission, selection, id) =
        body::off_runtime(app, head.len(), move || decode(&contract, &head, data, deadline)).await?;
    submission.identity = identity;
    submission.trace = trace;
    let patience = (submission.deadline + SLACK).min(app.limits.wait_max);
    let ticket = app.client.submit(submission).await?;
    // The job is with the broker: its bytes are no longer ours.
    drop(body);
    let job = ticket.id();
    let answer = match timeout(patience, ticket).await {
        Ok(Ok(result)) => answer(app, Some(&model), result, selection, id).await,
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Error::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "job {job} has not ended within {} ms: look for it at /v1/jobs/{job}",
                patience.as_millis()
            ),
        )),
    };
    let mut response = answer.into_response();
    let job = HeaderValue::from_str(&job.to_string()).expect("a UUID is a header value");
    response.headers_mut().insert(JOB, job);
    Ok(response)
}

/// The whole body, and it split into its JSON and the binary data behind it.
pub(super) async fn read(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(InHand, Bytes, Bytes), Error> {
    let json_max = app.limits.json_bytes_max;
    let limit = if headers.contains_key(HEAD_LENGTH) { app.limits.body_bytes_max } else { json_max };
    let body = body::read(app, headers, body, limit).await?;
    let (head, data) = oip::split(headers.get(HEAD_LENGTH).map(HeaderValue::as_bytes), body.bytes.clone())?;
    if head.len() > json_max {
        let message =
            format!("JSON has {} bytes: at most {json_max}; send large tensors as binary data", head.len());
        return Err(Error::too_large(message));
    }
    Ok((body, head, data))
}

type Decoded = (Submission, Selection, Option<String>);

fn decode(model: &ModelContract, head: &[u8], data: Bytes, deadline: Duration) -> Result<Decoded, Error> {
    let request: oip::Request = body::json(head)?;
    let asks = Asks::of(request.parameters)?;
    let selection = Selection::of(request.outputs, asks.binary)?;
    let input = Payload::Tensors(Input::tensors(request.inputs, data)?);
    models::check(model, &input, &selection.names)?;
    let mut submission = Submission::new(model.name.clone(), input);
    submission.class = asks.class.unwrap_or(Class::High);
    submission.deadline = asks.deadline.unwrap_or(deadline);
    submission.run_timeout = asks.run_timeout;
    submission.attempts_max = asks.attempts_max;
    submission.outputs.clone_from(&selection.names);
    submission.parameters = asks.rest;
    // Named here, where the field is known by the caller's name for it.
    submission.check()?;
    Ok((submission, selection, request.id))
}

/// The identity a caller asks for by header.
pub(super) fn identity(headers: &HeaderMap) -> Result<Identity, Error> {
    let Some(key) = headers.get(KEY) else { return Ok(Identity::Fresh) };
    let key = key.to_str().map_err(|_| Error::bad("header Idempotency-Key is not plain text"))?;
    Ok(Identity::Key(key.to_owned()))
}

/// The trace a caller is part of. One that makes no sense is left out: it is no reason to refuse a job.
pub(super) fn trace(headers: &HeaderMap) -> Option<String> {
    let trace = headers.get("traceparent")?.to_str().ok()?;
    (1..=crate::submission::TRACE_BYTES_MAX).contains(&trace.len()).then(|| trace.to_owned())
}

/// What a finished job answers: its outputs, or the error it ended with.
pub(super) async fn answer(
    app: &App,
    model: Option<&ModelContract>,
    result: JobResult,
    selection: Selection,
    id: Option<String>,
) -> Result<Response, Error> {
    let mut result = app.client.resolve(result).await?;
    let output = if result.status == Status::Succeeded { result.output.take() } else { None };
    match output {
        Some(Payload::Tensors(tensors)) => {
            let about = about(model, &result, id);
            respond(app, about, tensors, selection).await
        }
        Some(Payload::Opaque(opaque)) => {
            let kind = HeaderValue::from_str(&opaque.content_type);
            let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
            Ok(([(header::CONTENT_TYPE, kind)], opaque.data).into_response())
        }
        Some(Payload::Blob(_)) | None => Err(Error::of_ended(&result)),
    }
}

fn about(model: Option<&ModelContract>, result: &JobResult, id: Option<String>) -> About {
    let mut parameters = Parameters::from([
        ("job_id".to_owned(), json!(result.id)),
        ("attempts".to_owned(), json!(result.attempts)),
    ]);
    let told = [
        ("lane", result.lane.map(|lane| json!(lane))),
        ("reason", result.reason.as_ref().map(|reason| json!(reason))),
        ("run_us", result.run_us.map(Value::from)),
    ];
    parameters.extend(told.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    About {
        model_name: result.model.as_ref().map(ToString::to_string).unwrap_or_default(),
        model_version: model.map(|model| model.version.clone()).unwrap_or_default(),
        id,
        parameters,
    }
}

async fn respond(
    app: &App,
    about: About,
    tensors: Vec<Tensor>,
    selection: Selection,
) -> Result<Response, Error> {
    let bytes = tensors.iter().map(|tensor| tensor.data().len()).sum();
    let encoded = body::off_runtime(app, bytes, move || oip::respond(&about, &tensors, &selection)).await?;
    let length = HeaderValue::from(encoded.len());
    let Encoded { head, data } = encoded;
    if data.is_empty() {
        return Ok(([(header::CONTENT_TYPE, "application/json")], head).into_response());
    }
    let head_length = HeaderValue::from(head.len());
    let parts = std::iter::once(head).chain(data).map(Ok::<_, Infallible>);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, length),
        (HeaderName::from_static(HEAD_LENGTH), head_length),
    ];
    Ok((headers, Body::from_stream(stream::iter(parts))).into_response())
}
