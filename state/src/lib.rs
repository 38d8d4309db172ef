//! Shared facts: how often models are asked for, which workers live and what room they have, how jobs ended,
//! which jobs are dead. One small port, [`State`], with adapters [`redis`] (many machines) and [`embedded`]
//! (this process); both pass one suite, [`conformance`]. What is too large for a message rests in [`blobs`].
//!
//! Everything here is a cache of facts, not the truth: the broker holds the jobs. Losing all of it costs repeated
//! runs and forgotten answers, never a job. What this crate must not do: place, retry or run a job.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod blobs;
#[cfg(feature = "conformance")]
pub mod conformance;
mod decode;
pub mod embedded;
pub mod facts;
pub mod redis;
mod registry;
pub mod room;
mod window;

pub use facts::{Batch, Facts, LaneFacts, ModelFacts, Sample};

use async_trait::async_trait;
use bytes::Bytes;
use schemas::dead::DeadEntry;
use schemas::heartbeat::{DispatcherReport, WorkerReport};
use schemas::{JobId, UnixMillis};
use std::time::Duration;

/// The port. Every method is one round trip, whatever the size of its batch, and may be called from many tasks
/// at once. Time is the state's own clock, so that processes whose clocks differ agree.
#[async_trait]
pub trait State: Send + Sync {
    /// Counts a batch of jobs and brings back what placing them takes to know. Room is claimed in the same atomic
    /// step, so that two dispatchers cannot fill one place twice.
    async fn observe(&self, batch: &Batch) -> Result<Facts, StateError>;

    /// Stores what the lanes' queues were last seen to hold. Voids all claims made before.
    async fn sample(&self, sample: &Sample) -> Result<(), StateError>;

    /// Whether `holder` may do the one-at-a-time chore `role` for the next `lease`; renews it if it is the holder's.
    async fn lead(&self, role: &str, holder: &str, lease: Duration) -> Result<bool, StateError>;

    /// A worker is alive and says so; forgotten after `keep` without another report.
    async fn report_worker(&self, report: &WorkerReport, keep: Duration) -> Result<(), StateError>;

    /// A worker has left.
    async fn forget_worker(&self, worker: &str) -> Result<(), StateError>;

    /// The workers alive, by lane and name.
    async fn workers(&self) -> Result<Vec<WorkerReport>, StateError>;

    /// A dispatcher is alive and says so; forgotten after `keep` without another report.
    async fn report_dispatcher(&self, report: &DispatcherReport, keep: Duration) -> Result<(), StateError>;

    /// A dispatcher has left.
    async fn forget_dispatcher(&self, dispatcher: &str) -> Result<(), StateError>;

    /// The dispatchers alive, by name.
    async fn dispatchers(&self) -> Result<Vec<DispatcherReport>, StateError>;

    /// Writes how jobs ended. For each job the first record ever written wins, atomically; the answer, in the order
    /// of `records`, is what is recorded now. Notes of starts are dropped for ended jobs.
    async fn finish(&self, records: &[Record]) -> Result<Vec<Finish>, StateError>;

    /// The encoded results recorded for `ids`, in their order.
    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<Bytes>>, StateError>;

    /// Notes that a run of each job begins, and says how many were noted before for the same attempt. A job that
    /// was noted and has no record killed its worker, or lost it. Notes are kept for `keep`.
    async fn note_starts(&self, starts: &[Start], keep: Duration) -> Result<Vec<u32>, StateError>;

    /// Adds dead jobs to the index, newest first, at most [`DEAD_INDEX_MAX`]; the oldest make room. Adding one twice
    /// changes nothing.
    async fn bury(&self, entries: &[DeadEntry]) -> Result<(), StateError>;

    /// A page of the index, newest first, from `offset`; and how many there are.
    async fn dead(&self, offset: u64, limit: u64) -> Result<(Vec<DeadEntry>, u64), StateError>;

    /// Entries by id, in the order of `ids`.
    async fn dead_entries(&self, ids: &[JobId]) -> Result<Vec<Option<DeadEntry>>, StateError>;

    /// Takes entries out of the index.
    async fn unbury(&self, ids: &[JobId]) -> Result<(), StateError>;

    /// The state's own clock, which also proves that it answers.
    async fn now(&self) -> Result<UnixMillis, StateError>;

    /// Lets go of connections and files. Later calls fail as unavailable.
    async fn close(&self);
}

/// Most entries in the index of dead jobs.
pub const DEAD_INDEX_MAX: u64 = 100_000;

/// What an adapter holds at most. The defaults are the contract; tests shrink them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries in the index of dead jobs.
    pub dead_max: u64,
    /// How long a model that no live worker runs any more counts as known.
    pub model_memory: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { dead_max: DEAD_INDEX_MAX, model_memory: facts::MODEL_MEMORY }
    }
}

/// How a job ended, to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The job.
    pub id: JobId,
    /// Its encoded [`schemas::JobResult`].
    pub result: Bytes,
    /// How long it is kept.
    pub keep: Duration,
}

/// What [`State::finish`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// This record is the first: it stands.
    Won,
    /// Another was first: this is its encoded result, and the one to reply with.
    Lost(Bytes),
}

/// A run about to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The job.
    pub id: JobId,
    /// The attempt.
    pub attempt: u8,
}

/// Why shared state could not answer. No message ever shows a password.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be reached, or went away.
    #[error("state {address} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port, or the folder of the embedded one.
        address: String,
        /// What the operating system or the protocol said.
        reason: String,
    },
    /// It does not accept our login.
    #[error("state {address} refuses the login: check state.url")]
    Credentials {
        /// Host and port.
        address: String,
    },
    /// It answered, and said no.
    #[error("state {address} refuses: {reason}")]
    Refused {
        /// Host and port.
        address: String,
        /// What it said.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("{field} {problem}")]
    Config {
        /// The setting, as in the configuration file.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// It answered with something we did not write.
    #[error("state key {key} holds what this build cannot read: {reason}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The embedded store cannot be used.
    #[error("store {path} cannot be used: {reason}")]
    Store {
        /// Its file.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
}
