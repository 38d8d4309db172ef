//! Attempts: from a header to an output or a failure. Decoding and blobs happen here, so that lanes see tensors
//! and bytes only.

use super::ending::Output;
use super::offload::offload;
use super::services::{Job, Services};
use crate::lane::{Ran, Task};
use schemas::body::InvalidBody;
use schemas::limits::{DEADLINE_MAX, PARAMETERS_MAX, PAYLOAD_BYTES_MAX};
use schemas::payload::InvalidPayload;
use schemas::wire::DecodeError;
use schemas::{BlobRef, Failure, FailureKind, JobBody, JobHeader, Payload, UnixMillis};
use state::Start;
use state::blobs::BlobError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// A note of a start outlives its job's deadline by this much, for clocks that differ.
const NOTE_SLACK: Duration = Duration::from_secs(60);

/// Runs the jobs that share a slot; an end for each, in their order.
pub(crate) async fn run(services: &Services, jobs: &[Arc<Job>]) -> Vec<Result<Output, Failure>> {
    let (mut tasks, mut refused) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
    for job in jobs {
        match task(services, job).await {
            Ok(task) => {
                tasks.push(task);
                refused.push(None);
            }
            Err(failure) => refused.push(Some(failure)),
        }
    }
    let mut ran = services.executor.run_in_turn(tasks).await.into_iter();
    let mut ends = Vec::with_capacity(jobs.len());
    for refused in refused {
        let no_end = || Err(Failure::new(FailureKind::Internal, "a run had no end"));
        ends.push(match refused {
            Some(failure) => Err(failure),
            None => match ran.next().unwrap_or_else(no_end) {
                Ok(Ran { output, run_time }) => {
                    store(services, output).await.map(|payload| Output { payload, run_time })
                }
                Err(failure) => Err(failure),
            },
        });
    }
    ends
}

/// The job's body read and its input fetched.
async fn task(services: &Services, job: &Job) -> Result<Task, Failure> {
    let header = &job.header;
    if !services.models.contains(&header.model) {
        return Err(without_model(services, header));
    }
    if job.suspect {
        note(services, header).await?;
    }
    let body = job.message.body.clone();
    let body = offload(body.len() as u64, move || JobBody::decode(&body)).await.map_err(refused)?;
    if body.parameters.len() > PARAMETERS_MAX {
        let message = format!("job has {} parameters: at most {PARAMETERS_MAX}", body.parameters.len());
        return Err(Failure::new(FailureKind::TooLarge, message));
    }
    let input = match body.input {
        Payload::Blob(blob) => fetch(services, header, &blob).await?,
        input => input,
    };
    let longest = services.config.run_timeout;
    Ok(Task {
        id: header.id,
        model: header.model.clone(),
        attempt: header.attempt,
        input,
        outputs: body.outputs,
        parameters: body.parameters,
        limit: header.run_timeout.map_or(longest, |asked| asked.min(longest)),
    })
}

/// No attempt was made, and whoever takes the job next may have the model. Whether anybody has it is the dispatchers' to
/// say, who have known it until now: here it would be said of a model whose last worker is only starting again.
fn without_model(services: &Services, header: &JobHeader) -> Failure {
    let message = format!("worker {} has no model {}", services.config.name, header.model);
    Failure::new(FailureKind::Busy, message)
}

/// Notes that a suspect is about to run. One that was noted before, for this attempt, took its worker with it.
async fn note(services: &Services, header: &JobHeader) -> Result<(), Failure> {
    let left = header.deadline.since(UnixMillis::from(SystemTime::now()));
    let keep = left.min(DEADLINE_MAX) + NOTE_SLACK;
    let start = Start { id: header.id, attempt: header.attempt };
    let error = match timeout(services.config.state_timeout, services.state.note_starts(&[start], keep)).await
    {
        Ok(Ok(noted)) => match noted.first() {
            Some(0) | None => return Ok(()),
            Some(_) => {
                let message = "worker died or was lost while it ran this job alone";
                return Err(Failure::new(FailureKind::WorkerLost, message));
            }
        },
        Ok(Err(error)) => error.to_string(),
        Err(_) => "state did not answer in time".to_owned(),
    };
    metrics::counter!("straightline_starts_unnoted_total").increment(1);
    tracing::warn!(job.id = %header.id, %error, "failed to note the start of a suspect job; it runs unnoted");
    Ok(())
}

fn refused(error: InvalidBody) -> Failure {
    let kind = match &error {
        InvalidBody::Decode(DecodeError::Version { .. }) => FailureKind::UnsupportedVersion,
        InvalidBody::Decode(DecodeError::Malformed(_)) => FailureKind::Undecodable,
        InvalidBody::Payload(InvalidPayload::Duplicate(_)) => FailureKind::InvalidInput,
        InvalidBody::Payload(_) => FailureKind::TooLarge,
    };
    Failure::new(kind, error)
}

/// The input behind a claim check. Its true size must be what the header said: that is what it was placed by.
async fn fetch(services: &Services, header: &JobHeader, blob: &BlobRef) -> Result<Payload, Failure> {
    if blob.size > PAYLOAD_BYTES_MAX as u64 {
        let message = format!("input has {} bytes: at most {PAYLOAD_BYTES_MAX}", blob.size);
        return Err(Failure::new(FailureKind::TooLarge, message));
    }
    if blob.size > header.size {
        let message = format!(
            "header says {} bytes, the input blob has {}: send its true size",
            header.size, blob.size
        );
        return Err(Failure::new(FailureKind::InvalidInput, message));
    }
    let Some(blobs) = &services.blobs else {
        let message = "input is in a blob store and this worker has none: configure storage.blobs";
        return Err(Failure::new(FailureKind::BlobUnavailable, message));
    };
    let patience = services.config.blob_timeout;
    match timeout(patience, blobs.get(blob)).await {
        Ok(got) => got.map_err(|error| Failure::new(fault_of(&error), format!("input: {error}"))),
        Err(_) => Err(late("input", patience)),
    }
}

/// The output as it goes into the result: inline, or behind a claim check if it is large.
async fn store(services: &Services, output: Payload) -> Result<Payload, Failure> {
    let (bytes, limit) = (output.data_bytes(), services.config.inline_bytes_max);
    if bytes <= limit as u64 {
        return Ok(output);
    }
    let Some(blobs) = &services.blobs else {
        let message = format!(
            "output has {bytes} bytes: at most {limit} without a blob store; configure storage.blobs"
        );
        return Err(Failure::new(FailureKind::TooLarge, message));
    };
    let patience = services.config.blob_timeout;
    match timeout(patience, blobs.put(&output)).await {
        Ok(put) => put.map(Payload::Blob).map_err(|error| {
            let kind = match fault_of(&error) {
                // What a model gives is no client's fault.
                FailureKind::InvalidInput => FailureKind::ModelError,
                kind => kind,
            };
            Failure::new(kind, format!("output: {error}"))
        }),
        Err(_) => Err(late("output", patience)),
    }
}

fn fault_of(error: &BlobError) -> FailureKind {
    match error {
        BlobError::TooLarge { .. } => FailureKind::TooLarge,
        BlobError::InvalidId { .. } | BlobError::Corrupt { .. } | BlobError::Invalid(_) => {
            FailureKind::InvalidInput
        }
        // Another worker may see another store.
        BlobError::NotFound { .. } | BlobError::Unusable { .. } => FailureKind::BlobUnavailable,
    }
}

fn late(what: &str, patience: Duration) -> Failure {
    let message = format!("{what}: blob store did not answer within {} ms", patience.as_millis());
    Failure::new(FailureKind::BlobUnavailable, message)
}
