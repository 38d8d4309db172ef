//! Submitting over the HTTP face of a running `up`.

use super::sink::Sink;
use super::source::{Content, Job, Opaque};
use crate::access::Http;
use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use schemas::{JobId, JobResult};
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Ids in one request for results.
const IDS_MAX: usize = 500;
/// Longest wait of one request for results; what is missing then is asked for again.
const WAIT: Duration = Duration::from_secs(20);
/// How long results may fail to come before the command gives up: longer than any deadline.
const PATIENCE: Duration = Duration::from_secs(25 * 3600);

/// What the face answers for a line.
#[derive(Deserialize)]
struct Answer {
    index: usize,
    id: Option<JobId>,
    error: Option<String>,
}

/// What the face answers for one job.
#[derive(Deserialize)]
struct Accepted {
    id: JobId,
}

/// Submits `jobs`, and waits for their results if `wait`.
pub async fn submit(http: &Http, mut jobs: mpsc::Receiver<Job>, wait: bool, sink: &mut Sink) -> Result<()> {
    // Lines go out on one request while its answers come in; what is no line goes its own way meanwhile.
    let (lines, to_send) = mpsc::channel::<Bytes>(256);
    let (others, mut aside) = mpsc::channel::<Job>(16);
    let (numbers, mut numbered) = mpsc::unbounded_channel::<usize>();
    let sorting = tokio::spawn(async move {
        while let Some(job) = jobs.recv().await {
            match job.content {
                Ok(Content::Json(object)) => {
                    let line = Bytes::from(serde_json::Value::Object(object).to_string() + "\n");
                    if numbers.send(job.index).is_err() || lines.send(line).await.is_err() {
                        break;
                    }
                }
                content => {
                    if others.send(Job { index: job.index, content }).await.is_err() {
                        break;
                    }
                }
            }
        }
    });
    let mut ids: HashMap<JobId, usize> = HashMap::new();
    let sent = stream::unfold(to_send, |mut lines| async move { Some((lines.recv().await?, lines)) });
    let mut answers = Box::pin(http.post_lines("/v1/jobs", Box::pin(sent)).await?);
    let mut places: Vec<usize> = Vec::new();
    let (mut lines_open, mut aside_open) = (true, true);
    while lines_open || aside_open {
        tokio::select! {
            answer = answers.next(), if lines_open => match answer {
                Some(answer) => {
                    let answer: Answer = serde_json::from_slice(&answer?).context("failed to read the answer")?;
                    while places.len() <= answer.index {
                        places.push(numbered.recv().await.context("the server answered for a line never sent")?);
                    }
                    let index = places[answer.index];
                    accepted(index, answer.id, answer.error, wait, &mut ids, sink)?;
                }
                None => lines_open = false,
            },
            job = aside.recv(), if aside_open => match job {
                Some(Job { index, content: Ok(Content::Opaque(opaque)) }) => match send_opaque(http, opaque).await {
                    Ok(id) => accepted(index, Some(id), None, wait, &mut ids, sink)?,
                    Err(error) => sink.failed(index, None, &format!("{error:#}"))?,
                },
                Some(Job { index, content }) => {
                    let error = content.err().unwrap_or_else(|| "not a job".to_owned());
                    sink.failed(index, None, &error)?;
                }
                None => aside_open = false,
            },
        }
    }
    sorting.await.context("failed to read the inputs")?;
    if wait { gather(http, ids, sink).await } else { Ok(()) }
}

fn accepted(
    index: usize,
    id: Option<JobId>,
    error: Option<String>,
    wait: bool,
    ids: &mut HashMap<JobId, usize>,
    sink: &mut Sink,
) -> Result<()> {
    match (id, error) {
        (Some(id), _) if wait => {
            ids.insert(id, index);
            Ok(())
        }
        (Some(id), _) => sink.submitted(index, id),
        (None, error) => sink.failed(index, None, &error.unwrap_or_else(|| "not accepted".to_owned())),
    }
}

async fn send_opaque(http: &Http, opaque: Opaque) -> Result<JobId> {
    let Opaque { model, class, deadline, content_type, bytes } = opaque;
    let deadline =
        deadline.map_or_else(String::new, |deadline| format!("&deadline_ms={}", deadline.as_millis()));
    let path = format!("/v1/jobs?model={model}&class={class}{deadline}");
    let accepted: Accepted = http.post_bytes(&path, content_type, bytes).await?;
    Ok(accepted.id)
}

/// Results of all `ids`, as they come.
async fn gather(http: &Http, mut ids: HashMap<JobId, usize>, sink: &mut Sink) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !ids.is_empty() && Instant::now() < until {
        let some: Vec<_> = ids.keys().copied().take(IDS_MAX).collect();
        for result in ask(http, &some, WAIT).await? {
            if let Some(index) = ids.remove(&result.id) {
                sink.ended(index, &result)?;
            }
        }
    }
    for (id, index) in ids {
        sink.failed(index, Some(id), &"its result did not come")?;
    }
    Ok(())
}

/// Results of `ids`, waiting up to `wait` for those that are not there.
pub async fn results(http: &Http, ids: &[JobId], wait: Duration) -> Result<Vec<JobResult>> {
    let until = Instant::now() + wait;
    let mut results = Vec::new();
    let mut missing = ids.to_vec();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        for some in missing.clone().chunks(IDS_MAX) {
            let found = ask(http, some, left.min(WAIT)).await?;
            missing.retain(|id| found.iter().all(|result| result.id != *id));
            results.extend(found);
        }
        if missing.is_empty() || left.is_zero() {
            return Ok(results);
        }
    }
}

async fn ask(http: &Http, ids: &[JobId], wait: Duration) -> Result<Vec<JobResult>> {
    let body =
        serde_json::json!({ "ids": ids, "wait_ms": u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
    let mut lines = Box::pin(http.post_for_lines("/v1/results", &body).await?);
    let mut results = Vec::new();
    while let Some(line) = lines.next().await {
        results.push(serde_json::from_slice(&line?).context("failed to read a result")?);
    }
    Ok(results)
}
