//! Cancelled jobs: waiting, running, arriving.

use super::*;
use schemas::control::Control;
use schemas::{FailureKind, Status};
use state::{Finish, Record};

impl Bench {
    /// What a client's cancel does: win the record, then tell everybody.
    async fn cancel(&self, header: &JobHeader) {
        let result = JobResult::of(header, Status::Cancelled, UnixMillis(7));
        let record = Record { id: header.id, result: result.encode(), keep: BOUND };
        assert_eq!(self.state.finish(&[record]).await.unwrap(), [Finish::Won]);
        self.tell(header.id).await;
    }

    async fn tell(&self, id: JobId) {
        self.broker.broadcast(schemas::wire::encode(&Control::Cancelled { id })).await.unwrap();
    }

    /// Waits until the worker says that it runs and holds so many.
    async fn load(&self, running: u32, prefetched: u32) {
        eventually("the worker's load", || async {
            let workers = self.state.workers().await.unwrap();
            workers.first().filter(|w| (w.running, w.prefetched) == (running, prefetched)).map(drop)
        })
        .await;
    }
}

#[tokio::test]
async fn a_waiting_job_is_dropped_and_its_record_is_the_answer() {
    let mut bench = Bench::new().await;
    let (running, waiting) = (header("staged"), header("staged"));
    let (stage, mut seen) = Stage::new(1);
    let worker = bench.worker(config(), stage.clone()).await;
    bench.place(&running, &body()).await;
    let run = begun(&mut seen).await;
    bench.place(&waiting, &body()).await;
    bench.touch(1).await;
    // A second slot brings a second delivery; being a suspect, it waits for what runs.
    stage.capacity.send_modify(|capacity| capacity.slots = 2);
    bench.load(1, 1).await;
    bench.cancel(&waiting).await;
    let result = bench.reply().await;
    assert_eq!((result.id, result.status), (waiting.id, Status::Cancelled));
    run.succeed();
    assert_eq!(bench.reply().await.id, running.id);
    assert!(seen.try_recv().is_err(), "the cancelled job never ran");
    bench.settled().await;
    worker.halt();
}

#[tokio::test]
async fn a_running_job_ends_as_cancelled_whatever_its_run_gives() {
    let mut bench = Bench::new().await;
    let (stage, mut seen) = Stage::new(1);
    let _worker = bench.worker(config(), stage).await;
    for outcome in [Ok(image()), Err(Failure::new(FailureKind::Timeout, "slow"))] {
        let header = header("staged");
        bench.place(&header, &body()).await;
        let run = begun(&mut seen).await;
        bench.cancel(&header).await;
        run.end.send(outcome).unwrap();
        let result = bench.reply().await;
        assert_eq!((result.id, result.status), (header.id, Status::Cancelled));
        bench.settled().await;
    }
    let retries = bench.broker.depths(&[Queue::Jobs(Class::Normal)]).await.unwrap();
    assert_eq!(retries[0].unwrap().ready, 0, "a cancelled job is not tried again");
}

#[tokio::test]
async fn a_job_cancelled_before_it_comes_is_not_run_and_a_rumour_changes_nothing() {
    let mut bench = Bench::new().await;
    let (stage, mut seen) = Stage::new(1);
    let _worker = bench.worker(config(), stage).await;
    let (cancelled, rumoured) = (header("staged"), header("staged"));
    bench.cancel(&cancelled).await;
    bench.tell(rumoured.id).await;
    // Not ours to understand.
    bench.broker.broadcast(Bytes::from_static(b"\x81\xa4kind\xa7unknown")).await.unwrap();
    bench.place(&cancelled, &body()).await;
    bench.place(&rumoured, &body()).await;
    let run = begun(&mut seen).await;
    assert_eq!(run.task.id, rumoured.id, "without a record it is not cancelled");
    run.succeed();
    let results = [bench.reply().await, bench.reply().await];
    for result in results {
        let expected = if result.id == cancelled.id { Status::Cancelled } else { Status::Succeeded };
        assert_eq!(result.status, expected);
    }
}
