//! `/v1/jobs`: submit without waiting, look later, take back.

use super::asks::{self, Asks};
use super::body;
use super::errors::Error;
use super::infer::{self, identity, trace};
use super::{App, batch, models};
use crate::client::{Cancelled, WaitError};
use crate::now;
use crate::submission::{Identity, Submission};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemas::limits::DEADLINE_MAX;
use schemas::oip::{Input, Output, Parameters, Selection};
use schemas::{Class, JobId, JobResult, ModelName, Opaque, Payload, Status};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// A job, as `POST /v1/jobs` takes it: an inference request of the protocol, and what is asked of us beside it. A
/// field that is not known is an error: a misspelt deadline must not pass for none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobRequest {
    model: ModelName,
    id: Option<JobId>,
    key: Option<String>,
    class: Option<Class>,
    deadline_ms: Option<u64>,
    run_timeout_ms: Option<u64>,
    attempts_max: Option<u64>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

/// An opaque job's facts: they stand in the query, since its body is the input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpaqueQuery {
    model: Option<String>,
    class: Option<Class>,
    deadline_ms: Option<u64>,
    run_timeout_ms: Option<u64>,
    attempts_max: Option<u64>,
}

/// `POST /v1/jobs`.
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let opaque: OpaqueQuery = query(&uri)?;
    let (submission, body) = match (&opaque.model, body::media_type(&headers).as_deref()) {
        (Some(_), kind) => opaque_job(&app, opaque, kind, &headers, body).await?,
        (None, Some("application/x-ndjson")) => return batch::submit(&app, &headers, body),
        // No type, and the one that curl gives what it posts, say nothing about the body.
        (
            None,
            None
            | Some("application/json" | "application/octet-stream" | "application/x-www-form-urlencoded"),
        ) => {
            let (body, head, data) = infer::read(&app, &headers, body).await?;
            let on_app = app.clone();
            let mut submission =
                body::off_runtime(&app, head.len(), move || decode(&on_app, &head, data)).await?;
            let header = identity(&headers)?;
            if header != Identity::Fresh {
                submission.identity = header;
            }
            (submission, body)
        }
        (None, Some(kind)) => {
            return Err(Error::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!(
                    "content type {kind:?} is not known: use application/json or application/x-ndjson, or name the model \
                     in the query (?model=NAME) to send opaque bytes"
                ),
            ));
        }
    };
    let id = app.client.enqueue(Submission { trace: trace(&headers), ..submission }).await?;
    drop(body);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, format!("/v1/jobs/{id}"))], Json(json!({ "id": id })))
        .into_response())
}

/// Reads one job as `POST /v1/jobs` takes it, whatever its model.
pub fn read_job(json: &[u8]) -> Result<Submission, String> {
    read(json, Bytes::new()).map_err(|error| error.message().to_owned())
}

/// Reads one job, a body or one line of a body of lines, and checks it against its model's contract.
pub(super) fn decode(app: &App, head: &[u8], data: Bytes) -> Result<Submission, Error> {
    let submission = read(head, data)?;
    let model = app.model(submission.model.as_str(), None)?;
    models::check(&model, &submission.input, &submission.outputs)?;
    Ok(submission)
}

fn read(head: &[u8], data: Bytes) -> Result<Submission, Error> {
    let request: JobRequest = body::json(head)?;
    let asks = Asks::of(request.parameters)?;
    let selection = Selection::of(request.outputs, asks.binary)?;
    let input = Payload::Tensors(Input::tensors(request.inputs, data)?);
    let mut submission = Submission::new(request.model, input);
    submission.identity = match (request.id, request.key) {
        (Some(id), None) => Identity::Id(id),
        (None, Some(key)) => Identity::Key(key),
        (None, None) => Identity::Fresh,
        (Some(_), Some(_)) => return Err(Error::bad("a job has an id or a key, not both")),
    };
    submission.class = request.class.or(asks.class).unwrap_or_default();
    if let Some(deadline) = request.deadline_ms.map(Duration::from_millis).or(asks.deadline) {
        submission.deadline = deadline;
    }
    submission.run_timeout = request.run_timeout_ms.map(Duration::from_millis).or(asks.run_timeout);
    let attempts_max = request.attempts_max.map(|n| asks::attempts("attempts_max", n)).transpose()?;
    submission.attempts_max = attempts_max.or(asks.attempts_max);
    submission.outputs = selection.names;
    submission.parameters = asks.rest;
    submission.check()?;
    Ok(submission)
}

async fn opaque_job(
    app: &Arc<App>,
    query: OpaqueQuery,
    kind: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Submission, body::InHand), Error> {
    let model = app.model(query.model.as_deref().unwrap_or_default(), None)?;
    let body = body::read(app, headers, body, app.limits.body_bytes_max).await?;
    let content_type = kind.unwrap_or("application/octet-stream").to_owned();
    let input = Payload::Opaque(Opaque { content_type, data: body.bytes.clone() });
    models::check(&model, &input, &[])?;
    let mut submission = Submission::new(model.name.clone(), input);
    submission.identity = identity(headers)?;
    submission.class = query.class.unwrap_or_default();
    if let Some(ms) = query.deadline_ms {
        submission.deadline = Duration::from_millis(ms);
    }
    submission.run_timeout = query.run_timeout_ms.map(Duration::from_millis);
    submission.attempts_max = query.attempts_max.map(|n| asks::attempts("attempts_max", n)).transpose()?;
    Ok((submission, body))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    #[serde(default)]
    wait_ms: u64,
}

/// `GET /v1/jobs/{id}`: 200 and the result, 202 while there is none, 404 when there will be none.
pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Error> {
    let query: ShowQuery = query(&uri)?;
    let id = job(&id)?;
    match look(&app, id, app.wait(query.wait_ms)).await? {
        Some(result) => result_json(&app, result).await,
        None => pending(&app, id),
    }
}

/// `GET /v1/jobs/{id}/output`: the output in the protocol's form, binary where `Accept` asks for bytes.
pub(super) async fn output(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let query: ShowQuery = query(&uri)?;
    let id = job(&id)?;
    let Some(result) = look(&app, id, app.wait(query.wait_ms)).await? else { return pending(&app, id) };
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let selection = Selection::of(Vec::new(), accept.contains("application/octet-stream"))?;
    let model = result.model.as_ref().and_then(|name| app.models.get(name).cloned());
    infer::answer(&app, model.as_deref(), result, selection, None).await
}

async fn look(app: &App, id: JobId, patience: Duration) -> Result<Option<JobResult>, Error> {
    let found = app.client.fetch(&[id]).await?.pop().flatten();
    if found.is_some() || patience.is_zero() {
        return Ok(found);
    }
    let _place = app.wait_place()?;
    match app.client.wait(id, patience).await {
        Ok(result) => Ok(Some(result)),
        Err(WaitError::Timeout { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn pending(app: &App, id: JobId) -> Result<Response, Error> {
    if !may_be_pending(id, now(), app.limits.record_keep) {
        return Err(Error::not_found(format!(
            "job {id} is not known: its result is kept no longer, or it never was"
        )));
    }
    let body = Json(json!({ "id": id, "status": "pending" }));
    Ok((StatusCode::ACCEPTED, [(header::RETRY_AFTER, "1")], body).into_response())
}

/// Whether a job without a record may still end: nobody keeps a list of jobs under way, but an id tells when it was
/// made. One made from a key does not, and may.
fn may_be_pending(id: JobId, now: schemas::UnixMillis, record_keep: Duration) -> bool {
    /// Clocks differ.
    const AHEAD: Duration = Duration::from_secs(60);
    crate::client::created(id)
        .is_none_or(|created| created <= now.plus(AHEAD) && now.since(created) < DEADLINE_MAX + record_keep)
}

/// A result as JSON, its output with it.
pub(super) async fn result_json(app: &App, result: JobResult) -> Result<Response, Error> {
    let bytes = encode(app, result).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// Encodes a result, its output with it.
pub(super) async fn encode(app: &App, result: JobResult) -> Result<Vec<u8>, Error> {
    let result = app.client.resolve(result).await?;
    let id = result.id;
    let bytes = result.output.as_ref().map_or(0, Payload::data_bytes);
    let encoded = body::off_runtime(app, usize::try_from(bytes).unwrap_or(usize::MAX), move || {
        serde_json::to_vec(&result)
    })
    .await;
    encoded.map_err(|error| {
        let message = format!("{error}: GET /v1/jobs/{id}/output with Accept: application/octet-stream");
        Error::new(StatusCode::NOT_ACCEPTABLE, message)
    })
}

/// `DELETE /v1/jobs/{id}`: 200 when it is cancelled, now or before; 409 and the result when it had ended otherwise.
pub(super) async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Error> {
    match app.client.cancel(job(&id)?).await? {
        Cancelled::Now(result) => result_json(&app, result).await,
        Cancelled::Before(result) if result.status == Status::Cancelled => result_json(&app, result).await,
        Cancelled::Before(result) => {
            let mut response = result_json(&app, result).await?;
            *response.status_mut() = StatusCode::CONFLICT;
            Ok(response)
        }
    }
}

/// The id in a path.
pub(super) fn job(id: &str) -> Result<JobId, Error> {
    id.parse().map_err(|error: schemas::id::InvalidJobId| Error::bad(error.to_string()))
}

/// The query of `uri`; the error names the field.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    Query::try_from_uri(uri).map(|Query(query)| query).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Error::bad(format!("query: {cause}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{ClientName, UnixMillis};

    #[test]
    fn an_id_is_pending_only_while_its_job_may_still_end() {
        let day = Duration::from_secs(24 * 3600);
        let id = JobId::new();
        let made = crate::client::created(id).unwrap();
        assert!(may_be_pending(id, made, day));
        assert!(may_be_pending(id, made.plus(2 * day - Duration::from_secs(1)), day));
        assert!(!may_be_pending(id, made.plus(2 * day), day));
        assert!(!may_be_pending(id, UnixMillis(made.0 - 61_000), day), "made in the future");
        let keyed = JobId::from_key(&ClientName::new("c").unwrap(), "k");
        assert!(may_be_pending(keyed, UnixMillis(0), day));
    }
}
