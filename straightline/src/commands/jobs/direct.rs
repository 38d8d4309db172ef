//! Submitting over broker and state, through the client library.

use super::sink::Sink;
use super::source::{Content, Job, Opaque};
use crate::station::Station;
use anyhow::Result;
use futures_util::{StreamExt, stream};
use producer::{Client, Submission};
use schemas::{JobId, JobResult, Payload};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Submits `jobs`, and waits for their results if `wait`.
pub async fn submit(station: &Station, jobs: mpsc::Receiver<Job>, wait: bool, sink: &mut Sink) -> Result<()> {
    let client = station.client().await?;
    // Jobs that are none never reach the client; what it numbers is what is left.
    let refused: Arc<Mutex<Vec<(usize, String)>>> = Arc::default();
    let places: Arc<Mutex<Vec<usize>>> = Arc::default();
    let submissions = {
        let (refused, places) = (Arc::clone(&refused), Arc::clone(&places));
        stream::unfold(jobs, |mut jobs| async move { Some((jobs.recv().await?, jobs)) }).filter_map(
            move |job| {
                let submission = match job.content.and_then(submission) {
                    Ok(submission) => {
                        lock(&places).push(job.index);
                        Some(submission)
                    }
                    Err(error) => {
                        lock(&refused).push((job.index, error));
                        None
                    }
                };
                std::future::ready(submission)
            },
        )
    };
    let place = |index: usize| lock(&places)[index];
    if wait {
        let mut results = Box::pin(client.run_many(submissions));
        while let Some(done) = results.next().await {
            let index = place(done.index);
            match done.outcome {
                Ok(result) => match client.resolve(result).await {
                    Ok(result) => sink.ended(index, &result)?,
                    Err(error) => sink.failed(index, done.id, &error)?,
                },
                Err(error) => sink.failed(index, done.id, &error)?,
            }
        }
    } else {
        let mut ids = Box::pin(client.enqueue_many(submissions));
        while let Some((index, enqueued)) = ids.next().await {
            match enqueued {
                Ok(id) => sink.submitted(place(index), id)?,
                Err(error) => sink.failed(place(index), None, &error)?,
            }
        }
    }
    for (index, error) in lock(&refused).drain(..) {
        sink.failed(index, None, &error)?;
    }
    client.close(Duration::ZERO).await;
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
