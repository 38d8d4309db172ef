//! Values for the properties.

use crate::facts::{Batch, Facts};
use crate::{Record, State};
use bytes::Bytes;
use schemas::dead::DeadEntry;
use schemas::heartbeat::{DispatcherReport, Resources, WorkerReport};
use schemas::wire::WIRE_VERSION;
use schemas::{Attempt, Class, ClientName, Failure, FailureKind, JobId, Lane, ModelName, UnixMillis};
use std::time::Duration;

/// Longer than any property takes.
pub(super) const KEEP: Duration = Duration::from_secs(600);
/// Short enough to wait for, long enough to be seen before it ends.
pub(super) const SHORT: Duration = Duration::from_millis(400);
/// A window that nothing leaves while a property runs.
pub(super) const WINDOW: Duration = Duration::from_secs(600);

pub(super) fn model(name: &str) -> ModelName {
    ModelName::new(name).expect("a valid name")
}

pub(super) fn worker(name: &str, lane: Lane, slots: u32, models: &[&str]) -> WorkerReport {
    WorkerReport {
        version: WIRE_VERSION,
        worker: name.to_owned(),
        lane,
        queue: format!("lane.{lane}"),
        slots,
        running: 0,
        prefetched: 0,
        completed_per_s: 0.0,
        models: models.iter().map(|name| model(name)).collect(),
        draining: false,
        abandoned: 0,
        last_failure: None,
        backend: None,
        resources: Resources::default(),
        started: UnixMillis(1_700_000_000_000),
        build: "0.0.0-test".to_owned(),
    }
}

pub(super) fn dispatcher(name: &str) -> DispatcherReport {
    DispatcherReport {
        version: WIRE_VERSION,
        dispatcher: name.to_owned(),
        held: 7,
        placed_per_s: 12.5,
        policy: "straightline".to_owned(),
        draining: false,
        started: UnixMillis(1_700_000_000_000),
        build: "0.0.0-test".to_owned(),
    }
}

pub(super) fn record(id: JobId, result: impl Into<Bytes>, keep: Duration) -> Record {
    Record { id, result: result.into(), keep }
}

pub(super) fn dead_entry(died: u64) -> DeadEntry {
    let failure = Failure::new(FailureKind::ModelError, "division by zero");
    DeadEntry {
        version: WIRE_VERSION,
        id: JobId::new(),
        died: UnixMillis(died),
        failure: failure.clone(),
        attempts: 3,
        history: vec![Attempt {
            number: 3,
            lane: Some(Lane::Docker),
            worker: "w".to_owned(),
            at: UnixMillis(died),
            failure,
        }],
        model: Some(model("digits")),
        client: Some(ClientName::new("tester").expect("a valid name")),
        class: Class::Normal,
        size: 1024,
        queue: "lane.docker".to_owned(),
    }
}

/// A batch of these models and their counts.
pub(super) fn counting(models: &[(&str, u32)], window: Duration) -> Batch {
    let models = models.iter().map(|(name, jobs)| (model(name), *jobs)).collect();
    Batch { models, window, ..Batch::default() }
}

/// A batch that claims places and nothing else.
pub(super) fn claiming(claim: [u32; 3]) -> Batch {
    Batch { claim, window: WINDOW, ..Batch::default() }
}

pub(super) async fn observe(state: &dyn State, batch: &Batch) -> Facts {
    state.observe(batch).await.expect("observe answers")
}

/// Jobs per second of one model, without counting any.
pub(super) async fn rate(state: &dyn State, name: &str, window: Duration) -> f64 {
    observe(state, &counting(&[(name, 0)], window)).await.models[0].per_second
}
