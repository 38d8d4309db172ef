//! Submitting over broker and state, through the client library.

use super::given_up;
use super::sink::Sink;
use super::source::{Content, Job, Opaque, Place};
use crate::station::Station;
use crate::stopping::{self, Stop};
use anyhow::Result;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt, stream};
use producer::{Client, Submission};
use schemas::{JobId, JobResult, Payload};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Submits `jobs`, and waits for their results if `wait`, until told to stop.
pub async fn submit(
    station: &Station,
    jobs: mpsc::Receiver<Job>,
    wait: bool,
    sink: &mut Sink,
    stop: watch::Receiver<Stop>,
) -> Result<()> {
    let client = station.client().await?;
    // Jobs that are none never reach the client; what it numbers is what is left.
    let refused: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
    let places: Arc<Mutex<Vec<(usize, Place)>>> = Arc::default();
    let submissions = {
        let (refused, places) = (Arc::clone(&refused), Arc::clone(&places));
        stream::unfold(jobs, |mut jobs| async move { Some((jobs.recv().await?, jobs)) }).filter_map(
            move |Job { index, place, content }| {
                let submission = match content {
                    Ok(content) => submission(content).map_err(|error| place.blame(&error)),
                    Err(error) => Err(format!("{place}: {error}")),
                };
                let submission = match submission {
                    Ok(submission) => {
                        lock(&places).push((index, place));
                        Some(submission)
                    }
                    Err(error) => {
                        lock(&refused).push((index, error));
                        None
                    }
                };
                std::future::ready(submission)
            },
        )
    };
    let place = |index: usize| lock(&places)[index].clone();
    if wait {
        run(&client, submissions, place, sink, stop).await?;
    } else {
        let mut ids = Box::pin(client.enqueue_many(submissions));
        while let Some((at, enqueued)) = ids.next().await {
            let (index, place) = place(at);
            match enqueued {
                Ok(id) => sink.submitted(index, id)?,
                Err(error) => sink.failed(index, None, &place.blame(&error.to_string()))?,
            }
        }
    }
    for (index, error) in lock(&refused).drain(..) {
        sink.failed(index, None, &error)?;
    }
    client.close(Duration::ZERO).await;
    Ok(())
}

/// Submits and waits. Told to stop, it submits no more, hears whether what is on its way has arrived, and leaves the rest
/// to run on.
async fn run(
    client: &Client,
    submissions: impl Stream<Item = Submission>,
    place: impl Fn(usize) -> (usize, Place),
    sink: &mut Sink,
    mut stop: watch::Receiver<Stop>,
) -> Result<()> {
    let mut asked = stop.clone();
    let asked = async move { stopping::until(&mut asked, Stop::Drain).await };
    let mut tickets = pin!(client.submit_many(submissions.take_until(asked)));
    let mut given_up = pin!(given_up(stop.clone()));
    let mut ends = FuturesUnordered::new();
    let mut under_way = BTreeMap::new();
    let mut submitting = true;
    while submitting || !ends.is_empty() {
        tokio::select! {
            submitted = tickets.next(), if submitting => match submitted {
                Some((at, Ok(ticket))) => {
                    let (index, _) = place(at);
                    under_way.insert(index, ticket.id());
                    ends.push(async move { (index, ticket.id(), ticket.await) });
                }
                Some((at, Err(error))) => {
                    let (index, place) = place(at);
                    sink.failed(index, None, &place.blame(&error.to_string()))?;
                }
                None => submitting = false,
            },
            Some((index, id, outcome)) = ends.next() => {
                under_way.remove(&index);
                match outcome {
                    Ok(result) => match client.resolve(result).await {
                        Ok(result) => sink.ended(index, &result)?,
                        Err(error) => sink.failed(index, Some(id), &error)?,
                    },
                    Err(error) => sink.failed(index, Some(id), &error)?,
                }
            }
            () = stopping::until(&mut stop, Stop::Drain), if !submitting => break,
            () = &mut given_up => break,
        }
    }
    for (index, id) in under_way {
        sink.pending(index, id)?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn submission(content: Content) -> Result<Submission, String> {
    match content {
        Content::Json(object) => {
            producer::http::read_job(&serde_json::Value::Object(object).to_string().into_bytes())
        }
        Content::Opaque(Opaque { model, class, deadline, content_type, bytes }) => {
            let input =
                Payload::Opaque(schemas::Opaque { content_type: content_type.to_owned(), data: bytes });
            let mut submission = Submission::new(model, input);
            submission.class = class;
            if let Some(deadline) = deadline {
                submission.deadline = deadline;
            }
            Ok(submission)
        }
    }
}

/// Results of `ids`, waiting up to `wait` for those that are not there.
pub async fn results(station: &Station, ids: &[JobId], wait: Duration) -> Result<Vec<JobResult>> {
    let client = station.client().await?;
    let found = fetch(&client, ids, wait).await;
    client.close(Duration::ZERO).await;
    found
}

async fn fetch(client: &Client, ids: &[JobId], wait: Duration) -> Result<Vec<JobResult>> {
    let found = client.fetch(ids).await?;
    let late: Vec<_> =
        ids.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(id, _)| *id).collect();
    let mut results: Vec<_> = found.into_iter().flatten().collect();
    if !wait.is_zero() {
        let late = client.wait_many(late, wait).filter_map(|(_, result)| std::future::ready(result.ok()));
        results.extend(late.collect::<Vec<_>>().await);
    }
    let mut resolved = Vec::with_capacity(results.len());
    for result in results {
        resolved.push(client.resolve(result).await?);
    }
    Ok(resolved)
}
