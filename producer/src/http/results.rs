//! `/v1/results`: many results in one request.
//!
//! An answer is written as it is read: no more than [`FETCH_MAX`] records are in memory for it, however many are asked
//! for, and every output has its share of the bytes that may be in hand until it is on its way. What fails once an
//! answer has begun cuts it off, so that no caller takes a part for the whole.

use super::body::{self, Allowance};
use super::errors::Error;
use super::{App, jobs};
use crate::client::ResolveError;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use schemas::failure::{Failure, FailureKind};
use schemas::{JobId, JobResult, Payload};
use serde::Deserialize;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Records fetched at once for one request.
const FETCH_MAX: usize = 16;
/// An output of so many bytes is kept from the end of its job until it is read; a larger one is fetched again.
const KEPT_BYTES_MAX: usize = 4 * 1024;

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
    let first = first(&app, &ids).await?;
    let (answer, response) = Answer::open(app, "application/json");
    tokio::spawn(async move { answer.array(&ids, first).await });
    Ok(response)
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
    let wait = app.wait(ask.wait_ms);
    let place = if wait.is_zero() { None } else { Some(app.wait_place()?) };
    let until = Instant::now() + wait;
    let first = first(&app, &ask.ids).await?;
    let (answer, response) = Answer::open(app, "application/x-ndjson");
    tokio::spawn(async move {
        let _place = place;
        let late = answer.found(&ask.ids, first).await?;
        if wait.is_zero() { Ok(()) } else { answer.late(late, until).await }
    });
    Ok(response)
}

fn check(app: &App, ids: &[JobId]) -> Result<(), Error> {
    let limit = app.limits.ids_max;
    match (1..=limit).contains(&ids.len()) {
        true => Ok(()),
        false => Err(Error::bad(format!("ids has {}: send 1 to {limit} at once", ids.len()))),
    }
}

/// The first records, fetched before the answer begins: a failure still has a status then.
async fn first(app: &App, ids: &[JobId]) -> Result<Vec<Option<JobResult>>, Error> {
    Ok(app.client.fetch(&ids[..ids.len().min(FETCH_MAX)]).await?)
}

/// An answer being written. One that is not read holds its writer back.
struct Answer {
    app: Arc<App>,
    parts: mpsc::Sender<Result<Bytes, ResolveError>>,
}

/// The caller is gone, or its answer was cut off.
struct Over;

impl Answer {
    fn open(app: Arc<App>, content_type: &'static str) -> (Self, Response) {
        let (parts, written) = mpsc::channel(1);
        let body =
            stream::unfold(written, |mut written| async move { Some((written.recv().await?, written)) });
        let response = ([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response();
        (Self { app, parts }, response)
    }

    /// The whole array of `GET`.
    async fn array(&self, ids: &[JobId], first: Vec<Option<JobResult>>) -> Result<(), Over> {
        self.send("{\"results\":[".into()).await?;
        let mut left = ids.len();
        let mut first = Some(first);
        for ids in ids.chunks(FETCH_MAX) {
            for result in self.fetch(ids, first.take()).await? {
                left -= 1;
                let end = if left > 0 { "," } else { "]}" };
                match result {
                    Some(result) => self.result(result, end).await?,
                    None => self.send(format!("null{end}").into()).await?,
                }
            }
        }
        Ok(())
    }

    /// A line for each result that is there; the ids of the others.
    async fn found(&self, ids: &[JobId], first: Vec<Option<JobResult>>) -> Result<Vec<JobId>, Over> {
        let mut late = Vec::new();
        let mut first = Some(first);
        for ids in ids.chunks(FETCH_MAX) {
            for (id, result) in ids.iter().zip(self.fetch(ids, first.take()).await?) {
                match result {
                    Some(result) => self.result(result, "\n").await?,
                    None => late.push(*id),
                }
            }
        }
        Ok(late)
    }

    /// A line for each of `ids` whose result comes in time.
    async fn late(&self, ids: Vec<JobId>, until: Instant) -> Result<(), Over> {
        let mut ended = ended(&self.app, ids, until);
        while let Some((id, result)) = ended.recv().await {
            let result = match result {
                Some(result) => Some(result),
                None => self.fetch(&[id], None).await?.pop().flatten(),
            };
            if let Some(result) = result {
                self.result(result, "\n").await?;
            }
        }
        Ok(())
    }

    /// These records, unless they are there already. A failure is the end of the answer.
    async fn fetch(
        &self,
        ids: &[JobId],
        fetched: Option<Vec<Option<JobResult>>>,
    ) -> Result<Vec<Option<JobResult>>, Over> {
        if let Some(fetched) = fetched {
            return Ok(fetched);
        }
        match self.app.client.fetch(ids).await {
            Ok(results) => Ok(results),
            Err(error) => {
                let _ = self.parts.send(Err(error)).await;
                Err(Over)
            }
        }
    }

    /// A result with `end` behind it. Where its output cannot be had, it goes without and says why: others must not
    /// suffer for one.
    async fn result(&self, result: JobResult, end: &str) -> Result<(), Over> {
        // Its place first: an answer that is not read has one result in hand, and one on its way.
        let place = self.parts.reserve().await.map_err(|_| Over)?;
        let share = tokio::select! {
            share = body::allow_when_free(&self.app, output_bytes(&result)) => share,
            () = self.parts.closed() => return Err(Over),
        };
        let without = JobResult { output: None, ..result.clone() };
        let mut text = jobs::encode(&self.app, result).await.unwrap_or_else(|error| {
            let error = Some(Failure::new(FailureKind::BlobUnavailable, error.message()));
            serde_json::to_vec(&JobResult { error, ..without })
                .expect("a result without output is plain text")
        });
        text.extend_from_slice(end.as_bytes());
        place.send(Ok(Bytes::from_owner(InHand { text, _share: share })));
        Ok(())
    }

    async fn send(&self, part: Bytes) -> Result<(), Over> {
        self.parts.send(Ok(part)).await.map_err(|_| Over)
    }
}

/// A result on its way out, with its share of what may be in hand.
struct InHand {
    text: Vec<u8>,
    _share: Allowance,
}

impl AsRef<[u8]> for InHand {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Those of `ids` that end in time, as they do, with the result if it is small: a caller that does not read must not
/// gather large ones here.
fn ended(app: &App, ids: Vec<JobId>, until: Instant) -> mpsc::Receiver<(JobId, Option<JobResult>)> {
    let (told, ended) = mpsc::channel(ids.len().max(1));
    let client = app.client.clone();
    tokio::spawn(async move {
        let waits = client.wait_many(ids, until.saturating_duration_since(Instant::now()));
        let mut waits = pin!(waits);
        loop {
            let next = tokio::select! {
                () = told.closed() => return,
                next = waits.next() => next,
            };
            match next {
                Some((id, Ok(result))) => {
                    let kept = (output_bytes(&result) <= KEPT_BYTES_MAX).then_some(result);
                    let _ = told.send((id, kept)).await;
                }
                Some((_, Err(_))) => {}
                None => return,
            }
        }
    });
    ended
}

fn output_bytes(result: &JobResult) -> usize {
    let bytes = result.output.as_ref().map_or(0, Payload::data_bytes);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
