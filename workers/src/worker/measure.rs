//! What a worker tells Prometheus. Every label is bounded: a model that this worker does not have is `other`.

use crate::worker::report::Load;
use schemas::{FailureKind, Lane, Status};
use std::time::Duration;

/// Names and meanings; said once, when a worker starts.
pub(crate) fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("straightline_jobs_finished_total", "jobs whose end this worker recorded, by status");
    describe_histogram!(
        "straightline_run_seconds",
        Unit::Seconds,
        "time the model itself ran, successful runs only"
    );
    describe_counter!("straightline_attempts_failed_total", "attempts that failed, by kind of failure");
    describe_gauge!("straightline_slots", "jobs the worker can run at once");
    describe_gauge!("straightline_slots_busy", "jobs the worker is running");
    describe_gauge!(
        "straightline_threads_abandoned",
        "runs that outlived their limit and still hold a thread"
    );
    describe_counter!("straightline_replies_dropped_total", "replies that had no queue to go to, by reason");
    describe_counter!(
        "straightline_records_missed_total",
        "results that could not be recorded when their jobs ended: state was away"
    );
    describe_counter!(
        "straightline_records_forgotten_total",
        "missed records that were not written late either, for want of room to remember them"
    );
    describe_counter!(
        "straightline_starts_unnoted_total",
        "suspect runs whose start could not be noted: state was away"
    );
    describe_counter!("straightline_reports_missed_total", "heartbeats that state did not take");
    describe_counter!(
        "straightline_jobs_given_back_total",
        "deliveries given back to the lane's queue, by reason"
    );
    describe_counter!(
        "straightline_dead_unindexed_total",
        "dead jobs that state did not index; they rest in `dead`"
    );
    describe_counter!(
        "straightline_illegal_steps_total",
        "steps that the chart of a job's life does not have"
    );
}

pub(crate) fn finished(lane: Lane, model: &str, status: Status) {
    metrics::counter!("straightline_jobs_finished_total", "lane" => lane.as_str(), "model" => model.to_owned(), "status" => status.as_str())
        .increment(1);
}

pub(crate) fn ran(lane: Lane, model: &str, run_time: Duration) {
    metrics::histogram!("straightline_run_seconds", "lane" => lane.as_str(), "model" => model.to_owned())
        .record(run_time.as_secs_f64());
}

pub(crate) fn failed(lane: Lane, kind: FailureKind) {
    metrics::counter!("straightline_attempts_failed_total", "lane" => lane.as_str(), "kind" => kind.as_str())
        .increment(1);
}

pub(crate) fn load(lane: Lane, load: &Load) {
    metrics::gauge!("straightline_slots", "lane" => lane.as_str()).set(load.slots);
    metrics::gauge!("straightline_slots_busy", "lane" => lane.as_str()).set(load.running);
    metrics::gauge!("straightline_threads_abandoned", "lane" => lane.as_str()).set(load.abandoned);
}

pub(crate) fn reply_dropped(reason: &'static str) {
    metrics::counter!("straightline_replies_dropped_total", "reason" => reason).increment(1);
}

pub(crate) fn given_back(lane: Lane, reason: &'static str, deliveries: usize) {
    if deliveries > 0 {
        metrics::counter!("straightline_jobs_given_back_total", "lane" => lane.as_str(), "reason" => reason)
            .increment(deliveries as u64);
    }
}
