//! Heartbeats, and what they say about lanes and models.

use super::samples::{KEEP, SHORT, claiming, counting, dispatcher, model, observe, worker};
use super::{Fixture, fresh_name, open, until};
use crate::facts::{LaneFacts, ModelFacts};
use crate::{Limits, State};
use schemas::heartbeat::{Backend, Instances, LastFailure, Resources, WorkerReport};
use schemas::{Failure, FailureKind, Lane, LaneSet, UnixMillis};

/// The names of the live workers.
async fn names(state: &dyn State) -> Vec<String> {
    state.workers().await.unwrap().into_iter().map(|report| report.worker).collect()
}

async fn lane(state: &dyn State, lane: Lane) -> LaneFacts {
    *observe(state, &claiming([0; 3])).await.lane(lane)
}

async fn facts(state: &dyn State, name: &str) -> ModelFacts {
    observe(state, &counting(&[(name, 0)], KEEP)).await.models[0]
}

/// A worker is there from its first report, by lane and name, until it leaves or falls silent; each report counts anew.
pub async fn a_worker_appears_expires_and_leaves(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    assert_eq!(lane(&*state, Lane::Local).await, LaneFacts::default());
    for (name, at, slots, keep) in [
        ("z", Lane::Serverless, 1, KEEP),
        ("stays", Lane::Local, 2, KEEP),
        ("leaves", Lane::Local, 4, KEEP),
        ("falls silent", Lane::Local, 8, SHORT),
    ] {
        state.report_worker(&worker(name, at, slots, &[]), keep).await.unwrap();
    }
    let seen = observe(&*state, &claiming([0; 3])).await;
    let listed = names(&*state).await;
    if listed.len() == 4 {
        // Nobody had fallen silent yet when they were counted.
        assert_eq!(listed, ["z", "falls silent", "leaves", "stays"]);
        assert_eq!(*seen.lane(Lane::Local), LaneFacts { workers: 3, slots: 14, granted: 0, left: 14 });
        assert_eq!(seen.lane(Lane::Serverless).slots, 1);
    }
    state.forget_worker("leaves").await.unwrap();
    assert!(!names(&*state).await.contains(&"leaves".to_owned()), "gone at once");
    until("the silent worker is gone", || async { names(&*state).await == ["z", "stays"] }).await;
    assert_eq!(lane(&*state, Lane::Local).await, LaneFacts { workers: 1, slots: 2, granted: 0, left: 2 });
    state.report_worker(&worker("falls silent", Lane::Local, 8, &[]), KEEP).await.unwrap();
    assert_eq!(lane(&*state, Lane::Local).await.slots, 10, "back");
    state.forget_worker("nobody").await.unwrap();
}

/// A report is listed exactly as it was sent.
pub async fn a_report_comes_back_as_it_was(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let report = WorkerReport {
        running: 3,
        prefetched: 2,
        completed_per_s: 12.345_678_9,
        draining: true,
        abandoned: 1,
        last_failure: Some(LastFailure {
            at: UnixMillis(1_700_000_000_500),
            model: model("digits"),
            failure: Failure::new(FailureKind::ModelError, "server of digits answered 500"),
            total: 3,
        }),
        backend: Some(Backend {
            name: "Docker 20.10 at unix:///docker.sock".to_owned(),
            problem: Some("cannot be reached".to_owned()),
            waiting: 2,
            instances: vec![Instances {
                idle: 1,
                ids: vec!["0123456789ab".to_owned()],
                problem: Some("was not ready within 100 ms".to_owned()),
                ..Instances::none(model("digits"))
            }],
        }),
        resources: Resources {
            host: Some("host one".to_owned()),
            cpu_used: Some(0.25),
            memory_bytes: Some(u64::MAX),
            ..Resources::default()
        },
        ..worker("a worker: with, odd name", Lane::Docker, 4, &["digits", "digits-conv"])
    };
    state.report_worker(&report, KEEP).await.unwrap();
    assert_eq!(state.workers().await.unwrap(), [report]);
    state.report_dispatcher(&dispatcher("d 1"), KEEP).await.unwrap();
    assert_eq!(state.dispatchers().await.unwrap(), [dispatcher("d 1")]);
}

/// A worker that takes no more jobs gives its lane no worker, no slot and no model; it is alive all the same, and its
/// model is known.
pub async fn a_worker_that_takes_no_jobs_is_listed_but_serves_nothing(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let serving = WorkerReport { running: 1, ..worker("a", Lane::Local, 4, &["m"]) };
    state.report_worker(&serving, KEEP).await.unwrap();
    assert_eq!(lane(&*state, Lane::Local).await, LaneFacts { workers: 1, slots: 4, granted: 0, left: 3 });
    let draining = WorkerReport { draining: true, ..serving.clone() };
    let hung = WorkerReport { slots: 0, abandoned: 4, ..serving.clone() };
    for idle in [draining, hung] {
        state.report_worker(&idle, KEEP).await.unwrap();
        assert_eq!(lane(&*state, Lane::Local).await, LaneFacts::default());
        let known = ModelFacts { per_second: 0.0, lanes: LaneSet::EMPTY, known: true };
        assert_eq!(facts(&*state, "m").await, known);
        assert_eq!(names(&*state).await, ["a"]);
        state.report_worker(&serving, KEEP).await.unwrap();
        assert_eq!(lane(&*state, Lane::Local).await.slots, 4, "it changed its mind");
    }
}

/// A model is served in the lanes whose live workers say so, and in no other.
pub async fn a_model_has_the_lanes_of_its_live_workers(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    state.report_worker(&worker("a", Lane::Local, 1, &["both", "one"]), KEEP).await.unwrap();
    state.report_worker(&worker("b", Lane::Docker, 1, &["both"]), KEEP).await.unwrap();
    state.report_worker(&worker("c", Lane::Docker, 1, &["both", "brief"]), SHORT).await.unwrap();
    let seen = observe(&*state, &counting(&[("both", 0), ("one", 1), ("none", 1)], KEEP)).await;
    let lanes: Vec<LaneSet> = seen.models.iter().map(|model| model.lanes).collect();
    let local = LaneSet::EMPTY.with(Lane::Local);
    assert_eq!(lanes, [local.with(Lane::Docker), local, LaneSet::EMPTY]);
    assert_eq!(seen.models.iter().map(|model| model.known).collect::<Vec<_>>(), [true, true, false]);
    state.forget_worker("b").await.unwrap();
    until("the silent worker's lane is gone", || async { facts(&*state, "both").await.lanes == local }).await;
    assert_eq!(
        facts(&*state, "brief").await,
        ModelFacts { per_second: 0.0, lanes: LaneSet::EMPTY, known: true }
    );
}

/// A model whose workers are gone, however they went, is known for as long as the limits say, and then no more.
pub async fn a_model_stays_known_for_a_while(fixture: &dyn Fixture) {
    let limits = Limits { model_memory: SHORT, ..Limits::default() };
    let state = fixture.open(&fresh_name(), limits).await;
    state.report_worker(&worker("leaves", Lane::Local, 1, &["left"]), KEEP).await.unwrap();
    state.report_worker(&worker("changes", Lane::Local, 1, &["dropped"]), KEEP).await.unwrap();
    state.report_worker(&worker("falls silent", Lane::Local, 1, &["silent"]), SHORT / 4).await.unwrap();
    state.report_worker(&worker("stays", Lane::Local, 1, &["kept"]), KEEP).await.unwrap();
    state.forget_worker("leaves").await.unwrap();
    state.report_worker(&worker("changes", Lane::Local, 1, &["other"]), KEEP).await.unwrap();
    for name in ["left", "dropped", "silent"] {
        until("it is unknown", || async { !facts(&*state, name).await.known }).await;
    }
    assert!(facts(&*state, "kept").await.known, "its worker lives, however long ago it said so");
    assert!(!facts(&*state, "never").await.known);
    state.report_worker(&worker("leaves", Lane::Local, 1, &["left"]), KEEP).await.unwrap();
    assert!(facts(&*state, "left").await.known, "known again");

    let state = open(fixture).await;
    state.report_worker(&worker("leaves", Lane::Local, 1, &["left"]), KEEP).await.unwrap();
    state.report_worker(&worker("changes", Lane::Local, 1, &["dropped"]), KEEP).await.unwrap();
    state.forget_worker("leaves").await.unwrap();
    state.report_worker(&worker("changes", Lane::Local, 1, &["other"]), KEEP).await.unwrap();
    for name in ["left", "dropped"] {
        let known = ModelFacts { per_second: 0.0, lanes: LaneSet::EMPTY, known: true };
        assert_eq!(facts(&*state, name).await, known, "{name} is remembered");
    }
}

/// The latest report of a name is the only one: its numbers, lane and models replace those before.
pub async fn a_worker_that_changes_is_counted_as_it_is_now(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    state.report_worker(&worker("a", Lane::Local, 9, &["m", "n"]), KEEP).await.unwrap();
    state.report_worker(&worker("b", Lane::Local, 1, &["n"]), KEEP).await.unwrap();
    assert_eq!(lane(&*state, Lane::Local).await.slots, 10);
    let busier = WorkerReport { running: 2, prefetched: 1, ..worker("a", Lane::Local, 5, &["m", "n"]) };
    state.report_worker(&busier, KEEP).await.unwrap();
    assert_eq!(lane(&*state, Lane::Local).await, LaneFacts { workers: 2, slots: 6, granted: 0, left: 3 });
    state.report_worker(&worker("a", Lane::Serverless, 3, &["m"]), KEEP).await.unwrap();
    assert_eq!(lane(&*state, Lane::Local).await, LaneFacts { workers: 1, slots: 1, granted: 0, left: 1 });
    assert_eq!(
        lane(&*state, Lane::Serverless).await,
        LaneFacts { workers: 1, slots: 3, granted: 0, left: 3 }
    );
    assert_eq!(facts(&*state, "m").await.lanes, LaneSet::EMPTY.with(Lane::Serverless));
    assert_eq!(facts(&*state, "n").await.lanes, LaneSet::EMPTY.with(Lane::Local));
    let reports = state.workers().await.unwrap();
    assert_eq!(reports.iter().map(|report| &*report.worker).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(reports[0].models, [model("m")]);
}

/// A dispatcher is there from its first report, by name, until it leaves or falls silent.
pub async fn a_dispatcher_appears_expires_and_leaves(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let names = || async {
        state.dispatchers().await.unwrap().into_iter().map(|report| report.dispatcher).collect::<Vec<_>>()
    };
    for name in ["b", "a", "leaves"] {
        state.report_dispatcher(&dispatcher(name), KEEP).await.unwrap();
    }
    assert_eq!(names().await, ["a", "b", "leaves"]);
    state.report_dispatcher(&dispatcher("falls silent"), SHORT).await.unwrap();
    state.forget_dispatcher("leaves").await.unwrap();
    until("the silent one is gone", || async { names().await == ["a", "b"] }).await;
    state.forget_dispatcher("nobody").await.unwrap();
}
