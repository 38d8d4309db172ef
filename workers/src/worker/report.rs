//! The heartbeat: what the worker says of itself, on change (coalesced) and at a steady beat.

use crate::lane::Executor;
use schemas::heartbeat::{Backend, LastFailure, Resources, WorkerReport};
use schemas::wire::WIRE_VERSION;
use schemas::{Failure, Lane, ModelName, UnixMillis};
use state::State;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};

/// Changes within this time go out together.
const COALESCE: Duration = Duration::from_millis(20);

/// What changes from report to report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) slots: u32,
    pub(crate) running: u32,
    pub(crate) prefetched: u32,
    pub(crate) completed_per_s: f64,
    pub(crate) draining: bool,
    pub(crate) abandoned: u32,
}

/// The attempt that failed last.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Option<LastFailure>>);

impl Failures {
    pub(crate) fn note(&self, model: &ModelName, failure: &Failure, at: UnixMillis) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total = last.as_ref().map_or(0, |last| last.total) + 1;
        *last = Some(LastFailure { at, model: model.clone(), failure: failure.clone(), total });
    }

    fn last(&self) -> Option<LastFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sends reports until the load's sender is gone, then says that the worker has left.
pub(crate) struct Reporter {
    pub(crate) state: Arc<dyn State>,
    pub(crate) load: watch::Receiver<Load>,
    pub(crate) about: About,
    pub(crate) failures: Arc<Failures>,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) resources: watch::Receiver<Resources>,
    /// Time between reports when nothing changes, and how long a report counts.
    pub(crate) beat: Duration,
    pub(crate) keep: Duration,
}

/// What never changes.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) worker: String,
    pub(crate) lane: Lane,
    pub(crate) queue: String,
    pub(crate) models: Vec<ModelName>,
    pub(crate) started: UnixMillis,
    pub(crate) build: String,
}

impl Reporter {
    fn report(&self, load: Load, backend: Option<Backend>) -> WorkerReport {
        let About { worker, lane, queue, models, started, build } = self.about.clone();
        WorkerReport {
            version: WIRE_VERSION,
            worker,
            lane,
            queue,
            slots: load.slots,
            running: load.running,
            prefetched: load.prefetched,
            completed_per_s: load.completed_per_s,
            models,
            draining: load.draining,
            abandoned: load.abandoned,
            last_failure: self.failures.last(),
            backend,
            resources: self.resources.borrow().clone(),
            started,
            build,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut beat = tokio::time::interval(self.beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first report knows what a first look finds, if that takes no longer than a beat.
        let _ = timeout(self.beat, self.resources.changed()).await;
        let (mut backend, mut slots) = (None, None);
        let mut reachable = true;
        loop {
            let changed = tokio::select! {
                _ = beat.tick() => false,
                changed = self.load.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    true
                }
            };
            let sent = Instant::now();
            let load = *self.load.borrow_and_update();
            // Containers and instances come and go with every job; a lane that comes or goes says so at once.
            if !changed || slots.replace(load.slots) != Some(load.slots) {
                backend = self.executor.backend();
            }
            let report = self.report(load, backend.clone());
            let answer = timeout(self.beat, self.state.report_worker(&report, self.keep)).await;
            let error = match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("state did not answer within {} ms", self.beat.as_millis())),
            };
            match error {
                Some(error) => {
                    metrics::counter!("straightline_reports_missed_total").increment(1);
                    if reachable {
                        tracing::warn!(%error, "failed to report; dispatchers will not see this worker");
                    }
                    reachable = false;
                }
                None if !reachable => {
                    tracing::info!("reporting again");
                    reachable = true;
                }
                None => {}
            }
            tokio::time::sleep_until(sent + COALESCE).await;
        }
        let forgotten = timeout(self.beat, self.state.forget_worker(&self.about.worker)).await;
        if !matches!(forgotten, Ok(Ok(()))) {
            tracing::debug!("failed to say that this worker has left; its last report will run out");
        }
    }
}
