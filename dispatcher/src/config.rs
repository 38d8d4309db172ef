//! Settings of a dispatcher, parsed and checked before anything is opened.

use crate::policy::Choice;
use schemas::Lane;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of a dispatcher.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its name, unique among all that live.
    pub name: String,
    /// The placement policy.
    pub policy: Choice,
    /// F: requests per second of one model above which it counts as asked for often.
    pub frequency_threshold: f64,
    /// D: bytes from which an input counts as large.
    pub size_threshold: u64,
    /// How far back the frequency looks.
    pub window: Duration,
    /// How long a job may be held in memory for want of room before it is moved to a wait queue.
    pub hold_max: Duration,
    /// Jobs taken from each class and not yet settled, at most.
    pub prefetch: u32,
    /// Jobs taken from each wait queue and not yet settled, at most.
    pub wait_prefetch: u32,
    /// Time between two looks at the lanes' queues.
    pub sample_interval: Duration,
    /// Longest queue a lane is given beyond its slots; what it completes between two looks is the usual one.
    pub lane_queue_max: u32,
    /// A lane that had no live worker for so long has its queue taken back.
    pub lane_gone_after: Duration,
    /// Largest input of each lane in bytes, by [`Lane::index`]; none where the lane has no limit of its own.
    pub payload_max: [Option<u64>; 3],
    /// How long records of results are kept.
    pub record_keep: Duration,
    /// The deployment's inline limit: no message body should be larger, and none above twice that is taken on.
    pub inline_bytes_max: usize,
    /// Memory that deliveries in hand may take, in bytes; prefetches × inline limit must fit.
    pub memory_budget: usize,
    /// File that every placement is written to, with all that it was decided by; see [`crate::journal`].
    pub placement_log: Option<PathBuf>,
    /// Version of the binary, for status.
    pub build: String,
}

impl Default for Config {
    fn default() -> Self {
        let mut payload_max = [None; 3];
        // AWS Lambda takes events of 6 MiB, and a number of four bytes takes up to some fifteen characters of JSON.
        payload_max[Lane::Serverless.index()] = Some(1_500_000);
        Self {
            name: "dispatcher".to_owned(),
            policy: Choice::Straightline,
            frequency_threshold: 20.0,
            size_threshold: 64 * 1024,
            window: Duration::from_secs(10),
            hold_max: Duration::from_secs(1),
            prefetch: 256,
            wait_prefetch: 32,
            sample_interval: Duration::from_millis(100),
            lane_queue_max: 10_000,
            lane_gone_after: Duration::from_secs(2),
            payload_max,
            record_keep: schemas::limits::RECORD_RETENTION_DEFAULT,
            inline_bytes_max: schemas::limits::INLINE_BYTES_DEFAULT,
            memory_budget: 320 * 1024 * 1024,
            placement_log: None,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidConfig {
    /// The setting, as in the configuration file.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Config {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let invalid = |field, problem: String| Err(InvalidConfig { field, problem });
        if !(self.frequency_threshold.is_finite() && self.frequency_threshold >= 0.0) {
            return invalid(
                "dispatcher.frequency_threshold",
                format!("is {}: use 0 or more", self.frequency_threshold),
            );
        }
        for (field, span) in [
            ("dispatcher.window", self.window),
            ("dispatcher.hold_max", self.hold_max),
            ("dispatcher.sample_interval", self.sample_interval),
        ] {
            if span < Duration::from_millis(10) {
                return invalid(field, format!("is {span:?}: use 10ms or more"));
            }
        }
        if self.prefetch == 0 || self.wait_prefetch == 0 {
            return invalid("dispatcher.prefetch", "is 0: use 1 or more".to_owned());
        }
        let in_hand = self.deliveries_max().saturating_mul(self.inline_bytes_max);
        if in_hand > self.memory_budget {
            return invalid(
                "dispatcher.memory_budget",
                format!(
                    "is {} bytes, but {} deliveries of up to {} bytes may be in hand: lower dispatcher.prefetch or limits.inline_bytes, or raise the budget to {in_hand}",
                    self.memory_budget,
                    self.deliveries_max(),
                    self.inline_bytes_max
                ),
            );
        }
        Ok(())
    }

    /// Deliveries in hand at most: three classes, nine wait queues, three lane queues taken back, one intake.
    fn deliveries_max(&self) -> usize {
        3 * self.prefetch as usize + (9 + 3 + 1) * self.wait_prefetch as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_a_budget_too_small_is_told_what_would_do() {
        Config::default().check().unwrap();
        let small = Config { memory_budget: 1, ..Config::default() };
        let error = small.check().unwrap_err().to_string();
        assert!(
            error.contains("dispatcher.memory_budget") && error.contains("raise the budget to"),
            "{error}"
        );
        let odd = Config { frequency_threshold: f64::NAN, ..Config::default() };
        assert!(odd.check().unwrap_err().to_string().contains("frequency_threshold"));
    }
}
