//! What every part of the worker uses, and the few things they all do with it.

use super::measure::Measures;
use super::recorder::Recorder;
use super::report::Failures;
use super::{Config, ending};
use crate::lane::Executor;
use backon::{BackoffBuilder, ExponentialBuilder};
use broker::{Broker, Message, PublishError, Queue, Route};
use bytes::Bytes;
use schemas::{JobHeader, JobId, Lane, ModelName};
use state::State;
use state::blobs::Blobs;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// First and longest pause between tries to publish.
const PUBLISH_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

pub(crate) struct Services {
    pub(crate) config: Config,
    pub(crate) lane: Lane,
    pub(crate) queue: String,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) state: Arc<dyn State>,
    pub(crate) blobs: Option<Arc<Blobs>>,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) models: HashSet<ModelName>,
    pub(crate) measures: Measures,
    pub(crate) recorder: Recorder,
    pub(crate) failures: Arc<Failures>,
}

/// A job as it came: its header read, its body not.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) header: JobHeader,
    /// The message without its packed header: the body, and headers that are not ours.
    pub(crate) message: Message,
    /// Whether it may have killed a worker: its start is noted and it runs alone.
    pub(crate) suspect: bool,
    /// Whether it was delivered before: whoever had it may have got as far as its record.
    pub(crate) redelivered: bool,
}

impl Services {
    pub(crate) fn place(&self) -> ending::Place<'_> {
        ending::Place { lane: self.lane, worker: &self.config.name, queue: &self.queue }
    }

    /// The record of a job, if there is one and state can be asked.
    pub(crate) async fn recorded(&self, id: JobId) -> Option<Bytes> {
        match timeout(self.config.state_timeout, self.state.fetch(&[id])).await {
            Ok(Ok(mut found)) => found.pop().flatten(),
            Ok(Err(error)) => {
                tracing::warn!(job.id = %id, %error, "failed to look for a record; taken as none");
                None
            }
            Err(_) => {
                tracing::warn!(job.id = %id, "state did not answer in time; its record is taken as none");
                None
            }
        }
    }

    /// Publishes, trying again while another try can help and there is time. A reply queue that is full stays so
    /// until its client reads; any other queue is worth waiting for.
    pub(crate) async fn publish(&self, route: Route, message: Message) -> Result<(), PublishError> {
        let reply = matches!(route, Route::To(Queue::Reply(_)));
        let until = Instant::now() + self.config.publish_patience;
        let pauses =
            ExponentialBuilder::default().with_min_delay(PUBLISH_PAUSE.0).with_max_delay(PUBLISH_PAUSE.1);
        let mut pauses = pauses.with_jitter().without_max_times().build();
        loop {
            let error = match self.broker.publish(route.clone(), message.clone()).await.await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let passing = match &error {
                PublishError::Lost | PublishError::Unavailable(_) => true,
                PublishError::Full { .. } => !reply,
                PublishError::Unroutable { .. }
                | PublishError::TooLarge { .. }
                | PublishError::Invalid(_)
                | PublishError::Closed => false,
            };
            let pause = pauses.next().unwrap_or(PUBLISH_PAUSE.1);
            if !passing || Instant::now() + pause >= until {
                return Err(error);
            }
            tracing::debug!(%error, queue = %route.queue(), "failed to publish; trying again");
            tokio::time::sleep(pause).await;
        }
    }
}
