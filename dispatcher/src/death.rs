//! What the broker itself gave up on: whether that is the job's end, and what is said of it. Pure.

use broker::delivery::UNREADABLE;
use broker::{Death, Queue};
use schemas::limits::ATTEMPTS_MAX;
use schemas::{Attempt, Failure, FailureKind, JobHeader, Lane, UnixMillis};

/// Whether a job that the broker gave up on ends with that: it may have taken its holders with it in a lane's queue, or
/// nothing of it but its header is left. From any other queue it was given back for want of room further on, and is
/// placed again.
pub(crate) fn ends_here(death: Option<&Death>) -> bool {
    let in_a_lane = |queue: &str| Lane::ALL.into_iter().any(|lane| Queue::Lane(lane).to_string() == queue);
    death.is_none_or(|death| death.reason == UNREADABLE || in_a_lane(&death.queue))
}

/// The failure that ends the job, and its header with that in its history. `dispatcher` is who found it so.
pub(crate) fn explain(
    mut header: JobHeader,
    death: Option<&Death>,
    returns: u32,
    dispatcher: &str,
    now: UnixMillis,
) -> (JobHeader, Failure) {
    let (queue, reason) =
        death.map_or(("its queue", "unknown"), |death| (death.queue.as_str(), death.reason.as_str()));
    let failure = if reason == UNREADABLE {
        let message = format!("its input could no longer be read from the broker's store, in {queue}");
        Failure::new(FailureKind::Internal, message)
    } else {
        let message = format!(
            "the broker gave up on it in {queue} ({reason}) after {returns} returns: its holders kept losing it"
        );
        Failure::new(FailureKind::WorkerLost, message)
    };
    header.history.push(Attempt {
        number: header.attempt,
        lane: header.placement.as_ref().map(|placement| placement.lane),
        worker: dispatcher.to_owned(),
        at: now,
        failure: failure.clone(),
    });
    header.attempt = header.attempt.saturating_add(1).min(ATTEMPTS_MAX);
    (header, failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{ClientName, JobId, ModelName};

    fn death(queue: &str, reason: &str) -> Death {
        Death { queue: queue.to_owned(), reason: reason.to_owned() }
    }

    #[test]
    fn what_was_only_given_back_for_want_of_room_is_placed_again() {
        let ends = |queue: &str, reason: &str| ends_here(Some(&death(queue, reason)));
        assert!(!ends("jobs.high", "delivery_limit") && !ends("wait.local.low", "delivery_limit"));
        assert!(ends("lane.docker", "delivery_limit"), "it may have killed its workers");
        assert!(ends("jobs.high", UNREADABLE), "there is nothing left to run");
        assert!(ends_here(None));
    }

    #[test]
    fn a_lost_job_and_a_lost_input_are_told_apart_and_leave_their_history() {
        let (model, client) = (ModelName::new("m").unwrap(), ClientName::new("c").unwrap());
        let header = JobHeader::new(JobId::new(), model, client, UnixMillis(0));
        let of = |death: Option<&Death>| explain(header.clone(), death, 7, "d1", UnixMillis(9));
        let (lost, failure) = of(Some(&death("lane.local", "delivery_limit")));
        assert_eq!(failure.kind, FailureKind::WorkerLost);
        assert!(failure.message.contains("in lane.local (delivery_limit) after 7 returns"), "{failure}");
        assert_eq!((lost.attempt, &lost.history[0].worker[..], lost.history[0].number), (2, "d1", 1));
        let (_, failure) = of(Some(&death("jobs.low", UNREADABLE)));
        assert_eq!(failure.kind, FailureKind::Internal);
        assert!(of(None).1.message.contains("in its queue (unknown)"));
    }
}
