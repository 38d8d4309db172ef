//! What workers and dispatchers say of themselves.

use crate::lane::Lane;
use crate::names::ModelName;
use crate::time::UnixMillis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A worker's report: sent on change (coalesced) and at a steady beat, forgotten when the beat stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// What its machine has.
    pub resources: Resources,
    /// When it started.
    pub started: UnixMillis,
    /// Version of its binary.
    pub build: String,
}

/// What a machine has and uses. `None` where a probe could not tell: never zero for unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
}

/// A dispatcher's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
