//! What an engine, an image or a server does wrong that must cost no more than it has to.

use super::*;
use std::time::Instant;

/// Waits until `met` is, which is seen from the engine only.
async fn until(what: &str, met: impl Fn() -> bool) {
    let began = Instant::now();
    while !met() {
        assert!(began.elapsed() < BOUND, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn spawn(lane: &Arc<Docker>, task: Task) -> JoinHandle<Result<Ran, Failure>> {
    let lane = Arc::clone(lane);
    tokio::spawn(async move { lane.run(task).await })
}

#[tokio::test]
async fn a_server_that_is_well_is_kept_whatever_became_of_the_job() {
    let engine = Arc::new(StandIn::default());
    let late = "HTTP/1.1 504 Late\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    engine.shop().odd = BTreeMap::from([
        ("diagnose.echo".to_owned(), Odd::Says(late)),
        ("diagnose.sleep".to_owned(), Odd::Says("")),
    ]);
    let lane = lane(&engine, config()).await;
    for (model, words) in [("diagnose.echo", "answered 504"), ("diagnose.sleep", "went away before")] {
        for _ in 0..2 {
            let failure = lane.run(task(model, 0)).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::ModelError, "{failure}");
            assert!(failure.message.contains(words), "{failure}");
        }
    }
    assert_eq!(engine.shop().created, 2, "one of each");
    shown(&lane, |summary| serving(summary) == 2).await;
}

#[tokio::test]
async fn an_orphan_that_cannot_be_removed_does_not_keep_the_lane_down() {
    let engine = Arc::new(StandIn::default());
    for id in ["stuck", "loose"] {
        let orphan = left_behind([(LABEL_WORKER, "worker"), (LABEL_OWNER, id), (LABEL_MODEL, id)]);
        engine.shop().containers.insert(id.to_owned(), orphan);
    }
    engine.shop().stuck.insert("stuck".to_owned(), u32::MAX);
    let lane = lane(&engine, config()).await;
    assert_eq!(engine.models(), ["stuck"]);
    lane.run(task("digits", 0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_workers_leave_behind_later_is_removed_as_well() {
    let engine = Arc::new(StandIn::default());
    let (events, mut told) = mpsc::unbounded_channel();
    let us = owner::this();
    let watcher = Arc::clone(&engine) as Arc<dyn Engine>;
    let watcher = watcher::watch(watcher, us.clone(), "worker".to_owned(), events);
    let watching = tokio::spawn(watcher);
    assert!(matches!(told.recv().await, Some(keeper::Event::Up { .. })));
    // This process, had it started at another time; and a worker of our name that has come since.
    let dead = us.process.rsplit_once('/').unwrap().0.to_owned() + "/1";
    for (id, process) in [("dead", &dead), ("successor", &us.process)] {
        let mut one = left_behind([(LABEL_WORKER, "worker"), (LABEL_OWNER, id), (LABEL_MODEL, id)]);
        one.labels.insert(LABEL_PROCESS.to_owned(), process.clone());
        engine.shop().containers.insert(id.to_owned(), one);
    }
    engine.shop().stuck.insert("dead".to_owned(), 1);
    for left in [&["dead", "successor"][..], &["successor"]] {
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(engine.models(), left, "the first time it could not be removed");
    }
    watching.abort();
}

#[tokio::test]
async fn nothing_has_the_place_of_a_container_that_cannot_be_removed() {
    let engine = Arc::new(StandIn::default());
    engine.shop().odd.insert("diagnose.hang".to_owned(), Odd::Exits);
    engine.shop().stuck = ["digits", "diagnose.hang"].map(|model| (model.to_owned(), 2)).into();
    let lane = lane(&engine, Config { containers_max: 1, ..config() }).await;
    lane.run(task("digits", 0)).await.unwrap();
    lane.run(task("diagnose.echo", 0)).await.unwrap();
    assert_eq!(engine.models(), ["diagnose.echo"]);
    // One that did not become ready has a place as well, though its job is told at once.
    let failure = lane.run(task("diagnose.hang", 0)).await.unwrap_err();
    assert!(failure.message.contains("ended with status 3"), "{failure}");
    lane.run(task("diagnose.echo", 0)).await.unwrap();
    let shop = engine.shop();
    assert_eq!((shop.most, shop.created), (1, 4));
    assert_eq!(shop.stuck.values().copied().collect::<Vec<_>>(), [0, 0]);
}

#[tokio::test]
async fn a_start_outlives_an_engine_that_was_away_for_a_moment() {
    let engine = Arc::new(StandIn::default());
    engine.shop().odd.insert("digits".to_owned(), Odd::Late);
    let lane = Arc::new(lane(&engine, Config { ready_timeout: BOUND, ..config() }).await);
    let running = spawn(&lane, task("digits", 0));
    until("it is being started", || engine.shop().containers.values().any(|one| one.waiting.is_some())).await;
    until("the lane watches", || engine.shop().watched == 1).await;
    // A container of ours that nobody starts or holds is still removed.
    let owner = engine.shop().containers.values().next().unwrap().labels[LABEL_OWNER].clone();
    let stray = left_behind([(LABEL_WORKER, "worker"), (LABEL_OWNER, &owner), (LABEL_MODEL, "stray")]);
    engine.shop().containers.insert("stray".to_owned(), stray);
    let gone = EngineError::Away { host: "stand-in".to_owned(), reason: "stalled".to_owned() };
    engine.shop().deaths.drain(..).for_each(|deaths| deaths.send(Err(gone.clone())).unwrap());
    until("the lane is back", || engine.shop().watched == 2).await;
    until("the stray is gone", || engine.models() == ["digits"]).await;
    let failure = timeout(BOUND, running).await.unwrap().unwrap().unwrap_err();
    assert_eq!(
        failure.kind,
        FailureKind::LaneUnavailable,
        "nobody waits for an engine that is away: {failure}"
    );
    engine.let_serve();
    timeout(BOUND, lane.run(task("digits", 0))).await.unwrap().unwrap();
    assert_eq!(engine.shop().created, 1);
}

#[tokio::test]
async fn one_that_is_removed_while_it_starts_is_not_its_model_s_fault() {
    let engine = Arc::new(StandIn::default());
    engine.shop().odd.insert("digits".to_owned(), Odd::NeverReady);
    let lane = Arc::new(lane(&engine, Config { ready_timeout: BOUND, ..config() }).await);
    let running = spawn(&lane, task("digits", 0));
    until("it is being started", || engine.models() == ["digits"]).await;
    {
        let mut shop = engine.shop();
        shop.odd.clear();
        shop.containers.clear();
    }
    let failure = timeout(BOUND, running).await.unwrap().unwrap().unwrap_err();
    assert!(failure.message.ends_with("was removed before it was ready"), "{failure}");
    assert_eq!(lane.summary().borrow().faults, []);
    lane.run(task("digits", 0)).await.unwrap();
}

#[tokio::test]
async fn an_image_that_is_slow_to_come_keeps_no_other_model_waiting() {
    let engine = Arc::new(StandIn::default());
    let images = BTreeMap::from([(name("slow"), ImageSpec::new("far/away:1"))]);
    let lane = Arc::new(lane(&engine, Config { images, pull: true, ..config() }).await);
    let fetching = spawn(&lane, task("slow", 0));
    until("it is being fetched", || engine.shop().pulled == ["far/away:1"]).await;
    timeout(BOUND, lane.run(task("digits", 0))).await.unwrap().unwrap();
    assert!(!fetching.is_finished());
    fetching.abort();
}
