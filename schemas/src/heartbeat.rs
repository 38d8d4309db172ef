//! What workers and dispatchers say of themselves.

use crate::failure::Failure;
use crate::lane::Lane;
use crate::names::ModelName;
use crate::time::UnixMillis;
use serde::{Deserialize, Serialize};

/// A worker's report: sent on change (coalesced) and at a steady beat, forgotten when the beat stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct WorkerReport {
    /// Major version of the wire.
    pub version: u8,
    /// The worker's own name: unique among all that live.
    pub worker: String,
    /// The lane it serves.
    pub lane: Lane,
    /// The queue it consumes, so that a lane may one day have several.
    pub queue: String,
    /// Jobs it can run at once.
    pub slots: u32,
    /// Jobs it is running.
    pub running: u32,
    /// Jobs it has taken and not yet started.
    pub prefetched: u32,
    /// Jobs it completed per second of late.
    pub completed_per_s: f64,
    /// The models it can run.
    pub models: Vec<ModelName>,
    /// Whether it has stopped taking jobs.
    pub draining: bool,
    /// Runs that outlived their time limit and still hold a thread.
    #[serde(default)]
    pub abandoned: u32,
    /// The attempt that failed last, if one has.
    #[serde(default)]
    pub last_failure: Option<LastFailure>,
    /// Who runs its jobs, where that is not the worker itself.
    #[serde(default)]
    pub backend: Option<Backend>,
    /// What its machine has.
    pub resources: Resources,
    /// When it started.
    pub started: UnixMillis,
    /// Version of its binary.
    pub build: String,
}

/// The attempt that failed last, and how many have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct LastFailure {
    /// When.
    pub at: UnixMillis,
    /// Whose run it was.
    pub model: ModelName,
    /// What went wrong.
    pub failure: Failure,
    /// Failed attempts since the worker started, this one included.
    pub total: u64,
}

/// Who runs a worker's jobs: a Docker engine, a function host, a server beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Backend {
    /// What it is and where, as a person would call it.
    pub name: String,
    /// Why it runs no job just now.
    #[serde(default)]
    pub problem: Option<String>,
    /// Jobs that wait for an instance.
    #[serde(default)]
    pub waiting: u32,
    /// What it has started, by model; at most [`crate::limits::BACKEND_MODELS_MAX`].
    #[serde(default)]
    pub instances: Vec<Instances>,
}

/// The containers of one model, or the instances of its function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Instances {
    /// Whose they are.
    pub model: ModelName,
    /// Not ready yet.
    pub starting: u32,
    /// Ready, and without a job.
    pub idle: u32,
    /// Running a job or more.
    pub busy: u32,
    /// On their way out: they take no more jobs.
    pub leaving: u32,
    /// What the backend calls them, where it names them; at most [`crate::limits::INSTANCE_IDS_MAX`].
    #[serde(default)]
    pub ids: Vec<String>,
    /// Why the latest did not start, until one does.
    #[serde(default)]
    pub problem: Option<String>,
}

impl Instances {
    /// None of them.
    pub fn none(model: ModelName) -> Self {
        Self { model, starting: 0, idle: 0, busy: 0, leaving: 0, ids: Vec::new(), problem: None }
    }

    /// Whether there is anything to tell.
    pub fn is_none(&self) -> bool {
        self.problem.is_none() && (self.starting, self.idle, self.busy, self.leaving) == (0, 0, 0, 0)
    }
}

/// One GPU, as far as its driver tells: `None` for what it does not, never zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Gpu {
    /// Its number, as containers ask for it.
    pub index: u32,
    /// Its unique id, as containers may ask for it too.
    #[serde(default)]
    pub uuid: Option<String>,
    /// What it is called.
    #[serde(default)]
    pub name: Option<String>,
    /// Its memory, in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Memory in use, in bytes.
    #[serde(default)]
    pub memory_used_bytes: Option<u64>,
    /// Share of time in which it was busy of late, 0 to 1.
    #[serde(default)]
    pub used: Option<f64>,
}

/// What a machine has and uses. `None` where a probe could not tell: never zero for unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Resources {
    /// Name of the machine.
    #[serde(default)]
    pub host: Option<String>,
    /// Processors the worker may use.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Share of all processors in use, 0 to 1.
    #[serde(default)]
    pub cpu_used: Option<f64>,
    /// Memory, in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Memory still available, in bytes.
    #[serde(default)]
    pub memory_available_bytes: Option<u64>,
    /// Memory this process holds, in bytes.
    #[serde(default)]
    pub process_memory_bytes: Option<u64>,
    /// Free space where the worker keeps its data, in bytes.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
    /// Bytes received per second over all network interfaces but loopback.
    #[serde(default)]
    pub network_received_bytes_per_s: Option<f64>,
    /// Bytes sent per second over all network interfaces but loopback.
    #[serde(default)]
    pub network_sent_bytes_per_s: Option<f64>,
    /// Its GPUs; `None` where no driver tells.
    #[serde(default)]
    pub gpus: Option<Vec<Gpu>>,
}

/// A dispatcher's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct DispatcherReport {
    /// Major version of the wire.
    pub version: u8,
    /// The dispatcher's own name.
    pub dispatcher: String,
    /// Deliveries it holds, not yet settled: what the broker calls unacknowledged.
    pub held: u32,
    /// Jobs it placed per second of late.
    pub placed_per_s: f64,
    /// Name of the placement policy it runs.
    pub policy: String,
    /// Whether it has stopped taking jobs.
    pub draining: bool,
    /// When it started.
    pub started: UnixMillis,
    /// Version of its binary.
    pub build: String,
}
