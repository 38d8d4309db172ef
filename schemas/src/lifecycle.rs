//! The stages of a job and the one function that moves between them.
//!
//! ```text
//!              ┌──────── retried ◄─────────┐
//!              ▼                           │
//! submit ─► queued ──► placed ──► running ─┤
//!            │  ▲        │                 │
//!       held ▼  │        │ taken back      ▼
//!          waiting ◄─────┘               ended (succeeded, failed, cancelled, expired)
//! ```
//! Every stage may end as cancelled, expired or failed; only a running job can succeed; nothing leaves `ended`.
//! Repeats are part of the chart, not errors of it: a redelivery may find a job in a stage it has already left,
//! and then does the same step again.

use crate::result::Status;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// In `jobs.<class>` or a retry queue.
    Queued,
    /// In `wait.<lane>.<class>`: the lane it wants has no room.
    Waiting,
    /// In a lane's queue.
    Placed,
    /// In a worker's hands.
    Running,
    /// Its result is recorded.
    Ended(Status),
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A dispatcher put it into a lane's queue.
    Placed,
    /// A dispatcher moved it to a wait queue.
    Held,
    /// A dispatcher took it back from a lane whose workers are gone.
    TakenBack,
    /// A worker began an attempt.
    Started,
    /// The attempt failed and another follows.
    Retried,
    /// The result was recorded.
    Ended(Status),
}

/// A step that the chart does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {stage:?} cannot be {event:?}")]
pub struct IllegalStep {
    /// Where the job was.
    pub stage: Stage,
    /// What was about to happen to it.
    pub event: Event,
}

/// The stage after `event`.
pub fn transition(stage: Stage, event: Event) -> Result<Stage, IllegalStep> {
    match (stage, event) {
        (Stage::Queued | Stage::Waiting, Event::Placed) => Ok(Stage::Placed),
        (Stage::Queued | Stage::Waiting, Event::Held) => Ok(Stage::Waiting),
        (Stage::Placed, Event::TakenBack) => Ok(Stage::Waiting),
        (Stage::Placed | Stage::Running, Event::Started) => Ok(Stage::Running),
        (Stage::Running, Event::Retried) => Ok(Stage::Queued),
        (Stage::Running, Event::Ended(Status::Succeeded)) => Ok(Stage::Ended(Status::Succeeded)),
        (Stage::Queued | Stage::Waiting | Stage::Placed | Stage::Running, Event::Ended(status))
            if status != Status::Succeeded =>
        {
            Ok(Stage::Ended(status))
        }
        (stage, event) => Err(IllegalStep { stage, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATUSES: [Status; 4] = [Status::Succeeded, Status::Failed, Status::Cancelled, Status::Expired];

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Placed),
            Just(Event::Held),
            Just(Event::TakenBack),
            Just(Event::Started),
            Just(Event::Retried),
            proptest::sample::select(&STATUSES[..]).prop_map(Event::Ended),
        ]
    }

    proptest! {
        #[test]
        fn a_job_ends_once_and_only_running_jobs_succeed(events in proptest::collection::vec(event(), 0..40)) {
            let mut stage = Stage::Queued;
            let mut endings = 0;
            for event in events {
                let before = stage;
                match transition(stage, event) {
                    Ok(next) => stage = next,
                    Err(illegal) => prop_assert_eq!(illegal.stage, before),
                }
                if let Stage::Ended(status) = stage && stage != before {
                    endings += 1;
                    prop_assert!(status != Status::Succeeded || before == Stage::Running);
                }
            }
            prop_assert!(endings <= 1);
        }
    }

    #[test]
    fn every_stage_but_the_last_can_end() {
        for stage in [Stage::Queued, Stage::Waiting, Stage::Placed, Stage::Running] {
            for status in [Status::Failed, Status::Cancelled, Status::Expired] {
                assert_eq!(transition(stage, Event::Ended(status)), Ok(Stage::Ended(status)));
            }
        }
    }
}
