//! What a worker tells Prometheus. Every label is bounded: a model that this worker does not have is `other`.

use crate::worker::report::Load;
use metrics::{Counter, Histogram};
use schemas::{FailureKind, Lane, ModelName, Status};
use std::collections::{HashMap, HashSet};
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
    describe_histogram!(
        "straightline_job_seconds",
        Unit::Seconds,
        "time from a job's delivery to this worker until its end is confirmed and it is acknowledged"
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

/// What is measured of every job, at hand: looking a measure up by its labels costs more than counting does.
pub(crate) struct Measures {
    lane: Lane,
    job_seconds: Histogram,
    models: HashMap<ModelName, OfModel>,
}

struct OfModel {
    run_seconds: Histogram,
    succeeded: Counter,
}

impl Measures {
    /// For a worker of `lane` that has these models.
    pub(crate) fn new(lane: Lane, models: &HashSet<ModelName>) -> Self {
        let measures = |model: &ModelName| {
            let name = model.as_str().to_owned();
            let run_seconds = metrics::histogram!("straightline_run_seconds", "lane" => lane.as_str(), "model" => name.clone());
            let succeeded = finished(lane, name, Status::Succeeded);
            (model.clone(), OfModel { run_seconds, succeeded })
        };
        let job_seconds = metrics::histogram!("straightline_job_seconds", "lane" => lane.as_str());
        Self { lane, job_seconds, models: models.iter().map(measures).collect() }
    }

    /// A job is done with, so long after its delivery.
    pub(crate) fn job(&self, took: Duration) {
        self.job_seconds.record(took);
    }

    pub(crate) fn ran(&self, model: &ModelName, run_time: Duration) {
        if let Some(of_model) = self.models.get(model) {
            of_model.run_seconds.record(run_time);
        }
    }

    /// The end of a job is recorded. What is not one of this worker's models is `other`, whatever clients send.
    pub(crate) fn finished(&self, model: Option<&ModelName>, status: Status) {
        let known = model.and_then(|model| Some((model, self.models.get(model)?)));
        match (known, status) {
            (Some((_, of_model)), Status::Succeeded) => of_model.succeeded.increment(1),
            (Some((model, _)), _) => finished(self.lane, model.as_str().to_owned(), status).increment(1),
            (None, _) => finished(self.lane, "other".to_owned(), status).increment(1),
        }
    }
}

fn finished(lane: Lane, model: String, status: Status) -> Counter {
    metrics::counter!("straightline_jobs_finished_total", "lane" => lane.as_str(), "model" => model, "status" => status.as_str())
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
