//! What the host tells Prometheus. Functions are the configured ones, so every label is bounded.

use schemas::ModelName;
use std::time::Duration;

/// Names and meanings; said once, when a host starts.
pub(super) fn describe() {
    use metrics::{Unit, describe_counter, describe_histogram};
    describe_counter!(
        "straightline_function_starts_total",
        "events given to instances, by function and whether the instance was cold or warm"
    );
    describe_histogram!(
        "straightline_function_cold_start_seconds",
        Unit::Seconds,
        "time from starting an instance until it asked for its first event"
    );
    describe_counter!(
        "straightline_function_instances_ended_total",
        "instances that ended, by function and reason: let_go, exited, init_failed, overdue"
    );
}

pub(super) fn taken(function: &ModelName, start: &'static str) {
    metrics::counter!("straightline_function_starts_total", "function" => function.to_string(), "start" => start)
        .increment(1);
}

pub(super) fn cold_start(function: &ModelName, took: Duration) {
    metrics::histogram!("straightline_function_cold_start_seconds", "function" => function.to_string())
        .record(took.as_secs_f64());
}

pub(super) fn ended(function: &ModelName, reason: &'static str) {
    metrics::counter!("straightline_function_instances_ended_total", "function" => function.to_string(), "reason" => reason)
        .increment(1);
}
