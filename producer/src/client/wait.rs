//! Waiting for one job.

use super::{Client, Shared};
use crate::pending::{Answer, Pace, Wait};
use futures_util::future::BoxFuture;
use schemas::{JobId, JobResult};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Why there is no result to hand over. The job itself is not touched by any of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The caller's own time ran out.
    #[error("job {id} has not ended within {} ms: wait again or fetch it later", waited.as_millis())]
    Timeout {
        /// The job.
        id: JobId,
        /// How long was waited.
        waited: Duration,
    },
    /// The deadline and its grace passed, and there is no record.
    #[error("job {id} has no result although its deadline has passed ({}): fetch it later", state.as_deref().unwrap_or("no record yet"))]
    NoRecord {
        /// The job.
        id: JobId,
        /// What kept the record from being read, if anything did.
        state: Option<String>,
    },
    /// The client was closed, or its broker.
    #[error("client is closed: the result of job {id} stays in its record")]
    Closed {
        /// The job.
        id: JobId,
    },
}

/// The right to a job's result. Awaiting it (or [`Ticket::result`]) gives the result; dropping it changes nothing
/// about the job.
#[must_use = "a ticket is how the result is had; use enqueue where it is not wanted"]
#[derive(Debug)]
pub struct Ticket {
    id: JobId,
    token: u64,
    answer: oneshot::Receiver<Answer>,
    shared: Arc<Shared>,
    answered: bool,
}

/// How a job that nothing is sent back for is looked for: quickly at first, then twice a second.
const POLL: Pace =
    Pace { first: Duration::ZERO, step: Duration::from_millis(10), step_max: Duration::from_millis(500) };

impl Ticket {
    /// The job.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// The job's result.
    pub async fn result(self) -> Result<JobResult, WaitError> {
        self.await
    }
}

impl Future for Ticket {
    type Output = Result<JobResult, WaitError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        self.answered = true;
        // A waiter is only ever dropped unanswered together with the whole client.
        Poll::Ready(answer.unwrap_or(Err(WaitError::Closed { id: self.id })))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.with_pending(|pending| pending.leave(self.id, self.token));
        }
    }
}

impl Client {
    /// Waits up to `patience` for the result of any job, submitted here or elsewhere.
    pub fn wait(&self, id: JobId, patience: Duration) -> BoxFuture<'_, Result<JobResult, WaitError>> {
        Box::pin(async move {
            let waited = async {
                let place =
                    self.shared.places.clone().acquire_owned().await.map_err(|_| WaitError::Closed { id })?;
                let wait = Wait { id, pace: POLL, give_up: None, submitted: None, place: Some(place) };
                self.shared.await_job(wait).await
            };
            timeout(patience, waited).await.unwrap_or(Err(WaitError::Timeout { id, waited: patience }))
        })
    }
}

impl Shared {
    pub(super) fn await_job(self: &Arc<Self>, wait: Wait) -> Ticket {
        let id = wait.id;
        let (token, answer) = self.with_pending(|pending| pending.add(wait, tokio::time::Instant::now()));
        Ticket { id, token, answer, shared: self.clone(), answered: false }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("reply_to", &self.reply_to).finish_non_exhaustive()
    }
}
