//! How jobs end: well, after another try, for good, too late, or without ever having been jobs.

use super::*;
use schemas::{FailureKind, Status};

#[tokio::test]
async fn a_job_runs_is_recorded_answered_and_acknowledged() {
    let mut bench = Bench::new().await;
    let worker = bench.local(2).await;
    let header = header("digits");
    bench.place(&header, &body()).await;
    let result = bench.reply().await;
    assert_eq!((result.id, result.status, result.attempts), (header.id, Status::Succeeded, 1));
    assert_eq!((result.lane, result.worker.as_deref()), (Some(Lane::Local), Some("w1")));
    assert_eq!(result.reason.as_deref(), Some("moderate"));
    assert!(result.run_us.is_some() && result.output.as_ref().unwrap().tensor("label").is_some());
    assert_eq!(bench.record(header.id).await, Some(result), "the record and the reply are one");
    bench.settled().await;
    worker.drain();
    worker.join().await.unwrap();
}

#[tokio::test]
async fn a_job_without_a_reply_queue_is_recorded() {
    let bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut header = header("digits");
    header.reply_to = None;
    bench.place(&header, &body()).await;
    assert_eq!(bench.recorded(header.id).await.status, Status::Succeeded);
    bench.settled().await;
}

#[tokio::test]
async fn only_wanted_outputs_come_back() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut body = body();
    body.outputs = vec!["label".to_owned()];
    bench.place(&header("digits"), &body).await;
    let output = bench.reply().await.output.unwrap();
    assert!(output.tensor("label").is_some() && output.tensor("probabilities").is_none());
}

#[tokio::test]
async fn a_batch_of_many_images_runs_as_one_job() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let images = Tensor::fp32("image", [500, 64], &[1.0; 32_000]).unwrap();
    let mut body = JobBody::new(Payload::Tensors(vec![images]));
    body.outputs = vec!["label".to_owned()];
    bench.place(&header("digits"), &body).await;
    let output = bench.reply().await.output.unwrap();
    assert_eq!(output.tensor("label").unwrap().shape(), [500]);
}

#[tokio::test]
async fn a_failed_attempt_is_made_again_with_its_history_and_foreign_headers() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let (header, body) = (header("diagnose.fail"), body_with("times", 1));
    let mut placed = message(&header, body.encode());
    placed.headers = vec![("x-tenant".to_owned(), broker::Value::Text("blue".to_owned()))];
    bench.publish(Route::To(LANE), placed.clone()).await;
    let again = bench.from(Queue::Jobs(Class::Normal)).await;
    assert_eq!((&again.body, &again.headers), (&placed.body, &placed.headers));
    let next = header_of(&again);
    assert_eq!((next.id, next.attempt, &next.placement), (header.id, 2, &None));
    assert!(next.failed_lanes.contains(Lane::Local));
    assert_eq!(next.history[0].failure.kind, FailureKind::ModelError);
    assert_eq!(bench.record(header.id).await, None, "a job that will be tried again has not ended");
    bench.publish(Route::To(LANE), again).await;
    let result = bench.reply().await;
    assert_eq!((result.status, result.attempts, result.history.len()), (Status::Succeeded, 2, 1));
}

#[tokio::test]
async fn after_the_last_attempt_a_job_is_recorded_answered_and_buried() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut header = header("diagnose.fail");
    header.attempt = 4;
    bench.place(&header, &body()).await;
    let result = bench.reply().await;
    assert_eq!((result.status, result.attempts), (Status::Failed, 4));
    assert!(result.error.as_ref().unwrap().message.contains("gave up after 4 attempts"));
    assert_eq!(bench.record(header.id).await.as_ref(), Some(&result));
    let entry = bench.died(header.id).await;
    assert_eq!(
        (entry.failure.kind, entry.attempts, &entry.queue[..]),
        (FailureKind::ModelError, 4, "lane.local")
    );
    let dead = bench.from(Queue::Dead).await;
    assert_eq!(dead.properties.correlation_id, Some(header.id.to_string()));
    assert_eq!((header_of(&dead).history.len(), dead.body), (1, body().encode()));
    bench.settled().await;
}

#[tokio::test]
async fn what_another_try_cannot_help_fails_at_once_and_says_what_was_wrong() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let shape = JobBody::new(Payload::Tensors(vec![Tensor::fp32("image", [1, 63], &[0.0; 63]).unwrap()]));
    let mut newer = body();
    newer.version = 9;
    let mut stray = body();
    stray.outputs = vec!["lable".to_owned()];
    for (model, body, kind, words) in [
        ("digits", shape.encode(), FailureKind::InvalidInput, "not [1, 63]"),
        ("digits", stray.encode(), FailureKind::InvalidInput, "no output \"lable\""),
        ("digits", Bytes::from_static(b"hello"), FailureKind::Undecodable, "not valid MessagePack"),
        ("digits", Bytes::new(), FailureKind::Undecodable, "not valid MessagePack"),
        ("digits", newer.encode(), FailureKind::UnsupportedVersion, "wire version 9"),
        ("digits", vec![0; 3 * INLINE_BYTES_DEFAULT].into(), FailureKind::TooLarge, "through the blob store"),
    ] {
        let header = header(model);
        bench.publish(Route::To(LANE), message(&header, body)).await;
        let result = bench.reply().await;
        let error = result.error.unwrap();
        assert_eq!((result.id, result.status, error.kind), (header.id, Status::Failed, kind), "{words}");
        assert!(error.message.contains(words), "{words}: {error}");
        assert_eq!(bench.died(header.id).await.failure.kind, kind);
    }
    bench.settled().await;
}

#[tokio::test]
async fn a_panicking_model_fails_its_job_and_the_next_one_runs() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut panics = header("diagnose.panic");
    panics.attempts_max = Some(1);
    bench.place(&panics, &body()).await;
    let error = bench.reply().await.error.unwrap();
    assert_eq!(error.kind, FailureKind::ModelError);
    assert!(error.message.contains("panicked"), "{error}");
    bench.place(&header("digits"), &body()).await;
    assert_eq!(bench.reply().await.status, Status::Succeeded);
}

#[tokio::test]
async fn a_run_over_its_limit_is_tried_again_and_its_thread_replaced() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut hangs = header("diagnose.hang");
    hangs.run_timeout = Some(Duration::from_millis(30));
    bench.place(&hangs, &body()).await;
    let again = header_of(&bench.from(Queue::Jobs(Class::Normal)).await);
    assert_eq!((again.attempt, again.history[0].failure.kind), (2, FailureKind::Timeout));
    bench.place(&header("digits"), &body()).await;
    assert_eq!(bench.reply().await.status, Status::Succeeded, "another thread has its place");
    eventually("a report of the abandoned thread", || async {
        let workers = bench.state.workers().await.unwrap();
        workers.first().filter(|worker| worker.abandoned == 1 && worker.slots == 1).map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_passed_deadline_expires_the_job_unrun_and_unburied() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut late = header("diagnose.abort");
    late.deadline = UnixMillis(1);
    bench.place(&late, &body()).await;
    let result = bench.reply().await;
    assert_eq!((result.status, result.attempts), (Status::Expired, 0));
    assert_eq!(result.error.as_ref().unwrap().kind, FailureKind::DeadlineExceeded);
    assert_eq!(bench.record(late.id).await, Some(result));
    bench.settled().await;
    assert_eq!(bench.state.dead(0, 10).await.unwrap().1, 0);
}

#[tokio::test]
async fn a_message_that_is_no_job_is_buried_and_its_sender_told() {
    let mut bench = Bench::new().await;
    let _worker = bench.local(1).await;
    let mut newer = header("digits").encode().to_vec();
    newer[3] = 9; // array 16, its length in two bytes, then the version
    for (packed, kind) in [
        (None, FailureKind::Undecodable),
        (Some(Bytes::from_static(b"\xc1rubbish")), FailureKind::Undecodable),
        (Some(Bytes::from(newer)), FailureKind::UnsupportedVersion),
    ] {
        let id = JobId::new();
        let properties = broker::Properties {
            correlation_id: Some(id.to_string()),
            reply_to: Some(reply_queue().to_string()),
            ..broker::Properties::default()
        };
        let body = Bytes::from_static(b"whatever it is");
        bench
            .publish(
                Route::To(LANE),
                Message { packed: packed.clone(), properties, body, ..Message::default() },
            )
            .await;
        let result = bench.reply().await;
        assert_eq!((result.id, result.status, result.error.unwrap().kind), (id, Status::Failed, kind));
        assert_eq!(bench.died(id).await.failure.kind, kind);
        let dead = bench.from(Queue::Dead).await;
        assert_eq!((dead.packed, &dead.body[..]), (packed, &b"whatever it is"[..]));
        assert_eq!(bench.record(id).await, None, "the id is only a claim");
    }
    bench.settled().await;
}

#[tokio::test]
async fn a_model_that_this_worker_has_not_costs_no_attempt() {
    let bench = Bench::new().await;
    let _worker = bench.local(1).await;
    bench.place(&header("elsewhere"), &body()).await;
    let again = header_of(&bench.from(Queue::Jobs(Class::Normal)).await);
    assert_eq!((again.attempt, again.failed_lanes), (1, schemas::LaneSet::EMPTY.with(Lane::Local)));
    assert_eq!(again.history[0].failure.kind, FailureKind::Busy);
}
