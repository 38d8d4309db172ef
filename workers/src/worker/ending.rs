//! What becomes of a job after an attempt, or without one. Pure: the I/O that follows is [`super::settle`]'s.
//!
//! A passed deadline is not poison: the job ends as expired, its record and reply say so, and it is not buried. What
//! is buried is what an operator can do something about.

use bytes::Bytes;
use schemas::dead::DeadEntry;
use schemas::lifecycle::Event;
use schemas::retry::{Decision, RetryDelay, RetryPolicy};
use schemas::{Attempt, Failure, FailureKind, JobHeader, JobResult, Lane, Payload, Status, UnixMillis};
use std::time::Duration;

/// How a job leaves this worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// It had ended before: this is its record.
    Recorded(Bytes),
    /// It ends here, and nothing is left to look into.
    Ended(Box<JobResult>),
    /// It ends here, and rests in `dead`.
    Dead(Box<Dead>),
    /// Another attempt follows.
    Retried {
        /// The header of that attempt.
        header: Box<JobHeader>,
        /// When.
        delay: RetryDelay,
    },
}

/// A job that failed for good.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dead {
    pub(crate) result: JobResult,
    pub(crate) header: JobHeader,
    pub(crate) entry: DeadEntry,
}

/// What a run gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Output {
    pub(crate) payload: Payload,
    pub(crate) run_time: Duration,
}

/// Where it ran.
pub(crate) struct Place<'a> {
    pub(crate) lane: Lane,
    pub(crate) worker: &'a str,
    pub(crate) queue: &'a str,
}

impl Ending {
    /// The step in the job's life; none where an earlier one is only repeated.
    pub(crate) fn event(&self) -> Option<Event> {
        match self {
            Self::Recorded(_) => None,
            Self::Ended(result) => Some(Event::Ended(result.status)),
            Self::Dead(dead) => Some(Event::Ended(dead.result.status)),
            Self::Retried { .. } => Some(Event::Retried),
        }
    }
}

/// The end of a job whose deadline passed before its attempt began.
pub(crate) fn expired(header: &JobHeader, place: &Place<'_>, now: UnixMillis) -> Ending {
    let mut result = result(header, Status::Expired, place, now);
    result.attempts = header.attempt.saturating_sub(1);
    let late_ms = now.since(header.deadline).as_millis();
    let message = format!("deadline passed {late_ms} ms before attempt {} could begin", header.attempt);
    result.error = Some(Failure::new(FailureKind::DeadlineExceeded, message));
    Ending::Ended(Box::new(result))
}

/// The result of a job that succeeded. However late: the work is done, and the client may still be there.
pub(crate) fn succeeded(header: &JobHeader, output: Output, place: &Place<'_>, now: UnixMillis) -> JobResult {
    let mut result = result(header, Status::Succeeded, place, now);
    result.run_us = Some(u64::try_from(output.run_time.as_micros()).unwrap_or(u64::MAX));
    result.output = Some(output.payload);
    result
}

/// What becomes of the job of `header` after its attempt failed.
pub(crate) fn after_failure(
    header: &JobHeader,
    failure: Failure,
    place: &Place<'_>,
    policy: &RetryPolicy,
    now: UnixMillis,
    draw: f64,
) -> Ending {
    let noted = noted(header, &failure, place, now);
    match policy.decide(header, &failure, now, draw) {
        Decision::Retry { delay, attempt } => {
            let header = Box::new(JobHeader { attempt, placement: None, may_have_run: false, ..noted });
            Ending::Retried { header, delay }
        }
        Decision::GiveUp(why) => gave_up(noted, why.explain(&failure, header.attempt), place, now),
    }
}

/// The end of a job that has failed for good with `failure`.
fn gave_up(header: JobHeader, failure: Failure, place: &Place<'_>, now: UnixMillis) -> Ending {
    let expired = failure.kind == FailureKind::DeadlineExceeded;
    let status = if expired { Status::Expired } else { Status::Failed };
    let mut result = result(&header, status, place, now);
    result.error = Some(failure.clone());
    if expired {
        return Ending::Ended(Box::new(result));
    }
    let entry = DeadEntry::of(&header, failure, place.queue, now);
    let entry = DeadEntry { attempts: header.attempt, ..entry };
    Ending::Dead(Box::new(Dead { result, header, entry }))
}

/// The header with the failed attempt in it.
fn noted(header: &JobHeader, failure: &Failure, place: &Place<'_>, now: UnixMillis) -> JobHeader {
    let mut noted = header.clone();
    // A lane that is busy is passed over as one that failed is: another may have room.
    noted.failed_lanes = noted.failed_lanes.with(place.lane);
    if !failure.kind.costs_an_attempt()
        && noted.history.last().is_some_and(|last| !last.failure.kind.costs_an_attempt())
    {
        // Being busy costs no attempt and so has no bound of its own: only the last time is kept.
        noted.history.pop();
    }
    noted.history.push(Attempt {
        number: header.attempt,
        lane: Some(place.lane),
        worker: place.worker.to_owned(),
        at: now,
        failure: failure.clone(),
    });
    noted
}

fn result(header: &JobHeader, status: Status, place: &Place<'_>, now: UnixMillis) -> JobResult {
    let mut result = JobResult::of(header, status, now);
    result.attempts = header.attempt;
    result.lane = Some(place.lane);
    result.worker = Some(place.worker.to_owned());
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::header::Placement;
    use schemas::{ClientName, JobId, LaneSet, ModelName};

    const PLACE: Place<'static> = Place { lane: Lane::Local, worker: "w1", queue: "lane.local" };

    fn header(attempt: u8, deadline_ms: u64) -> JobHeader {
        let (model, client) = (ModelName::new("m").unwrap(), ClientName::new("c").unwrap());
        let mut header = JobHeader::new(JobId::new(), model, client, UnixMillis(0));
        header.attempt = attempt;
        header.deadline = UnixMillis(deadline_ms);
        header.placement = Some(Placement { lane: Lane::Local, reason: "moderate".into() });
        header
    }

    fn after(header: &JobHeader, kind: FailureKind) -> Ending {
        let failure = Failure::new(kind, "words");
        after_failure(header, failure, &PLACE, &RetryPolicy::default(), UnixMillis(1_000), 0.5)
    }

    #[test]
    fn a_success_says_where_and_how_long() {
        let payload = Payload::Tensors(Vec::new());
        let output = Output { payload: payload.clone(), run_time: Duration::from_micros(35) };
        let result = succeeded(&header(2, 10), output, &PLACE, UnixMillis(1_000));
        assert_eq!((result.status, result.attempts, result.run_us), (Status::Succeeded, 2, Some(35)));
        assert_eq!((result.lane, result.worker.as_deref()), (Some(Lane::Local), Some("w1")));
        assert_eq!((result.output, result.reason.as_deref()), (Some(payload), Some("moderate")));
    }

    #[test]
    fn a_retry_carries_what_happened_and_is_placed_anew() {
        let before = header(1, 100_000);
        let Ending::Retried { header, .. } = after(&before, FailureKind::ModelError) else {
            panic!("not retried")
        };
        assert_eq!((header.attempt, header.placement), (2, None));
        assert!(header.failed_lanes.contains(Lane::Local));
        let last = header.history.last().unwrap();
        assert_eq!((last.number, last.lane, &last.worker[..]), (1, Some(Lane::Local), "w1"));
    }

    #[test]
    fn a_busy_lane_is_passed_over_at_no_cost_and_piles_up_no_history() {
        let mut now = header(3, 100_000);
        now.history.push(Attempt {
            number: 2,
            lane: None,
            worker: "w0".into(),
            at: UnixMillis(1),
            failure: Failure::new(FailureKind::Timeout, "x"),
        });
        for _ in 0..5 {
            let Ending::Retried { header, .. } = after(&now, FailureKind::Busy) else {
                panic!("not retried")
            };
            now = *header;
        }
        assert_eq!((now.attempt, now.history.len()), (3, 2));
        assert_eq!(now.failed_lanes, LaneSet::EMPTY.with(Lane::Local), "another may have room");
    }

    #[test]
    fn the_last_failure_buries_and_a_deadline_does_not() {
        let Ending::Dead(dead) = after(&header(4, 100_000), FailureKind::Timeout) else { panic!("not dead") };
        assert_eq!((dead.result.status, dead.result.attempts, dead.entry.attempts), (Status::Failed, 4, 4));
        assert_eq!((dead.entry.history.len(), &dead.entry.queue[..]), (1, "lane.local"));
        assert!(dead.entry.failure.message.contains("gave up after 4 attempts"), "{}", dead.entry.failure);
        assert_eq!(dead.result.error.as_ref(), Some(&dead.entry.failure));
        let Ending::Ended(result) = after(&header(1, 1_001), FailureKind::Timeout) else {
            panic!("not ended")
        };
        assert_eq!(
            (result.status, result.error.unwrap().kind),
            (Status::Expired, FailureKind::DeadlineExceeded)
        );
        let Ending::Ended(result) = expired(&header(1, 400), &PLACE, UnixMillis(1_000)) else {
            panic!("not ended")
        };
        assert_eq!((result.status, result.attempts), (Status::Expired, 0));
        assert!(result.error.unwrap().message.contains("600 ms"));
    }

    proptest! {
        #[test]
        fn every_failure_ends_as_the_policy_says_and_nothing_is_lost_on_the_way(
            attempt in 1u8..=20, left in 0u64..500_000, kind in 0u8..15, draw in 0.0f64..1.0,
        ) {
            let policy = RetryPolicy::default();
            let now = UnixMillis(1_000);
            let before = header(attempt, 1_000 + left);
            let failure = Failure::new(FailureKind::from_index(kind), "words");
            let ending = after_failure(&before, failure.clone(), &PLACE, &policy, now, draw);
            match (policy.decide(&before, &failure, now, draw), &ending) {
                (Decision::Retry { delay, attempt }, Ending::Retried { header, delay: chosen }) => {
                    prop_assert_eq!((delay, attempt), (*chosen, header.attempt));
                    prop_assert_eq!(&header.history.last().unwrap().failure, &failure);
                }
                (Decision::GiveUp(_), Ending::Dead(dead)) => {
                    prop_assert_eq!(dead.result.status, Status::Failed);
                    prop_assert_eq!(dead.header.history.len(), 1);
                }
                (Decision::GiveUp(_), Ending::Ended(result)) => prop_assert_eq!(result.status, Status::Expired),
                (decision, _) => prop_assert!(false, "{decision:?} became {ending:?}"),
            }
        }
    }
}
