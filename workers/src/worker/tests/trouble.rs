//! Reply queues that are gone or full, a state and a broker that are away.

use super::*;
use schemas::Status;

#[tokio::test]
async fn a_reply_queue_that_is_gone_costs_the_reply_and_nothing_else() {
    let bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut header = header("digits");
    header.reply_to = Some(ReplyQueue::of(&ClientName::new("tester").unwrap(), "gone").unwrap());
    bench.place(&header, &body()).await;
    assert_eq!(bench.recorded(header.id).await.status, Status::Succeeded);
    bench.settled().await;
}

#[tokio::test]
async fn a_reply_queue_that_is_full_costs_the_reply_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { reply_messages_max: 1, ..Limits::default() };
    let open =
        broker::embedded::Embedded::open(broker::embedded::Config { dir: dir.path().join("b"), limits });
    let bench = Bench::new().await;
    let broker = open.await.unwrap();
    // Declared, and then read by nobody.
    drop(broker.consume(&Queue::Reply(reply_queue()), 1).await.unwrap());
    let shared: (Arc<dyn Broker>, Arc<dyn State>) = (broker.clone(), bench.state.clone());
    let _worker = Worker::start(config(), shared.0, shared.1, None, local(1)).await.unwrap();
    for _ in 0..3 {
        let header = header("digits");
        broker.publish(Route::To(LANE), message(&header, body().encode())).await.await.unwrap();
        assert_eq!(bench.recorded(header.id).await.status, Status::Succeeded);
    }
    eventually("everything settled", || async {
        let depth = broker.depths(&[LANE]).await.unwrap()[0].unwrap();
        (depth.ready == 0 && depth.unacked == Some(0)).then_some(())
    })
    .await;
    let replies = broker.depths(&[Queue::Reply(reply_queue())]).await.unwrap();
    assert_eq!(replies[0].unwrap().ready, 1);
}

#[tokio::test]
async fn with_state_away_jobs_run_and_replies_go_out_unrecorded() {
    let mut bench = Bench::new().await;
    let suspect = header("digits");
    bench.place(&suspect, &body()).await;
    bench.touch(1).await;
    bench.state.close().await;
    let worker = bench.local(1).await;
    let first = header("digits");
    bench.place(&first, &body()).await;
    let mut failing = header("diagnose.fail");
    failing.attempts_max = Some(1);
    bench.place(&failing, &body()).await;
    for _ in 0..3 {
        let result = bench.reply().await;
        let expected = if result.id == failing.id { Status::Failed } else { Status::Succeeded };
        assert_eq!((result.status, result.attempts), (expected, 1));
    }
    assert_eq!(header_of(&bench.from(Queue::Dead).await).id, failing.id, "it rests in dead, unindexed");
    bench.settled().await;
    worker.drain();
    within("the end", worker.join()).await.unwrap();
}

#[tokio::test]
async fn a_result_that_can_be_neither_sent_nor_recorded_is_not_let_go() {
    let mut bench = Bench::new().await;
    bench.state.close().await;
    let worker = bench.local(2).await;
    let untold = JobHeader { reply_to: None, ..header("digits") };
    bench.place(&untold, &body()).await;
    let told = header("digits");
    bench.place(&told, &body()).await;
    // By now the first has run as well, or is about to.
    assert_eq!(bench.reply().await.id, told.id);
    worker.halt();
    within("the end", worker.join()).await.unwrap();
    assert_eq!(header_of(&bench.from(LANE).await).id, untold.id, "it is in its queue, to be run again");
}

#[tokio::test]
async fn with_its_broker_closed_a_worker_ends_with_an_error() {
    let bench = Bench::new().await;
    let worker = bench.local(1).await;
    bench.broker.close().await;
    assert_eq!(within("the end", worker.join()).await, Err(WorkerError::BrokerClosed));
    assert!(!worker.registered());
}

#[tokio::test]
async fn a_dead_queue_that_is_full_keeps_the_job_where_it_is() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { dead_messages_max: 1, ..Limits::default() };
    let open =
        broker::embedded::Embedded::open(broker::embedded::Config { dir: dir.path().join("b"), limits });
    let broker = open.await.unwrap();
    let config = Config { publish_patience: Duration::from_millis(20), ..config() };
    let shared: (Arc<dyn Broker>, Arc<dyn State>) = (broker.clone(), bench.state.clone());
    let worker = Worker::start(config, shared.0, shared.1, None, local(1)).await.unwrap();
    let headers = [header("digits"), header("digits")];
    for header in &headers {
        let mut header = header.clone();
        header.reply_to = None;
        broker
            .publish(Route::To(LANE), message(&header, Bytes::from_static(b"no body")))
            .await
            .await
            .unwrap();
        assert_eq!(bench.recorded(header.id).await.status, Status::Failed);
    }
    bench.died(headers[0].id).await;
    // Room again: the second comes back, is answered from its record, and buried.
    let mut dead = broker.consume(&Queue::Dead, 1).await.unwrap();
    let first = next(&mut *dead).await;
    assert_eq!(header_of(&first.message).id, headers[0].id);
    first.ack();
    let second = next(&mut *dead).await;
    assert_eq!(header_of(&second.message).id, headers[1].id);
    second.ack();
    bench.died(headers[1].id).await;
    worker.drain();
    within("the end", worker.join()).await.unwrap();
}
