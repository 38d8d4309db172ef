//! Drain, halt, heartbeats, and lanes that have no slots.

use super::*;
use schemas::Status;

#[tokio::test]
async fn draining_finishes_what_is_in_hand_takes_no_more_and_says_goodbye() {
    let mut bench = Bench::new().await;
    let (stage, mut seen) = Stage::new(1);
    let worker = bench.worker(config(), stage.clone()).await;
    let (taken, left) = (header("staged"), header("staged"));
    bench.place(&taken, &body()).await;
    let run = begun(&mut seen).await;
    worker.drain();
    eventually("a report that it drains", || async {
        bench.state.workers().await.unwrap().first().filter(|worker| worker.draining).map(drop)
    })
    .await;
    bench.place(&left, &body()).await;
    run.succeed();
    within("the end", worker.join()).await.unwrap();
    assert_eq!(bench.reply().await.id, taken.id);
    assert!(*stage.stopped.lock().unwrap(), "the lane is ended with the worker");
    assert_eq!(bench.state.workers().await.unwrap(), []);
    let waiting = bench.from(LANE).await;
    assert_eq!(header_of(&waiting).id, left.id);
}

#[tokio::test]
async fn halting_gives_running_jobs_back_at_once() {
    let bench = Bench::new().await;
    let (stage, mut seen) = Stage::new(2);
    let worker = bench.worker(config(), stage).await;
    let header = header("staged");
    bench.place(&header, &body()).await;
    let _never_ended = begun(&mut seen).await;
    worker.drain();
    worker.halt();
    within("the end", worker.join()).await.unwrap();
    let mut consumer = bench.broker.consume(&LANE, 1).await.unwrap();
    let delivery = next(&mut *consumer).await;
    assert!(delivery.redelivered);
    assert_eq!(header_of(&delivery.message).id, header.id);
    delivery.ack();
    assert_eq!(bench.record(header.id).await, None);
}

#[tokio::test]
async fn a_worker_that_is_dropped_gives_its_jobs_back() {
    let bench = Bench::new().await;
    let (stage, mut seen) = Stage::new(1);
    let worker = bench.worker(config(), stage).await;
    let header = header("staged");
    bench.place(&header, &body()).await;
    let _never_ended = begun(&mut seen).await;
    drop(worker);
    assert_eq!(header_of(&bench.from(LANE).await).id, header.id);
}

#[tokio::test]
async fn a_real_lane_that_hangs_is_halted_all_the_same() {
    let bench = Bench::new().await;
    let worker = bench.local(1).await;
    bench.place(&header("diagnose.hang"), &body()).await;
    eventually("the run", || async {
        bench.state.workers().await.unwrap().first().filter(|worker| worker.running == 1).map(drop)
    })
    .await;
    worker.halt();
    within("the end", worker.join()).await.unwrap();
    assert!(bench.broker.depths(&[LANE]).await.unwrap()[0].unwrap().ready == 1);
}

#[tokio::test]
async fn heartbeats_tell_what_the_worker_is_and_has() {
    let mut bench = Bench::new().await;
    let config =
        Config { beat: Duration::from_millis(20), data_dir: Some(bench.dir.path().into()), ..config() };
    let worker = bench.worker(config, local(3)).await;
    let report = eventually("a report", || async { bench.state.workers().await.unwrap().pop() }).await;
    assert_eq!((&report.worker[..], report.lane, &report.queue[..]), ("w1", Lane::Local, "lane.local"));
    assert_eq!((report.slots, report.running, report.draining), (3, 0, false));
    assert!(report.models.contains(&ModelName::new("digits").unwrap()));
    assert!(report.resources.memory_bytes.is_some());
    assert!(worker.registered());
    for _ in 0..20 {
        bench.place(&header("digits"), &body()).await;
    }
    for _ in 0..20 {
        assert_eq!(bench.reply().await.status, Status::Succeeded);
    }
    eventually("a rate, and a share of the processors", || async {
        let report = bench.state.workers().await.unwrap().pop()?;
        (report.completed_per_s > 1.0 && report.resources.cpu_used.is_some()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lane_without_slots_takes_nothing_and_gives_back_what_waits() {
    let mut bench = Bench::new().await;
    let (stage, mut seen) = Stage::new(1);
    let worker = bench.worker(config(), stage.clone()).await;
    bench.place(&header("staged"), &body()).await;
    let run = begun(&mut seen).await;
    stage.capacity.send_replace(Capacity { slots: 0, abandoned: 3 });
    eventually("a report without slots", || async {
        let found = bench.state.workers().await.unwrap();
        found.first().filter(|worker| (worker.slots, worker.abandoned) == (0, 3)).map(drop)
    })
    .await;
    eventually("the consumer to leave", || async {
        (bench.broker.depths(&[LANE]).await.unwrap()[0].unwrap().consumers == 0).then_some(())
    })
    .await;
    let waits = header("staged");
    bench.place(&waits, &body()).await;
    run.succeed();
    bench.reply().await;
    assert!(seen.try_recv().is_err());
    stage.capacity.send_replace(Capacity { slots: 1, abandoned: 0 });
    let run = begun(&mut seen).await;
    assert_eq!(run.task.id, waits.id, "it resumes with the first slot");
    run.succeed();
    bench.reply().await;
    worker.drain();
    within("the end", worker.join()).await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_what_would() {
    let bench = Bench::new().await;
    let cases = [
        (Config { memory_budget: 1, ..config() }, "raise the budget to 524288"),
        (Config { inline_bytes_max: 0, ..config() }, "limits.inline_bytes is 0"),
        (Config { name: String::new(), ..config() }, "worker.name is empty"),
        (Config { run_timeout: Duration::ZERO, ..config() }, "worker.run_timeout is 0"),
        (Config { beat_keep: Duration::from_secs(1), ..config() }, "at least two beats"),
    ];
    for (config, expected) in cases {
        let (stage, _seen) = Stage::new(2);
        let (broker, state) = (Arc::clone(&bench.broker), Arc::clone(&bench.state));
        let started = Worker::start(config, broker, state, None, stage).await;
        let error = started.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let most = Config { memory_budget: 10 * INLINE_BYTES_DEFAULT, ..config() };
    assert_eq!(most.prefetch_most(), 10, "the prefetch stays inside the budget");
}
