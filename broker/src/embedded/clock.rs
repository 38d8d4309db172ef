//! The clock: wall time, so that due times keep their meaning over a restart, that never runs backwards.

use schemas::UnixMillis;
use std::time::{Instant, SystemTime};

/// Wall time as it was at the start, and what has passed since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: UnixMillis,
    running: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: SystemTime::now().into(), running: Instant::now() }
    }

    /// Milliseconds since the Unix epoch.
    pub(super) fn now(&self) -> u64 {
        self.started.plus(self.running.elapsed()).0
    }
}
