//! `/v1/results`: many results in one request.

use super::errors::Error;
use super::{App, body, jobs};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use schemas::failure::{Failure, FailureKind};
use schemas::{JobId, JobResult};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FetchQuery {
    ids: String,
}

/// `GET /v1/results?ids=a,b`: `{"results":[…]}` in the order of the ids, `null` where there is none yet.
pub(super) async fn fetch(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Error> {
    let query: FetchQuery = jobs::query(&uri)?;
    let ids =
        query.ids.split(',').filter(|id| !id.is_empty()).map(jobs::job).collect::<Result<Vec<_>, _>>()?;
    check(&app, &ids)?;
    let mut body = BytesMut::from(&b"{\"results\":["[..]);
    for (at, result) in app.client.fetch(&ids).await?.into_iter().enumerate() {
        if at > 0 {
            body.extend_from_slice(b",");
        }
        match result {
            Some(result) => body.extend_from_slice(&line_of(&app, result).await),
            None => body.extend_from_slice(b"null"),
        }
    }
    body.extend_from_slice(b"]}");
    Ok(([(header::CONTENT_TYPE, "application/json")], body.freeze()).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    ids: Vec<JobId>,
    #[serde(default)]
    wait_ms: u64,
}

/// `POST /v1/results` with `{"ids":[…],"wait_ms":…}`: one line per result as they come, in no order, until all are there
/// or the time is up; ids without a result by then have no line.
pub(super) async fn stream(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let ask: Ask = {
        let body = body::read(&app, &headers, body, app.limits.json_bytes_max).await?;
        body::json(&body.bytes)?
    };
    check(&app, &ask.ids)?;
    let found = app.client.fetch(&ask.ids).await?;
    let late: Vec<_> =
        ask.ids.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(id, _)| *id).collect();
    let wait = app.wait(ask.wait_ms);
    let late = if wait.is_zero() { Vec::new() } else { late };
    let late = app.client.wait_many(late, wait).filter_map(|(_, result)| async { result.ok() });
    let results = stream::iter(found.into_iter().flatten()).chain(late);
    let place = app.clone();
    let lines = results.then(move |result| {
        let app = place.clone();
        async move {
            let mut line = BytesMut::from(line_of(&app, result).await);
            line.extend_from_slice(b"\n");
            Ok::<_, Infallible>(line.freeze())
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn check(app: &App, ids: &[JobId]) -> Result<(), Error> {
    let limit = app.limits.ids_max;
    match (1..=limit).contains(&ids.len()) {
        true => Ok(()),
        false => Err(Error::bad(format!("ids has {}: send 1 to {limit} at once", ids.len()))),
    }
}

/// A result as JSON; where its output cannot be had, the result without it and why. Others must not suffer for one.
async fn line_of(app: &App, result: JobResult) -> Bytes {
    let without = JobResult { output: None, ..result.clone() };
    match jobs::encode(app, result).await {
        Ok(line) => line,
        Err(error) => {
            let error = Some(Failure::new(FailureKind::BlobUnavailable, error.message()));
            serde_json::to_vec(&JobResult { error, ..without })
                .expect("a result without output is plain text")
                .into()
        }
    }
}
