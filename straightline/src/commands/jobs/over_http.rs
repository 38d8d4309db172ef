//! Submitting over the HTTP face of a running `up`.

use super::sink::Sink;
use super::source::{Content, Job, Opaque};
use crate::access::{Http, Refused};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use schemas::{JobId, JobResult};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// Ids in one request for results.
const IDS_MAX: usize = 500;
/// Longest wait of one request for results; what is missing then is asked for again.
const WAIT: Duration = Duration::from_secs(20);
/// The same while more jobs are waited for than fit one request: the others are to have their turn.
const TURN: Duration = Duration::from_secs(2);
/// Before a server that could not answer is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a pipe may stand still before a blank line goes out for it: the face takes a body that stands still longer
/// for one that was lost.
const STILL_MAX: Duration = Duration::from_secs(10);
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
pub async fn submit(http: &Http, jobs: mpsc::Receiver<Job>, wait: bool, sink: &mut Sink) -> Result<()> {
    let mut ids = HashMap::new();
    let sent = send(http, jobs, wait, &mut ids, sink).await;
    // Also when sending broke off: those that were accepted go on.
    gather(http, ids, sink, PATIENCE).await?;
    sent
}

/// Submits `jobs`; the ids of those to wait for are put into `ids`.
async fn send(
    http: &Http,
    mut jobs: mpsc::Receiver<Job>,
    wait: bool,
    ids: &mut HashMap<JobId, usize>,
    sink: &mut Sink,
) -> Result<()> {
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
    let mut answers = Box::pin(http.post_lines("/v1/jobs", Box::pin(never_still(to_send, STILL_MAX))).await?);
    let mut places: Vec<usize> = Vec::new();
    let (mut lines_open, mut aside_open) = (true, true);
    while lines_open || aside_open {
        tokio::select! {
            answer = answers.next(), if lines_open => match answer {
                Some(answer) => {
                    let answer: Answer = serde_json::from_slice(&answer.context("jobs without an id here were not confirmed")?)
                        .context("failed to read the answer")?;
                    while places.len() <= answer.index {
                        places.push(numbered.recv().await.context("the server answered for a line never sent")?);
                    }
                    let index = places[answer.index];
                    accepted(index, answer.id, answer.error, wait, ids, sink)?;
                }
                None => lines_open = false,
            },
            job = aside.recv(), if aside_open => match job {
                Some(Job { index, content: Ok(Content::Opaque(opaque)) }) => match send_opaque(http, opaque).await {
                    Ok(id) => accepted(index, Some(id), None, wait, ids, sink)?,
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
    sorting.await.context("failed to read the inputs")
}

/// The lines as they come, and a blank one whenever none did for `still_max`.
fn never_still(lines: mpsc::Receiver<Bytes>, still_max: Duration) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(lines, move |mut lines| async move {
        let line = timeout(still_max, lines.recv()).await;
        Some((line.unwrap_or(Some(Bytes::from_static(b"\n")))?, lines))
    })
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

/// Results of all `ids`, as they come, for as long as `patience` lasts: a server that restarts has its jobs still.
async fn gather(http: &Http, ids: HashMap<JobId, usize>, sink: &mut Sink, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    let mut waiting = VecDeque::from_iter(ids);
    waiting.make_contiguous().sort_unstable_by_key(|(_, index)| *index);
    let mut ended = Ok(());
    let mut is_away = false;
    while !waiting.is_empty() && Instant::now() < until && ended.is_ok() {
        let mut turn: BTreeMap<_, _> = waiting.drain(..waiting.len().min(IDS_MAX)).collect();
        let wait = if waiting.is_empty() { WAIT } else { TURN };
        let asked = write_results(http, &mut turn, wait, sink).await?;
        // To the end of the line: none is kept waiting by others that do not end.
        waiting.extend(turn);
        match asked {
            Ok(()) => is_away = false,
            Err(error) if may_pass(&error) => {
                if !is_away {
                    tracing::warn!(error = %format!("{error:#}"), jobs = waiting.len(), "asking for results until they come");
                }
                is_away = true;
                sleep(PAUSE).await;
            }
            Err(error) => ended = Err(error),
        }
    }
    for (id, index) in waiting {
        sink.failed(index, Some(id), &"its result did not come; fetch it later by its id")?;
    }
    ended
}

/// Whether the same question may be answered later. A server that cannot be reached, or went away, may come back; one
/// that answers nonsense is another.
fn may_pass(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refused>() {
        Some(refused) => refused.worth_another_try(),
        None => !error.is::<serde_json::Error>(),
    }
}

/// Writes the results of `jobs` that come within `wait`, and takes their jobs out. The outer error is the output's, the
/// inner one the server's.
async fn write_results(
    http: &Http,
    jobs: &mut BTreeMap<JobId, usize>,
    wait: Duration,
    sink: &mut Sink,
) -> Result<Result<()>> {
    let ids: Vec<_> = jobs.keys().copied().collect();
    let mut results = match ask(http, &ids, wait).await {
        Ok(results) => Box::pin(results),
        Err(error) => return Ok(Err(error)),
    };
    while let Some(result) = results.next().await {
        match result {
            Ok(result) => {
                if let Some(index) = jobs.remove(&result.id) {
                    sink.ended(index, &result)?;
                }
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
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
            let found: Vec<JobResult> = Box::pin(found).try_collect().await?;
            missing.retain(|id| found.iter().all(|result| result.id != *id));
            results.extend(found);
        }
        if missing.is_empty() || left.is_zero() {
            return Ok(results);
        }
    }
}

async fn ask(
    http: &Http,
    ids: &[JobId],
    wait: Duration,
) -> Result<impl Stream<Item = Result<JobResult>> + use<>> {
    let body =
        serde_json::json!({ "ids": ids, "wait_ms": u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) });
    let lines = http.post_for_lines("/v1/results", &body).await?;
    Ok(lines.map(|line| serde_json::from_slice(&line?).context("failed to read a result")))
}

#[cfg(test)]
mod tests;
