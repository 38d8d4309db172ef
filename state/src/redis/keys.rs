//! The names of keys, and what goes into some of them. The table is in [`super`].

use crate::registry::takes_jobs;
use schemas::heartbeat::WorkerReport;
use schemas::{JobId, ModelName};
use std::time::Duration;

/// Longest that anything is kept, in milliseconds: a hundred years, which the scripts' arithmetic can bear.
const KEEP_MS_MAX: u64 = 100 * 365 * 24 * 3600 * 1000;

/// The names of keys under one prefix.
pub(super) struct Keys {
    prefix: String,
    /// The five that scripts about workers get, in their order.
    pub(super) workers: [String; 5],
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let workers = ["w", "wr", "ws", "wm", "wk"].map(|tail| format!("{prefix}:{tail}"));
        Self { prefix: prefix.to_owned(), workers }
    }

    /// A key of its own.
    pub(super) fn one(&self, tail: &str) -> String {
        format!("{}:{tail}", self.prefix)
    }

    /// The lease of a role.
    pub(super) fn lease(&self, role: &str) -> String {
        format!("{}:l:{role}", self.prefix)
    }

    /// A model's window.
    pub(super) fn window(&self, slice_us: u64, model: &ModelName) -> String {
        format!("{}:f:{slice_us}:{model}", self.prefix)
    }

    /// A job's record.
    pub(super) fn record(&self, id: &JobId) -> Vec<u8> {
        [self.prefix.as_bytes(), b":r:", id.as_bytes()].concat()
    }

    /// A job's noted starts.
    pub(super) fn starts(&self, id: &JobId) -> Vec<u8> {
        [self.prefix.as_bytes(), b":n:", id.as_bytes()].concat()
    }
}

/// A duration as the server takes expiries: whole milliseconds, at least one.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, KEEP_MS_MAX)
}

/// What of a worker decides more than sums: its lane, whether it takes jobs, and its models with a comma behind each.
pub(super) fn shape(report: &WorkerReport) -> String {
    let mut shape = format!("{}{}", report.lane.index(), if takes_jobs(report) { '-' } else { 'd' });
    for model in &report.models {
        shape.push_str(model.as_str());
        shape.push(',');
    }
    shape
}
