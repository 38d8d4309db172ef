//! Whether a failed job is tried again, and when. One pure function, used wherever an attempt ends.

use crate::failure::{Failure, FailureKind};
use crate::header::JobHeader;
use crate::limits::ATTEMPTS_MAX;
use crate::time::UnixMillis;
use std::time::Duration;

/// The fixed delays a retry can have. Each has a queue of its own, because a broker expires messages only at
/// the head of a queue: with mixed delays in one queue a short one would wait behind a long one.
pub const DELAYS: [RetryDelay; 10] = [
    RetryDelay(100),
    RetryDelay(250),
    RetryDelay(500),
    RetryDelay(1_000),
    RetryDelay(2_000),
    RetryDelay(5_000),
    RetryDelay(10_000),
    RetryDelay(30_000),
    RetryDelay(60_000),
    RetryDelay(300_000),
];

/// One of the [`DELAYS`], in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RetryDelay(u32);

impl RetryDelay {
    /// The shortest fixed delay that is not below `wanted`; the longest there is if none is.
    pub fn at_least(wanted: Duration) -> Self {
        let last = DELAYS[DELAYS.len() - 1];
        DELAYS.into_iter().find(|delay| delay.duration() >= wanted).unwrap_or(last)
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }

    /// In milliseconds, as in queue names.
    pub const fn millis(self) -> u32 {
        self.0
    }
}

/// A deployment's settings for retries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Most attempts of a job that asks for no other number.
    pub attempts_max: u8,
    /// Ceiling of the first delay; it doubles with each further attempt.
    pub backoff_base: Duration,
    /// Ceiling of every delay.
    pub backoff_cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 4,
            backoff_base: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(60),
        }
    }
}

/// What becomes of a job after a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is tried again.
    Retry {
        /// After this long.
        delay: RetryDelay,
        /// As this attempt: one more, unless the failure costs none.
        attempt: u8,
    },
    /// It has failed for good.
    GiveUp(GiveUp),
}

/// Why there is no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// The same job would fail again.
    NotWorthIt,
    /// It has had all its attempts.
    AttemptsSpent,
    /// The deadline passes before it could start again.
    DeadlineTooNear,
}

impl RetryPolicy {
    /// Decides what becomes of the job of `header`, whose running attempt ended in `failure`.
    ///
    /// `draw` is uniform in 0..1: the delay is drawn between zero and a ceiling that doubles with each attempt
    /// (full jitter), then rounded up to one of the [`DELAYS`]. It is no shorter than whoever failed asks for.
    pub fn decide(&self, header: &JobHeader, failure: &Failure, now: UnixMillis, draw: f64) -> Decision {
        if !failure.kind.worth_another_try() {
            return Decision::GiveUp(GiveUp::NotWorthIt);
        }
        let attempt = header.attempt + u8::from(failure.kind.costs_an_attempt());
        if attempt > header.attempts_max.unwrap_or(self.attempts_max).min(ATTEMPTS_MAX) {
            return Decision::GiveUp(GiveUp::AttemptsSpent);
        }
        let doublings = u32::from(header.attempt.saturating_sub(1)).min(20);
        let ceiling = self.backoff_base.saturating_mul(1 << doublings).min(self.backoff_cap);
        let drawn = ceiling.mul_f64(draw.clamp(0.0, 1.0));
        let delay = RetryDelay::at_least(drawn.max(failure.retry_after.unwrap_or_default()));
        if now.plus(delay.duration()) >= header.deadline {
            return Decision::GiveUp(GiveUp::DeadlineTooNear);
        }
        Decision::Retry { delay, attempt }
    }
}

impl GiveUp {
    /// The failure a client gets for it: the last one, with the reason why it was the last.
    pub fn explain(self, failure: &Failure, attempts: u8) -> Failure {
        match self {
            Self::NotWorthIt => failure.clone(),
            Self::AttemptsSpent => Failure::new(
                failure.kind,
                format!("gave up after {attempts} attempts; last: {}", failure.message),
            ),
            Self::DeadlineTooNear => Failure::new(
                FailureKind::DeadlineExceeded,
                format!("no time left for another attempt after {attempts}; last: {failure}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{ClientName, ModelName};
    use crate::{JobHeader, JobId};
    use proptest::prelude::*;

    fn header(attempt: u8, deadline_ms: u64) -> JobHeader {
        let model = ModelName::new("m").unwrap();
        let mut header = JobHeader::new(JobId::new(), model, ClientName::new("c").unwrap(), UnixMillis(0));
        header.attempt = attempt;
        header.deadline = UnixMillis(deadline_ms);
        header
    }

    #[test]
    fn what_cannot_end_otherwise_is_not_tried_again() {
        let policy = RetryPolicy::default();
        for kind in FailureKind::ALL {
            let decision = policy.decide(&header(1, 1_000_000), &Failure::new(kind, "x"), UnixMillis(0), 0.5);
            assert_eq!(
                matches!(decision, Decision::Retry { .. }),
                kind.worth_another_try(),
                "{kind}: {decision:?}"
            );
        }
    }

    #[test]
    fn being_busy_costs_no_attempt_and_still_ends_at_the_deadline() {
        let policy = RetryPolicy::default();
        let busy = Failure::new(FailureKind::Busy, "429");
        let decision = policy.decide(&header(4, 1_000_000), &busy, UnixMillis(0), 0.0);
        assert!(matches!(decision, Decision::Retry { attempt: 4, .. }), "{decision:?}");
        let asked = busy.clone().after(Duration::from_secs(7));
        let Decision::Retry { delay, .. } = policy.decide(&header(4, 1_000_000), &asked, UnixMillis(0), 0.0)
        else {
            panic!("worth another try")
        };
        assert!(delay.duration() >= Duration::from_secs(7), "{delay:?}");
        let decision = policy.decide(&header(4, 50), &busy, UnixMillis(0), 0.0);
        assert_eq!(decision, Decision::GiveUp(GiveUp::DeadlineTooNear));
    }

    proptest! {
        #[test]
        fn a_retry_is_one_attempt_on_within_limits_and_before_the_deadline(
            attempt in 1u8..=20, now in 0u64..10_000_000, left in 0u64..1_000_000, draw in 0.0f64..1.0, kind in 0u8..15,
            attempts_max in 0u8..=255,
        ) {
            let policy = RetryPolicy { attempts_max, ..RetryPolicy::default() };
            let header = header(attempt, now + left);
            let failure = Failure::new(FailureKind::from_index(kind), "x");
            if let Decision::Retry { delay, attempt: next } = policy.decide(&header, &failure, UnixMillis(now), draw) {
                prop_assert!(next <= policy.attempts_max.min(ATTEMPTS_MAX), "every reader takes it");
                prop_assert_eq!(next, attempt + u8::from(failure.kind.costs_an_attempt()));
                prop_assert!(now + u64::from(delay.millis()) < now + left);
                prop_assert!(DELAYS.contains(&delay));
            }
        }

        #[test]
        fn delays_round_up_to_a_queue_that_exists(ms in 0u64..1_000_000) {
            let delay = RetryDelay::at_least(Duration::from_millis(ms));
            prop_assert!(u64::from(delay.millis()) >= ms.min(300_000));
        }
    }
}
