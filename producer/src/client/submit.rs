//! Submitting: check, claim check, publish, confirm.

use super::{Client, Shared, Ticket};
use crate::now;
use crate::pending::{Pace, Submitted, Wait};
use crate::submission::{Identity, InvalidSubmission, Submission};
use broker::{Message, Properties, PublishError, Route};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use metrics::counter;
use schemas::wire::CONTENT_TYPE;
use schemas::{Class, JobBody, JobId, Payload};
use state::blobs::BlobError;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

/// Why a job was not submitted, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It breaks a rule that no retry changes.
    #[error(transparent)]
    Invalid(#[from] InvalidSubmission),
    /// It is over the inline limit and there is no blob store to put it in.
    #[error("job has {bytes} bytes: at most {limit} without a blob store; configure one or send less")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The same key or id was submitted with another input.
    #[error("job {id} was submitted before with another input: use a key of its own for each input")]
    Conflict {
        /// The job that the key stands for.
        id: JobId,
    },
    /// The blob store could not take the input.
    #[error("failed to store the input: {0}")]
    Blob(#[from] BlobError),
    /// As many jobs are waited for as may be.
    #[error("{limit} jobs are pending, the most client.pending_max allows: await some first")]
    TooManyPending {
        /// The limit.
        limit: usize,
    },
    /// The queue was full for as long as the client's patience lasts.
    #[error("queue {queue} was full for {} ms: try again later", waited.as_millis())]
    Full {
        /// The queue.
        queue: String,
        /// How long it was tried.
        waited: Duration,
    },
    /// The broker does not have the job.
    #[error("the broker did not take the job: {0}")]
    Unavailable(PublishError),
    /// The broker may have the job or not. Submitting the same id again is the same job.
    #[error("job {id} was not confirmed: it may run or not; submit it again with this id")]
    Unconfirmed {
        /// The job.
        id: JobId,
    },
    /// The client was closed.
    #[error("client is closed")]
    Closed,
}

impl SubmitError {
    /// Whether the very same submit can succeed later.
    pub fn worth_another_try(&self) -> bool {
        match self {
            Self::Blob(error) => matches!(error, BlobError::Unusable { .. }),
            Self::TooManyPending { .. } | Self::Full { .. } | Self::Unconfirmed { .. } => true,
            Self::Unavailable(error) => {
                !matches!(error, PublishError::TooLarge { .. } | PublishError::Closed)
            }
            Self::Invalid(_) | Self::TooLarge { .. } | Self::Conflict { .. } | Self::Closed => false,
        }
    }

    const fn label(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::TooLarge { .. } => "too_large",
            Self::Conflict { .. } => "conflict",
            Self::Blob(_) => "blob",
            Self::TooManyPending { .. } => "too_many_pending",
            Self::Full { .. } => "full",
            Self::Unavailable(_) => "unavailable",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::Closed => "closed",
        }
    }
}

/// A job ready to be published.
struct Prepared {
    id: JobId,
    class: Class,
    message: Message,
}

/// Encoding or hashing less than this is quicker than handing it to another thread, in bytes.
const OFF_RUNTIME_BYTES: u64 = 64 * 1024;

impl Client {
    /// Submits a job whose result is awaited through the ticket. `Ok` means the broker has it.
    pub fn submit(&self, submission: Submission) -> BoxFuture<'_, Result<Ticket, SubmitError>> {
        Box::pin(async move {
            counted(&submission, self.shared.submit(&submission, self.shared.place(true).await).await)
        })
    }

    /// Submits a job whose result is fetched later, if at all: nothing is sent back. `Ok` means the broker has it.
    pub fn enqueue(&self, submission: Submission) -> BoxFuture<'_, Result<JobId, SubmitError>> {
        Box::pin(async move {
            let enqueued = async {
                let prepared = self.shared.prepare(&submission, false).await?;
                self.shared.publish(&prepared).await?;
                Ok(prepared.id)
            };
            counted(&submission, enqueued.await)
        })
    }

    /// Like [`Client::submit`], but waits for a place as long as it takes.
    pub(super) async fn submit_when_free(&self, submission: Submission) -> Result<Ticket, SubmitError> {
        counted(&submission, self.shared.submit(&submission, self.shared.place(false).await).await)
    }
}

fn counted<T>(submission: &Submission, submitted: Result<T, SubmitError>) -> Result<T, SubmitError> {
    let outcome = submitted.as_ref().err().map_or("accepted", SubmitError::label);
    counter!("straightline_submissions_total", "class" => submission.class.as_str(), "outcome" => outcome)
        .increment(1);
    submitted
}

impl Shared {
    async fn place(&self, impatient: bool) -> Result<OwnedSemaphorePermit, SubmitError> {
        let place = self.places.clone().acquire_owned();
        let place = if impatient {
            let limit = self.config.pending_max;
            timeout(self.config.patience, place).await.map_err(|_| SubmitError::TooManyPending { limit })?
        } else {
            place.await
        };
        place.map_err(|_| SubmitError::Closed)
    }

    async fn submit(
        self: &Arc<Self>,
        submission: &Submission,
        place: Result<OwnedSemaphorePermit, SubmitError>,
    ) -> Result<Ticket, SubmitError> {
        let place = place?;
        let prepared = self.prepare(submission, true).await?;
        // The waiter stands before the job is out: its reply may be back before the confirm.
        let look_after = self.config.look_after;
        let ticket = self.await_job(Wait {
            id: prepared.id,
            pace: Pace { first: look_after, step: look_after, step_max: look_after * 8 },
            give_up: Some(Instant::now() + submission.deadline + self.config.grace),
            submitted: Some(Submitted { model: submission.model.clone(), at: now() }),
            place: Some(place),
        });
        self.publish(&prepared).await?;
        Ok(ticket)
    }

    async fn prepare(&self, submission: &Submission, reply: bool) -> Result<Prepared, SubmitError> {
        submission.check()?;
        let id = submission.id(&self.config.client);
        if submission.identity != Identity::Fresh {
            let digest = digest(submission).await;
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            if !keys.agrees(id, digest) {
                return Err(SubmitError::Conflict { id });
            }
        }
        let mut header = submission.header(id, self.config.client.clone(), now());
        header.reply_to = reply.then(|| self.reply_to.clone());
        let (body, size) = self.claim_check(submission).await?;
        header.size = size;
        let properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            correlation_id: Some(id.to_string()),
            reply_to: reply.then(|| self.reply_to.to_string()),
            user_id: self.login.as_ref().map(ToString::to_string),
        };
        let message = Message { packed: Some(header.encode()), headers: Vec::new(), properties, body };
        Ok(Prepared { id, class: submission.class, message })
    }

    /// The body as it travels and the true size of the input. An input over the inline limit is stored first and a
    /// claim check travels in its place.
    async fn claim_check(&self, submission: &Submission) -> Result<(Bytes, u64), SubmitError> {
        let limit = self.config.inline_bytes_max as u64;
        let mut body = JobBody::new(submission.input.clone());
        body.outputs.clone_from(&submission.outputs);
        body.parameters.clone_from(&submission.parameters);
        if let Payload::Blob(blob) = &submission.input {
            return Ok((body.encode(), blob.size));
        }
        let mut bytes = submission.input.data_bytes();
        if bytes <= limit {
            let encoded = encode(&body).await;
            bytes = encoded.len() as u64;
            if bytes <= limit {
                return Ok((encoded, bytes));
            }
        }
        let blobs = self.blobs.as_ref().ok_or(SubmitError::TooLarge { bytes, limit })?;
        let blob = blobs.put(&submission.input).await?;
        let size = blob.size;
        body.input = Payload::Blob(blob);
        Ok((body.encode(), size))
    }

    /// Publishes until the broker has it, it cannot have it, or patience runs out.
    async fn publish(&self, job: &Prepared) -> Result<(), SubmitError> {
        let started = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let place = self.in_flight.acquire().await.map_err(|_| SubmitError::Closed)?;
            let receipt = self.broker.publish(Route::Submit(job.class), job.message.clone()).await;
            let published = receipt.await;
            // Not held while waiting for a full queue: jobs of other classes may have room.
            drop(place);
            let Err(error) = published else { return Ok(()) };
            let waited = started.elapsed();
            if !worth_repeating(&error) || waited >= self.config.patience {
                return Err(explain(error, job.id, waited));
            }
            sleep(backoff.next().min(self.config.patience - waited)).await;
        }
    }
}

async fn digest(submission: &Submission) -> u64 {
    if submission.input.data_bytes() < OFF_RUNTIME_BYTES {
        return submission.digest();
    }
    // Shares the data, which is the large part.
    let owned = submission.clone();
    tokio::task::spawn_blocking(move || owned.digest())
        .await
        .expect("hashing an input neither panics nor is aborted")
}

async fn encode(body: &JobBody) -> Bytes {
    if body.input.data_bytes() < OFF_RUNTIME_BYTES {
        return body.encode();
    }
    let owned = body.clone();
    tokio::task::spawn_blocking(move || owned.encode())
        .await
        .expect("encoding a body neither panics nor is aborted")
}

/// Publishing again is harmless: the id stays the same, and the record is won once.
const fn worth_repeating(error: &PublishError) -> bool {
    matches!(error, PublishError::Lost | PublishError::Full { .. })
}

fn explain(error: PublishError, id: JobId, waited: Duration) -> SubmitError {
    match error {
        PublishError::Full { queue } => SubmitError::Full { queue, waited },
        PublishError::Lost => SubmitError::Unconfirmed { id },
        error => SubmitError::Unavailable(error),
    }
}

/// Delays between tries: doubling from 10 ms to half a second, each drawn between half and the whole of its ceiling.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(10))
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let ceiling = self.0;
        self.0 = (ceiling * 2).min(Duration::from_millis(500));
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_end_otherwise_is_published_again() {
        let queue = || "jobs.normal".to_owned();
        let cases = [
            (PublishError::Lost, true),
            (PublishError::Full { queue: queue() }, true),
            (PublishError::Unroutable { queue: queue() }, false),
            (PublishError::TooLarge { bytes: 9, limit: 8 }, false),
            (PublishError::Unavailable("refused".into()), false),
            (PublishError::Closed, false),
        ];
        for (error, expected) in cases {
            assert_eq!(worth_repeating(&error), expected, "{error}");
        }
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(delays.iter().all(|d| (Duration::from_millis(5)..=Duration::from_millis(500)).contains(d)));
    }

    #[test]
    fn an_unconfirmed_job_is_told_apart_from_one_not_taken() {
        let id = JobId::new();
        let lost = explain(PublishError::Lost, id, Duration::ZERO);
        assert!(lost.to_string().contains(&id.to_string()) && lost.worth_another_try());
        let closed = explain(PublishError::Closed, id, Duration::ZERO);
        assert!(!closed.worth_another_try());
    }
}
