//! The serverless lane: a job is one event for a function that somebody else runs.
//!
//! [`Functions`] is the port; [`host`] runs functions on this machine, [`lambda`] asks AWS Lambda's Invoke API.
//! [`Serverless`] makes a lane of either. A function that is an HTTP server of its own needs no events: [`mod@http`] is that
//! lane. [`function`] is the other side: the function in ours.
//!
//! What this module owns: the event, the reading of the answer, and whose fault a failure is. What it must not do:
//! retry, or know where a function runs.
//!
//! An event is an Open Inference Protocol request as JSON that names its model; the answer is a response as JSON. So a
//! function in any language needs a JSON reader and nothing of ours.

mod event;
pub mod function;
pub mod host;
pub mod http;
pub mod lambda;

use crate::lane::{Capacity, Executor, InvalidConfig, Ran, Task};
use async_trait::async_trait;
use bytes::Bytes;
use schemas::heartbeat::Backend;
use schemas::{Failure, Lane, ModelName};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// AWS Lambda's limit of an event, and of an answer, in bytes.
pub const LAMBDA_PAYLOAD_BYTES_MAX: usize = 6 * 1024 * 1024;

/// The port: somewhere that runs a model's function.
#[async_trait]
pub trait Functions: Send + Sync {
    /// Runs the function of `call` once, within its limit, cold start included, and gives back what it answered,
    /// whatever that is. An error other than [`InvokeError::Function`] or [`InvokeError::TimedOut`] says that no function has seen the event.
    /// Dropping the future gives the run up.
    async fn invoke(&self, call: Call) -> Result<Bytes, InvokeError>;

    /// Who that is, and how it is just now.
    fn backend(&self) -> Backend;

    /// Ends what runs. Later calls fail.
    async fn stop(&self);
}

/// One event for one function.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whose function.
    pub model: ModelName,
    /// JSON.
    pub event: Bytes,
    /// How long it may take.
    pub limit: Duration,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    /// The function ran, or tried to start, and failed.
    #[error("{type_}: {message}")]
    Function {
        /// The kind of error, as the function or its host names it: `ValueError`, `Runtime.ExitError`.
        type_: String,
        /// What it said.
        message: String,
    },
    /// As many run as may.
    #[error("{words}")]
    Throttled {
        /// Who says so, and why.
        words: String,
        /// When to come back, where that is said.
        retry_after: Option<Duration>,
    },
    /// The event is longer than is taken there.
    #[error("{0}")]
    TooLarge(String),
    /// It took longer than its limit.
    #[error("{0}")]
    TimedOut(String),
    /// Nobody was reached who could run it, or it is not there.
    #[error("{0}")]
    Unreachable(String),
}

/// Settings of the lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Jobs it runs at once: the provider's concurrency limit, or this worker's share of it. Default 10.
    pub concurrency_max: u32,
    /// Longest event, in bytes; a job with a longer one fails without being invoked. Default: AWS Lambda's 6 MiB.
    pub payload_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { concurrency_max: 10, payload_bytes_max: LAMBDA_PAYLOAD_BYTES_MAX }
    }
}

/// The lane over a port.
pub struct Serverless {
    functions: Arc<dyn Functions>,
    models: Vec<ModelName>,
    payload_bytes_max: usize,
    capacity: watch::Sender<Capacity>,
    away: Away,
}

/// By model: why nobody who runs its function was reached of late, until one is.
#[derive(Default)]
struct Away(Mutex<BTreeMap<ModelName, String>>);

impl Away {
    fn note(&self, model: &ModelName, problem: Option<String>) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => noted.insert(model.clone(), problem),
            None => noted.remove(model),
        };
    }

    /// How that provider is then, which says nothing of it itself.
    fn told(&self, backend: Backend) -> Backend {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Backend { problem: backend.problem.or_else(|| noted.values().next().cloned()), ..backend }
    }
}

impl Serverless {
    /// A lane that runs `models` on `functions`.
    pub fn new(
        config: &Config,
        functions: Arc<dyn Functions>,
        models: Vec<ModelName>,
    ) -> Result<Self, InvalidConfig> {
        let Config { concurrency_max: slots, payload_bytes_max } = *config;
        if slots == 0 {
            let problem = "is 0: use the number of functions that may run at once";
            return Err(InvalidConfig::new("serverless.concurrency_max", problem));
        }
        if models.is_empty() {
            let problem = "is empty: name the models that have a function";
            return Err(InvalidConfig::new("serverless.models", problem));
        }
        let capacity = watch::Sender::new(Capacity { slots, abandoned: 0 });
        Ok(Self { functions, models, payload_bytes_max, capacity, away: Away::default() })
    }
}

#[async_trait]
impl Executor for Serverless {
    fn lane(&self) -> Lane {
        Lane::Serverless
    }

    fn models(&self) -> Vec<ModelName> {
        self.models.clone()
    }

    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.subscribe()
    }

    fn backend(&self) -> Option<Backend> {
        Some(self.away.told(self.functions.backend()))
    }

    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let model = task.model.clone();
        let call = event::of(task, self.payload_bytes_max).await?;
        let began = Instant::now();
        let answer = self.functions.invoke(call).await;
        let away = answer.as_ref().err().filter(|error| matches!(error, InvokeError::Unreachable(_)));
        self.away.note(&model, away.map(|error| format!("function of {model} {error}")));
        let answer = answer.map_err(|error| event::failure(&model, error))?;
        event::ran(model, answer, began.elapsed()).await
    }

    async fn stop(&self) {
        self.capacity.send_replace(Capacity::default());
        self.functions.stop().await;
    }
}

#[cfg(test)]
mod tests;
