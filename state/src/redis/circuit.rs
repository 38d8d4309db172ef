//! Keeps the path of jobs from waiting, call after call, for a server that is away. Pure; the clock is explicit.
//!
//! After a failure every call fails at once for [`PAUSE`]; then one call goes through to find out, and while it does the
//! others still fail at once. A probe that never reports back is followed by the next.

use crate::StateError;
use std::time::{Duration, Instant};

/// How long calls fail at once after a failure.
pub(super) const PAUSE: Duration = Duration::from_millis(250);

/// Whether calls go through.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    until: Instant,
    why: StateError,
}

impl Circuit {
    /// Whether a call may go through at `now`; if not, why. `probe_max` is the longest a call can take.
    pub(super) fn admit(&mut self, now: Instant, probe_max: Duration) -> Result<(), StateError> {
        match &mut self.open {
            Some(open) if now < open.until => Err(open.why.clone()),
            Some(open) => {
                open.until = now + probe_max;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A call failed; whether that opened the circuit.
    pub(super) fn failed(&mut self, now: Instant, why: StateError) -> bool {
        self.open.replace(Open { until: now + PAUSE, why }).is_none()
    }

    /// A call was answered; whether that closed the circuit.
    pub(super) fn answered(&mut self) -> bool {
        self.open.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Duration = Duration::from_secs(2);

    fn away() -> StateError {
        StateError::Unreachable { address: "redis:6379".to_owned(), reason: "connection refused".to_owned() }
    }

    #[test]
    fn after_a_failure_one_call_at_a_time_finds_out() {
        let (mut circuit, start) = (Circuit::default(), Instant::now());
        assert!(circuit.admit(start, PROBE).is_ok());
        assert!(circuit.failed(start, away()), "opened");
        let early = start + PAUSE - Duration::from_millis(1);
        assert!(circuit.admit(early, PROBE).unwrap_err().to_string().contains("connection refused"));
        assert!(circuit.admit(start + PAUSE, PROBE).is_ok(), "the probe");
        assert!(circuit.admit(start + PAUSE, PROBE).is_err(), "one at a time");
        assert!(!circuit.failed(start + PAUSE, away()), "was open already");
        assert!(circuit.admit(start + PAUSE + PAUSE, PROBE).is_ok(), "the next probe");
        assert!(circuit.admit(start + PAUSE + PAUSE + PROBE, PROBE).is_ok(), "the last one was lost");
        assert!(circuit.answered(), "closed");
        assert!(circuit.admit(start, PROBE).is_ok() && circuit.admit(start, PROBE).is_ok());
        assert!(!circuit.answered(), "was closed already");
    }
}
