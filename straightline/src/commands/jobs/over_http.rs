//! Submitting over the HTTP face of a running `up`.

use super::given_up;
use super::sink::Sink;
use super::source::{Content, Job, Opaque, Place};
use crate::access::{Http, Refused};
use crate::stopping::{self, Stop};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use schemas::{JobId, JobResult};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

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

/// Submits `jobs`, and waits for their results if `wait`, until told to stop.
pub async fn submit(
    http: &Http,
    jobs: mpsc::Receiver<Job>,
    wait: bool,
    sink: &mut Sink,
    stop: watch::Receiver<Stop>,
) -> Result<()> {
    let mut ids = HashMap::new();
    let sent = tokio::select! {
        sent = send(http, jobs, wait, &mut ids, sink, stop.clone()) => sent,
        () = given_up(stop.clone()) => Ok(()),
    };
    // Also when sending broke off: those that were accepted go on.
    gather(http, ids, sink, PATIENCE, stop).await?;
    sent
}

/// Submits `jobs` until told to stop; the ids of those to wait for are put into `ids`.
async fn send(
    http: &Http,
    mut jobs: mpsc::Receiver<Job>,
    wait: bool,
    ids: &mut HashMap<JobId, usize>,
    sink: &mut Sink,
    mut stop: watch::Receiver<Stop>,
) -> Result<()> {
    // Lines go out on one request while its answers come in; what is no line goes its own way meanwhile.
    let (lines, to_send) = mpsc::channel::<Bytes>(256);
    let (others, mut aside) = mpsc::channel::<Job>(16);
    let (numbers, mut numbered) = mpsc::unbounded_channel::<(usize, Place)>();
    let sorting = tokio::spawn(async move {
        loop {
            let job = tokio::select! {
                biased;
                () = stopping::until(&mut stop, Stop::Drain) => break,
                job = jobs.recv() => job,
            };
            let Some(Job { index, place, content }) = job else { break };
            let gone = match content {
                Ok(Content::Json(object)) => {
                    let line = Bytes::from(serde_json::Value::Object(object).to_string() + "\n");
                    numbers.send((index, place)).is_err() || lines.send(line).await.is_err()
                }
                content => others.send(Job { index, place, content }).await.is_err(),
            };
            if gone {
                break;
            }
        }
    });
    let mut answers = Box::pin(http.post_lines("/v1/jobs", Box::pin(never_still(to_send, STILL_MAX))).await?);
    let mut places: Vec<(usize, Place)> = Vec::new();
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
                    let (index, place) = &places[answer.index];
                    let error = answer.error.map(|error| place.blame(&error));
                    accepted(*index, answer.id, error, wait, ids, sink)?;
                }
                None => lines_open = false,
            },
            job = aside.recv(), if aside_open => match job {
                Some(Job { index, place, content: Ok(Content::Opaque(opaque)) }) => match send_opaque(http, opaque).await {
                    Ok(id) => accepted(index, Some(id), None, wait, ids, sink)?,
                    Err(error) => sink.failed(index, None, &place.blame(&format!("{error:#}")))?,
                },
                Some(Job { index, place, content }) => {
                    let error = content.err().unwrap_or_else(|| "not a job".to_owned());
                    sink.failed(index, None, &format!("{place}: {error}"))?;
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

/// Results of all `ids`, as they come, for as long as `patience` lasts and until told to stop: a server that restarts has
/// its jobs still.
async fn gather(
    http: &Http,
    ids: HashMap<JobId, usize>,
    sink: &mut Sink,
    patience: Duration,
    mut stop: watch::Receiver<Stop>,
) -> Result<()> {
    let until = Instant::now() + patience;
    let mut waiting = VecDeque::from_iter(ids);
    waiting.make_contiguous().sort_unstable_by_key(|(_, index)| *index);
    let mut ended = Ok(());
    let mut is_away = false;
    let mut told = false;
    while !told && !waiting.is_empty() && Instant::now() < until && ended.is_ok() {
        let mut turn: BTreeMap<_, _> = waiting.drain(..waiting.len().min(IDS_MAX)).collect();
        let wait = if waiting.is_empty() { WAIT } else { TURN };
        let asked = tokio::select! {
            asked = write_results(http, &mut turn, wait, sink) => asked?,
            () = stopping::until(&mut stop, Stop::Drain) => {
                told = true;
                Ok(())
            }
        };
        // To the end of the line: none is kept waiting by others that do not end.
        waiting.extend(turn);
        match asked {
            Ok(()) => is_away = false,
            Err(error) if may_pass(&error) => {
                if !is_away {
                    tracing::warn!(error = %format!("{error:#}"), jobs = waiting.len(), "asking for results until they come");
                }
                is_away = true;
                let _ = timeout(PAUSE, stopping::until(&mut stop, Stop::Drain)).await;
            }
            Err(error) => ended = Err(error),
        }
    }
    for (id, index) in waiting {
        if told {
            sink.pending(index, id)?;
            continue;
        }
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
