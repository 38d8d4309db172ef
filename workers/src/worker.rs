//! The worker: takes placed jobs from its lane's queue, runs them in the lane, sees each to its end.
//!
//! What it owns: the deliveries in its hand, each settled once, and only after everything that must outlive it is
//! confirmed. What it must not do: choose lanes, decide about retries (that is [`schemas::retry`]), know how a lane runs a
//! task (that is [`crate::lane`]).
//!
//! What must hold here:
//! - A job's result is recorded before it is published, and what is published is the record: ours, or an earlier one.
//! - A job that was delivered before is answered from its record if it has one. If not, its start is noted and it runs
//!   alone, so that a job that kills its worker is found out; a start noted before for the same attempt is a failed
//!   attempt. Its neighbours, delivered again as well, were never noted, and so are not charged.
//! - A first delivery costs shared state nothing before its run.
//! - With shared state away jobs run on and replies go out unrecorded, counted and logged. A reply queue that is gone
//!   or full is never a reason to run a job again.
//! - Everything in hand is bounded: deliveries by the prefetch, bytes by prefetch × inline limit.

mod attempt;
mod cancelled;
mod ending;
mod gather;
mod hand;
mod intake;
mod line;
mod measure;
pub(crate) mod offload;
mod pace;
mod recorder;
mod report;
mod run;
mod services;
mod settle;
#[cfg(test)]
mod tests;

use crate::lane::Executor;
use crate::probe::Probe;
use broker::{Broker, BrokerError, Queue};
use futures_util::future::BoxFuture;
use intake::Intake;
use measure::Measures;
use recorder::Recorder;
use report::{About, Failures, Load, Reporter};
use run::{Ended, Loop, Wires};
use schemas::UnixMillis;
use schemas::limits::{INLINE_BYTES_DEFAULT, INLINE_BYTES_MAX, RECORD_RETENTION_DEFAULT};
use schemas::retry::RetryPolicy;
use services::Services;
use state::State;
use state::blobs::Blobs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};

/// Settings of a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its name, unique among all that live.
    pub name: String,
    /// Whether and when failed attempts are made again.
    pub retry: RetryPolicy,
    /// Longest run of one attempt; a job may ask for less.
    pub run_timeout: Duration,
    /// How long records of results are kept.
    pub record_keep: Duration,
    /// The deployment's inline limit, in bytes: a larger output goes through the blob store. No body should be larger,
    /// and none above twice that is taken on.
    pub inline_bytes_max: usize,
    /// Memory that deliveries in hand may take, in bytes; prefetch × inline limit stays inside.
    pub memory_budget: usize,
    /// Deliveries in hand at most.
    pub prefetch_max: u32,
    /// How long publishing a job's end is tried before the job goes back to its queue.
    pub publish_patience: Duration,
    /// How long one call to shared state may take before it counts as away.
    pub state_timeout: Duration,
    /// How long one call to the blob store may take.
    pub blob_timeout: Duration,
    /// Time between heartbeats when nothing changes.
    pub beat: Duration,
    /// How long a heartbeat counts.
    pub beat_keep: Duration,
    /// Where the worker keeps its data, for the probe of free disk space.
    pub data_dir: Option<PathBuf>,
    /// Version of the binary, for status.
    pub build: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "worker".to_owned(),
            retry: RetryPolicy::default(),
            run_timeout: Duration::from_secs(60),
            record_keep: RECORD_RETENTION_DEFAULT,
            inline_bytes_max: INLINE_BYTES_DEFAULT,
            memory_budget: 128 << 20,
            prefetch_max: 256,
            publish_patience: Duration::from_secs(30),
            state_timeout: Duration::from_secs(2),
            blob_timeout: Duration::from_secs(30),
            beat: Duration::from_secs(1),
            beat_keep: Duration::from_secs(5),
            data_dir: None,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Config {
    /// Checks what the types cannot, for a lane of so many slots.
    pub fn check(&self, slots: u32) -> Result<(), StartError> {
        let invalid = |field, problem: String| Err(StartError::Config { field, problem });
        if self.name.is_empty() {
            return invalid("worker.name", "is empty: use a name that no other worker has".to_owned());
        }
        if self.inline_bytes_max == 0 || self.inline_bytes_max > INLINE_BYTES_MAX {
            return invalid(
                "limits.inline_bytes",
                format!("is {}: use 1 to {INLINE_BYTES_MAX}", self.inline_bytes_max),
            );
        }
        if self.run_timeout.is_zero() {
            return invalid(
                "worker.run_timeout",
                "is 0: use the longest run there may be, such as 60s".to_owned(),
            );
        }
        if self.beat.is_zero() || self.beat_keep < self.beat * 2 {
            return invalid("worker.beat_keep", format!("is {:?}: use at least two beats", self.beat_keep));
        }
        let least = (slots.max(1) as usize).saturating_mul(self.inline_bytes_max);
        if least > self.memory_budget {
            return invalid(
                "worker.memory_budget",
                format!(
                    "is {} bytes, but {slots} slots need {slots} deliveries of up to {} bytes: lower worker.slots or limits.inline_bytes, or raise the budget to {least}",
                    self.memory_budget, self.inline_bytes_max
                ),
            );
        }
        Ok(())
    }

    /// Deliveries in hand at most, within the memory budget.
    fn prefetch_most(&self) -> u32 {
        let fitting = self.memory_budget / self.inline_bytes_max.max(1);
        self.prefetch_max.min(u32::try_from(fitting).unwrap_or(u32::MAX)).max(1)
    }

    /// Longest body taken on: twice the inline limit, as dispatchers have it.
    fn body_bytes_max(&self) -> usize {
        self.inline_bytes_max.saturating_mul(2)
    }
}

/// Why a worker could not start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// A setting that cannot work.
    #[error("{field} {problem}")]
    Config {
        /// The setting, as in the configuration file.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The lane's queue cannot be consumed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Why a worker ended that was not told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    /// The broker was closed under it.
    #[error("worker ended because its broker was closed")]
    BrokerClosed,
    /// Its own code failed.
    #[error("worker's own code panicked; the log says where")]
    Panicked,
}

/// How far a worker is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Working,
    Draining,
    Halting,
}

/// A running worker. Dropping it halts it.
pub struct Worker {
    phase: watch::Sender<Phase>,
    ended: watch::Receiver<Option<Result<(), WorkerError>>>,
    registered: Arc<AtomicBool>,
}

impl Worker {
    /// Starts taking jobs of `executor`'s lane. The worker ends the executor when it ends itself.
    pub fn start(
        config: Config,
        broker: Arc<dyn Broker>,
        state: Arc<dyn State>,
        blobs: Option<Arc<Blobs>>,
        executor: Arc<dyn Executor>,
    ) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(async move {
            measure::describe();
            let capacity = executor.capacity();
            let slots = capacity.borrow().slots;
            config.check(slots)?;
            let lane = executor.lane();
            let queue = Queue::Lane(lane);
            let broadcasts = broker.listen().await?;
            let (prefetch, wanted) = watch::channel(slots);
            let (arrived, arrivals) = mpsc::channel(config.prefetch_max.max(1) as usize);
            let registered = Arc::new(AtomicBool::new(false));
            let intake =
                Intake::start(Arc::clone(&broker), queue.clone(), wanted, arrived, Arc::clone(&registered));
            intake.await?;

            let models = executor.models();
            let (load, reported) = watch::channel(Load { slots, ..Load::default() });
            let failures = Arc::<Failures>::default();
            let reporter = Reporter {
                state: Arc::clone(&state),
                load: reported,
                failures: Arc::clone(&failures),
                executor: Arc::clone(&executor),
                about: About {
                    worker: config.name.clone(),
                    lane,
                    queue: queue.to_string(),
                    models: models.clone(),
                    started: UnixMillis::from(SystemTime::now()),
                    build: config.build.clone(),
                },
                resources: Probe::new(config.data_dir.clone()).watch(config.beat),
                beat: config.beat,
                keep: config.beat_keep,
            };
            let recorder = Recorder::start(Arc::clone(&state), config.record_keep, config.state_timeout);
            let (phase, phases) = watch::channel(Phase::Working);
            let (end, ended) = watch::channel(None);
            tracing::info!(worker = %config.name, %lane, slots, models = models.len(), "taking jobs");
            let models = models.into_iter().collect();
            let services = Arc::new(Services {
                config,
                lane,
                queue: queue.to_string(),
                broker,
                state,
                blobs,
                executor,
                measures: Measures::new(lane, &models),
                models,
                recorder,
                failures,
            });
            let wires = Wires { arrivals, broadcasts, capacity, phase: phases, prefetch, load };
            tokio::spawn(live(services, wires, reporter, end));
            Ok(Self { phase, ended, registered })
        })
    }

    /// Takes no more jobs and finishes those in hand; [`Worker::join`] says when that is done.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Gives every job in hand back to its queue at once, running ones included.
    pub fn halt(&self) {
        self.advance(Phase::Halting);
    }

    /// Waits until the worker has ended: drained, halted, or for want of a broker, which is an error.
    pub async fn join(&self) -> Result<(), WorkerError> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => (*ended).unwrap_or(Ok(())),
            Err(_) => Err(WorkerError::Panicked),
        }
    }

    /// Whether the broker has this worker's consumer on its list: what liveness means for a worker.
    pub fn registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        });
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.halt();
    }
}

/// The worker's whole life.
async fn live(
    services: Arc<Services>,
    wires: Wires,
    reporter: Reporter,
    end: watch::Sender<Option<Result<(), WorkerError>>>,
) {
    let (worker, executor) = (services.config.name.clone(), Arc::clone(&services.executor));
    let reporting = tokio::spawn(reporter.run());
    let looping = tokio::spawn(Loop::new(services, wires).run()).await;
    // The loop is gone, and with it the load's sender: the reporter says goodbye and ends.
    executor.stop().await;
    if let Err(error) = reporting.await {
        tracing::error!(%error, "the worker's heartbeat ended badly");
    }
    let outcome = match looping {
        Ok(Ended::Drained | Ended::Halted) => Ok(()),
        Ok(Ended::BrokerClosed) => Err(WorkerError::BrokerClosed),
        Err(_) => Err(WorkerError::Panicked),
    };
    match &outcome {
        Ok(()) => tracing::info!(%worker, "ended"),
        Err(error) => tracing::error!(%worker, %error, "ended badly"),
    }
    end.send_replace(Some(outcome));
}
