//! Jobs that were delivered before: answered, found out, or simply run; and who pays for a worker's death.

use super::*;
use schemas::{FailureKind, Status};
use state::{Record, Start};

fn record_of(header: &JobHeader, status: Status) -> Record {
    let mut result = JobResult::of(header, status, UnixMillis(7));
    result.worker = Some("w0".to_owned());
    result.error = (status == Status::Failed).then(|| Failure::new(FailureKind::Timeout, "as recorded"));
    Record { id: header.id, result: result.encode(), keep: BOUND }
}

#[tokio::test]
async fn a_redelivered_job_with_a_record_is_answered_from_it_and_not_run() {
    let mut bench = Bench::new().await;
    let header = header("diagnose.abort");
    bench.state.finish(&[record_of(&header, Status::Succeeded)]).await.unwrap();
    bench.place(&header, &body()).await;
    bench.touch(1).await;
    let _worker = bench.local(1).await;
    let result = bench.reply().await;
    assert_eq!((result.id, result.worker.as_deref()), (header.id, Some("w0")));
    bench.settled().await;
}

#[tokio::test]
async fn one_whose_record_says_failed_is_buried_too() {
    let mut bench = Bench::new().await;
    let header = header("diagnose.abort");
    bench.state.finish(&[record_of(&header, Status::Failed)]).await.unwrap();
    bench.place(&header, &body()).await;
    bench.touch(1).await;
    let _worker = bench.local(1).await;
    assert_eq!(bench.reply().await.status, Status::Failed);
    assert_eq!(bench.died(header.id).await.failure.message, "as recorded");
    assert_eq!(header_of(&bench.from(Queue::Dead).await).id, header.id);
}

#[tokio::test]
async fn the_record_that_came_first_is_what_is_answered() {
    let mut bench = Bench::new().await;
    let header = header("digits");
    bench.state.finish(&[record_of(&header, Status::Expired)]).await.unwrap();
    let _worker = bench.local(1).await;
    bench.place(&header, &body()).await;
    let result = bench.reply().await;
    assert_eq!((result.status, result.worker.as_deref()), (Status::Expired, Some("w0")));
}

#[tokio::test]
async fn a_redelivered_job_without_a_record_runs_and_is_noted_and_a_first_delivery_is_not() {
    let mut bench = Bench::new().await;
    let (first, again) = (header("staged"), header("staged"));
    bench.place(&again, &body()).await;
    bench.touch(1).await;
    let (stage, mut seen) = Stage::new(2);
    let _worker = bench.worker(config(), stage).await;
    let run = begun(&mut seen).await;
    assert_eq!(bench.state.note_starts(&[Start { id: again.id, attempt: 1 }], BOUND).await.unwrap(), [1]);
    run.succeed();
    let result = bench.reply().await;
    assert_eq!((result.id, result.attempts), (again.id, 1));
    bench.place(&first, &body()).await;
    let run = begun(&mut seen).await;
    assert_eq!(bench.state.note_starts(&[Start { id: first.id, attempt: 1 }], BOUND).await.unwrap(), [0]);
    run.succeed();
    assert_eq!(bench.reply().await.id, first.id);
}

#[tokio::test]
async fn a_start_noted_before_is_a_failed_attempt() {
    let bench = Bench::new().await;
    let header = header("diagnose.abort");
    bench.state.note_starts(&[Start { id: header.id, attempt: 1 }], BOUND).await.unwrap();
    bench.place(&header, &body()).await;
    bench.touch(1).await;
    let _worker = bench.local(1).await;
    let again = header_of(&bench.from(Queue::Jobs(Class::Normal)).await);
    assert_eq!((again.attempt, again.history[0].failure.kind), (2, FailureKind::WorkerLost));
    bench.settled().await;
}

#[tokio::test]
async fn a_job_that_killed_its_worker_each_time_is_buried() {
    let mut bench = Bench::new().await;
    let mut header = header("diagnose.abort");
    header.attempt = 4;
    bench.state.note_starts(&[Start { id: header.id, attempt: 4 }], BOUND).await.unwrap();
    bench.place(&header, &body()).await;
    bench.touch(1).await;
    let _worker = bench.local(1).await;
    let result = bench.reply().await;
    assert_eq!((result.status, result.error.unwrap().kind), (Status::Failed, FailureKind::WorkerLost));
    assert_eq!(bench.died(header.id).await.attempts, 4);
}

#[tokio::test]
async fn after_a_loss_the_next_attempt_is_noted_and_alone_from_the_start() {
    let bench = Bench::new().await;
    let mut suspect = header("staged");
    suspect.attempt = 2;
    suspect.history.push(schemas::Attempt {
        number: 1,
        lane: Some(Lane::Local),
        worker: "w0".into(),
        at: UnixMillis(1),
        failure: Failure::new(FailureKind::WorkerLost, "died"),
    });
    let (stage, mut seen) = Stage::new(2);
    let _worker = bench.worker(config(), stage).await;
    bench.place(&suspect, &body()).await;
    let run = begun(&mut seen).await;
    bench.place(&header("staged"), &body()).await;
    assert_eq!(bench.state.note_starts(&[Start { id: suspect.id, attempt: 2 }], BOUND).await.unwrap(), [1]);
    eventually("the neighbour to wait", || async {
        bench.state.workers().await.unwrap().first().filter(|w| (w.running, w.prefetched) == (1, 1)).map(drop)
    })
    .await;
    assert!(seen.try_recv().is_err(), "nothing runs beside a suspect");
    run.succeed();
    begun(&mut seen).await.succeed();
    bench.settled().await;
}

/// Two jobs share a worker; one of them kills it, and kills the next one that runs it. The other must come out with its
/// first attempt, whichever of them is run again first.
#[tokio::test]
async fn neighbours_of_a_killer_are_not_charged() {
    let bench = Bench::new().await;
    let (killer, neighbour) = (header("staged"), header("staged"));
    let (stage, mut seen) = Stage::new(2);
    let worker = bench.worker(config(), stage).await;
    bench.place(&killer, &body()).await;
    bench.place(&neighbour, &body()).await;
    let both = (begun(&mut seen).await, begun(&mut seen).await);
    let mut bench = bench.crash(worker).await;
    drop(both);

    // Delivered again, each runs alone; the killer kills once more.
    let (stage, mut seen) = Stage::new(2);
    let worker = bench.worker(config(), stage).await;
    let mut run = begun(&mut seen).await;
    let neighbour_done = run.task.id == neighbour.id;
    if neighbour_done {
        run.succeed();
        assert_eq!(bench.reply().await.attempts, 1);
        run = begun(&mut seen).await;
    }
    assert_eq!(run.task.id, killer.id);
    assert!(seen.try_recv().is_err(), "it runs alone");
    let mut bench = bench.crash(worker).await;
    drop(run);

    // Found out. What was in hand beside it was never noted, and so is not charged.
    let (stage, mut seen) = Stage::new(2);
    let _worker = bench.worker(config(), stage).await;
    if !neighbour_done {
        let run = begun(&mut seen).await;
        assert_eq!((run.task.id, run.task.attempt), (neighbour.id, 1));
        run.succeed();
        let result = bench.reply().await;
        assert_eq!((result.id, result.attempts, result.history.len()), (neighbour.id, 1, 0));
    }
    let charged = header_of(&bench.from(Queue::Jobs(Class::Normal)).await);
    assert_eq!((charged.id, charged.attempt), (killer.id, 2));
    bench.settled().await;
}

/// A dispatcher took the lane's queue back and placed the job anew: a first delivery, but not a first start.
#[tokio::test]
async fn a_job_taken_back_after_it_killed_its_worker_is_found_out_all_the_same() {
    let mut bench = Bench::new().await;
    let mut killer = header("diagnose.abort");
    killer.may_have_run = true;
    bench.state.note_starts(&[Start { id: killer.id, attempt: 1 }], BOUND).await.unwrap();
    let _worker = bench.local(1).await;
    bench.place(&killer, &body()).await;
    let again = header_of(&bench.from(Queue::Jobs(Class::Normal)).await);
    assert_eq!((again.attempt, again.may_have_run), (2, false));
    assert_eq!(again.history[0].failure.kind, FailureKind::WorkerLost);
    let answered = JobHeader { may_have_run: true, ..header("diagnose.abort") };
    bench.state.finish(&[record_of(&answered, Status::Succeeded)]).await.unwrap();
    bench.place(&answered, &body()).await;
    assert_eq!(bench.reply().await.worker.as_deref(), Some("w0"), "answered from its record, not run");
}
