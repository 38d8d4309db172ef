//! Many jobs at once: streams in, streams out, bounded in between. Nothing runs ahead of whoever reads the outcomes
//! by more than the client's limits, so a slow reader or a full queue slows the source down.

use super::{Client, SubmitError, Ticket, WaitError};
use crate::submission::Submission;
use futures_util::{Stream, StreamExt};
use schemas::{JobId, JobResult};
use std::time::Duration;

/// How one of many jobs went.
#[derive(Debug)]
pub struct Done {
    /// Its place in the source, from 0.
    pub index: usize,
    /// Its id, if it got as far as being submitted.
    pub id: Option<JobId>,
    /// Its result.
    pub outcome: Result<JobResult, RunError>,
}

/// Why one of many jobs has no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was not submitted.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Its result did not come.
    #[error(transparent)]
    Wait(#[from] WaitError),
}

impl Client {
    /// Submits every job of `jobs` and gives its place in the source with its ticket, as the broker confirms them.
    pub fn submit_many<S>(&self, jobs: S) -> impl Stream<Item = (usize, Result<Ticket, SubmitError>)> + use<S>
    where
        S: Stream<Item = Submission>,
    {
        let client = self.clone();
        let submits = jobs.enumerate().map(move |(index, job)| {
            let client = client.clone();
            async move { (index, client.submit_when_free(job).await) }
        });
        submits.buffer_unordered(self.shared.config.in_flight_max)
    }

    /// Submits every job of `jobs` without a way back and gives its place in the source with its id, as the broker
    /// confirms them.
    pub fn enqueue_many<S>(&self, jobs: S) -> impl Stream<Item = (usize, Result<JobId, SubmitError>)> + use<S>
    where
        S: Stream<Item = Submission>,
    {
        let client = self.clone();
        let submits = jobs.enumerate().map(move |(index, job)| {
            let client = client.clone();
            async move { (index, client.enqueue(job).await) }
        });
        submits.buffer_unordered(self.shared.config.in_flight_max)
    }

    /// Submits every job of `jobs` and gives their results as they come.
    pub fn run_many<S>(&self, jobs: S) -> impl Stream<Item = Done> + use<S>
    where
        S: Stream<Item = Submission>,
    {
        let client = self.clone();
        let runs = jobs.enumerate().map(move |(index, job)| {
            let client = client.clone();
            async move {
                match client.submit_when_free(job).await {
                    Ok(ticket) => {
                        let id = Some(ticket.id());
                        Done { index, id, outcome: ticket.await.map_err(RunError::from) }
                    }
                    Err(error) => Done { index, id: None, outcome: Err(error.into()) },
                }
            }
        });
        runs.buffer_unordered(self.shared.config.pending_max)
    }

    /// Waits up to `patience` for each of these jobs, submitted here or elsewhere, and gives their results as they come.
    pub fn wait_many(
        &self,
        ids: Vec<JobId>,
        patience: Duration,
    ) -> impl Stream<Item = (JobId, Result<JobResult, WaitError>)> + use<> {
        let client = self.clone();
        let until = tokio::time::Instant::now() + patience;
        let waits = futures_util::stream::iter(ids).map(move |id| {
            let client = client.clone();
            async move {
                let left = until.saturating_duration_since(tokio::time::Instant::now());
                (id, client.wait(id, left).await)
            }
        });
        waits.buffer_unordered(self.shared.config.pending_max)
    }
}
