//! The local lane: models in this process, on threads of their own.
//!
//! There are as many model threads as slots (one per core, unless told otherwise), and each run stays on its
//! thread: parallelism comes from slots, so that a model that could spread over all cores does not take those of
//! its neighbours. A task, or several quick ones together, goes to an idle thread through that thread's channel, and a
//! oneshot says that all have run; nothing of a model ever runs on the async runtime.
//!
//! A run that outlives its limit cannot be stopped, only left: its thread is *abandoned* and another takes its
//! place, so that the slot is free again. An abandoned thread keeps its core busy, so there may be at most
//! [`Config::abandoned_max`] of them; beyond that the lane takes no jobs until enough have come back. One that
//! comes back ends.
//!
//! Invariants: idle permits = idle threads; a thread is idle, busy, abandoned or gone, and moves between these
//! under one lock; a panic in a model is a failure of that run and costs no thread.

pub mod beside;
mod threads;

use crate::catalog::Catalog;
use crate::lane::{Capacity, Executor, Ran, Task};
use crate::runtime::diagnose::{Diagnostic, Stop};
use crate::runtime::rten::Rten;
use crate::runtime::{LoadError, Model, Runtime};
use async_trait::async_trait;
use schemas::{Failure, FailureKind, Lane, ModelName};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use threads::Threads;
use tokio::sync::watch;

/// Most slots: each is a thread, and more than cores only makes runs slower.
pub const SLOTS_MAX: u32 = 1024;

/// Settings of the local lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Jobs it runs at once; by default one per core that this process may use.
    pub slots: u32,
    /// Most threads held by runs that outlived their limit. With more, the lane takes no jobs.
    pub abandoned_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { slots: u32::try_from(cores).unwrap_or(SLOTS_MAX).min(SLOTS_MAX), abandoned_max: 8 }
    }
}

/// Why the lane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting that cannot work.
    #[error("worker.slots is {0}: use 1 to {SLOTS_MAX}")]
    Slots(u32),
    /// A model would not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The operating system gives no thread.
    #[error("model thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// Nothing to run.
    #[error("local lane has no models: point --models at a folder with some")]
    NoModels,
}

/// How long [`Executor::stop`] waits for busy threads. One that is still busy then dies with the process.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The lane.
pub struct Local {
    models: Arc<Models>,
    threads: Arc<Threads>,
}

/// What its threads can run.
struct Models {
    by_name: BTreeMap<ModelName, Runnable>,
    stop: Stop,
}

enum Runnable {
    Model(Model),
    Diagnostic(Diagnostic),
}

impl Local {
    /// Loads every model of `catalog` and starts the threads. Loading is CPU work: call it before there is anything
    /// to hold up, or on a blocking thread.
    pub fn start(config: Config, catalog: &Catalog) -> Result<Self, StartError> {
        Self::start_on(Arc::new(Rten), config, catalog)
    }

    /// [`Self::start`] on another runtime than the one every worker has.
    pub fn start_on(
        runtime: Arc<dyn Runtime>,
        config: Config,
        catalog: &Catalog,
    ) -> Result<Self, StartError> {
        if config.slots == 0 || config.slots > SLOTS_MAX {
            return Err(StartError::Slots(config.slots));
        }
        let mut by_name = BTreeMap::new();
        for entry in catalog.entries() {
            let began = Instant::now();
            let model = Model::load(&*runtime, entry)?;
            by_name.insert(entry.contract.name.clone(), Runnable::Model(model));
            tracing::info!(
                model = %entry.contract.name,
                model.version = %entry.contract.version,
                runtime = runtime.name(),
                load_ms = began.elapsed().as_millis(),
                "model loaded"
            );
        }
        if catalog.diagnostics() {
            by_name.extend(Diagnostic::all().map(|(name, this)| (name, Runnable::Diagnostic(this))));
        }
        if by_name.is_empty() {
            return Err(StartError::NoModels);
        }
        let models = Arc::new(Models { by_name, stop: Stop::default() });
        let work = Arc::clone(&models);
        let threads =
            Threads::start(config.slots, config.abandoned_max, runtime, move |task| work.run(task))?;
        Ok(Self { models, threads })
    }
}

#[async_trait]
impl Executor for Local {
    fn lane(&self) -> Lane {
        Lane::Local
    }

    fn models(&self) -> Vec<ModelName> {
        self.models.by_name.keys().cloned().collect()
    }

    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.threads.capacity()
    }

    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let gone = || Failure::new(FailureKind::Internal, "a run had no end");
        self.threads.run(vec![task]).await.pop().unwrap_or_else(|| Err(gone()))
    }

    fn gathers(&self) -> bool {
        true
    }

    async fn run_in_turn(&self, tasks: Vec<Task>) -> Vec<Result<Ran, Failure>> {
        self.threads.run(tasks).await
    }

    async fn stop(&self) {
        self.models.stop.stop();
        let left = self.threads.stop(STOP_GRACE).await;
        if left > 0 {
            tracing::warn!(threads = left, "model threads are still busy; they end with the process");
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.models.stop.stop();
        // The threads hold each other's table: without this they would wait for tasks for ever.
        self.threads.close();
    }
}

impl Models {
    /// One run, on a model thread.
    fn run(&self, task: Task) -> Result<Ran, Failure> {
        let Some(runnable) = self.by_name.get(&task.model) else {
            let message = format!("this worker has no model {}", task.model);
            return Err(Failure::new(FailureKind::UnknownModel, message));
        };
        let began = Instant::now();
        let name = task.model.clone();
        // Nothing of ours is changed by a run, so nothing is left half-changed by one that panics.
        let output = catch_unwind(AssertUnwindSafe(|| match runnable {
            Runnable::Model(model) => model.infer(&task.input, &task.outputs),
            Runnable::Diagnostic(this) => this.run(task.attempt, task.input, &task.parameters, &self.stop),
        }));
        let output = output.unwrap_or_else(|panic| {
            let words =
                panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            let message = format!("model {name} panicked: {}", words.unwrap_or("without a word"));
            Err(Failure::new(FailureKind::ModelError, message))
        })?;
        Ok(Ran { output, run_time: began.elapsed() })
    }
}

#[cfg(test)]
mod tests;
