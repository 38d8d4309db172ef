//! A lane, as the worker loop sees it: something that runs one task in one of its slots.
//!
//! [`Executor`] is the port. [`crate::local`] is the lane in this process; [`crate::docker`] and [`crate::serverless`] stand
//! beside it. What a lane owns: how a run is started, limited in time and ended. What it must not do: decide
//! about retries, touch queues or records. Inputs and outputs that rest in the blob store are fetched and stored
//! by the worker, so that no lane has to know of them.

mod held;

pub use held::Held;

use async_trait::async_trait;
use schemas::body::Parameter;
use schemas::heartbeat::Backend;
use schemas::{Failure, JobId, Lane, ModelName, Payload};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

/// The port.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Which lane this is.
    fn lane(&self) -> Lane;

    /// The models it can run.
    fn models(&self) -> Vec<ModelName>;

    /// What it can take, and changes of that. The worker never has more runs under way than slots.
    fn capacity(&self) -> watch::Receiver<Capacity>;

    /// Who runs its tasks, where that is not this process, and how that one is just now. Asked at every heartbeat.
    fn backend(&self) -> Option<Backend> {
        None
    }

    /// What would keep a model from being run, as far as that can be told without running it.
    async fn obstacles(&self) -> Vec<Failure> {
        Vec::new()
    }

    /// Runs `task` once, within [`Task::limit`]. A failure says whose fault it was by its kind: `Busy` costs the job
    /// no attempt. Dropping the future gives the run up: a lane that can stop a run does so, and one that cannot
    /// lets nobody see its end.
    async fn run(&self, task: Task) -> Result<Ran, Failure>;

    /// Whether quick tasks gain by [`Executor::run_in_turn`]: true where handing a task over costs about as much as a quick
    /// one takes to run.
    fn gathers(&self) -> bool {
        false
    }

    /// Runs tasks one after the other in one slot, each within its own limit, and gives their ends in their order. One that
    /// outlives its limit fails alone: those behind it run all the same.
    async fn run_in_turn(&self, tasks: Vec<Task>) -> Vec<Result<Ran, Failure>> {
        let mut ends = Vec::with_capacity(tasks.len());
        for task in tasks {
            ends.push(self.run(task).await);
        }
        ends
    }

    /// Ends the lane: idle parts at once, busy ones within a bound of the lane's own. Later runs fail.
    async fn stop(&self);
}

/// A setting of a lane that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidConfig {
    /// The setting, as in the configuration file.
    pub field: Cow<'static, str>,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl InvalidConfig {
    pub(crate) fn new(field: impl Into<Cow<'static, str>>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// What a lane can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Jobs it can run at once; 0 while it takes none.
    pub slots: u32,
    /// Runs that outlived their limit and still hold something.
    pub abandoned: u32,
}

/// One attempt of one job, ready to run.
#[derive(Clone, Debug)]
pub struct Task {
    /// The job.
    pub id: JobId,
    /// The model it asks for.
    pub model: ModelName,
    /// The number of this attempt, from 1.
    pub attempt: u8,
    /// The input: tensors or bytes, never a blob reference.
    pub input: Payload,
    /// The outputs wanted; empty means all.
    pub outputs: Vec<String>,
    /// Parameters, whose meaning is the model's.
    pub parameters: BTreeMap<String, Parameter>,
    /// How long it may run.
    pub limit: Duration,
}

/// A run that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the model answered: tensors or bytes, never a blob reference.
    pub output: Payload,
    /// How long the model itself ran.
    pub run_time: Duration,
}
