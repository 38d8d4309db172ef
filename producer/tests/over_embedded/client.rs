//! One job at a time: every way a result comes, and every way it does not.

use crate::rig::{Act, Meter, PATIENCE, Station, bounded, image, job, sum, sum_of};
use broker::{Message, Properties, Queue, Route};
use producer::client::{Cancelled, OpenError};
use producer::{Config, Identity, SubmitError, WaitError};
use schemas::control::Control;
use schemas::limits::INLINE_BYTES_DEFAULT;
use schemas::{Class, ClientName, JobId, Opaque, Payload, Status, wire};
use std::time::Duration;

#[tokio::test]
async fn a_job_goes_out_with_its_facts_and_its_result_comes_back() {
    let station = Station::open().await;
    let responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    let client = station.client().await;
    let mut submission = job(&[1.0, 2.0, 3.0, 4.0]);
    submission.class = Class::High;
    submission.deadline = Duration::from_secs(90);
    submission.attempts_max = Some(2);
    submission.trace = Some("00-aa-bb-01".into());
    let ticket = client.submit(submission).await.unwrap();
    let id = ticket.id();
    let result = bounded(ticket).await.unwrap();
    assert_eq!((result.id, result.status, sum_of(&result)), (id, Status::Succeeded, 10.0));

    let seen = responder.seen().remove(0);
    let header = seen.header;
    assert_eq!((header.id, header.class, header.attempt), (id, Class::High, 1));
    assert_eq!(header.size, seen.message.body.len() as u64);
    assert_eq!(header.deadline.since(header.submitted), Duration::from_secs(90));
    assert_eq!((header.attempts_max, header.trace.as_deref()), (Some(2), Some("00-aa-bb-01")));
    assert_eq!(header.reply_to.as_ref(), Some(client.reply_queue()));
    assert!(client.reply_queue().belongs_to(client.name()));
    let properties = seen.message.properties;
    assert_eq!(properties.correlation_id, Some(id.to_string()));
    assert_eq!(properties.reply_to, Some(client.reply_queue().to_string()));
    assert_eq!(properties.content_type.as_deref(), Some(wire::CONTENT_TYPE));
    assert_eq!(client.pending(), 0);

    let fetched = client.fetch(&[JobId::new(), id]).await.unwrap();
    assert_eq!(fetched, [None, Some(result)]);
}

#[tokio::test]
async fn a_repeated_reply_and_a_stranger_s_are_ignored_and_counted() {
    let meter = Meter::new();
    let station = Station::open().await;
    let _responder = station.respond(|_, body| Act::AnswerTwice(sum(body))).await;
    let client = station.client().await;
    let ticket = client.submit(job(&[1.0; 4])).await.unwrap();
    assert_eq!(sum_of(&bounded(ticket).await.unwrap()), 4.0);
    meter.shows("straightline_replies_ignored_total{why=\"unknown\"} 1").await;

    // Rubbish under the id of a job that is waited for: ignored, and the true reply still comes.
    let ticket = client.submit(job(&[2.0; 4])).await.unwrap();
    let properties = Properties { correlation_id: Some(ticket.id().to_string()), ..Properties::default() };
    let rubbish = Message { properties, body: "rubbish".into(), ..Message::default() };
    let queue = Queue::Reply(client.reply_queue().clone());
    station.broker.publish(Route::To(queue.clone()), rubbish).await.await.unwrap();
    assert_eq!(sum_of(&bounded(ticket).await.unwrap()), 8.0);
    bounded(async {
        while station.depth(queue.clone()).await
            != (broker::Depth { ready: 0, unacked: Some(0), consumers: 1 })
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_lost_reply_strands_nobody() {
    let station = Station::open().await;
    let _responder = station.respond(|_, body| Act::LoseReply(sum(body))).await;
    let config = Config { look_after: Duration::from_millis(20), ..station.config() };
    let client = station.client_of(config).await;
    let ticket = client.submit(job(&[1.0; 4])).await.unwrap();
    assert_eq!(sum_of(&bounded(ticket).await.unwrap()), 4.0);
}

#[tokio::test]
async fn after_an_interruption_pending_results_are_fetched_at_once() {
    let station = Station::open().await;
    let responder = station.respond(|_, body| Act::LoseReply(sum(body))).await;
    // By itself it would look only after a minute.
    let config = Config { look_after: PATIENCE, ..station.config() };
    let client = station.client_of(config).await;
    let ticket = client.submit(job(&[1.0; 4])).await.unwrap();
    responder.handled(1).await;
    station.interrupt.notify_one();
    assert_eq!(sum_of(&bounded(ticket).await.unwrap()), 4.0);
}

#[tokio::test]
async fn any_client_can_wait_for_any_job() {
    let station = Station::open().await;
    let (submitting, asking) = (station.client().await, station.client().await);
    let id = submitting.enqueue(job(&[3.0; 4])).await.unwrap();
    let error = asking.wait(id, Duration::from_millis(30)).await.unwrap_err();
    assert!(matches!(error, WaitError::Timeout { .. }), "{error}");
    let (waited, responder) =
        tokio::join!(asking.wait(id, PATIENCE), station.respond(|_, body| Act::Answer(sum(body))));
    assert_eq!(sum_of(&waited.unwrap()), 12.0);
    assert_eq!(responder.seen()[0].header.reply_to, None, "nothing is sent back for it");
}

#[tokio::test]
async fn a_job_without_a_record_past_its_deadline_is_given_up_clearly() {
    let station = Station::open().await;
    let _responder = station.respond(|_, _| Act::Swallow).await;
    let config = Config { grace: Duration::from_millis(50), ..station.config() };
    let client = station.client_of(config).await;
    let mut submission = job(&[1.0; 4]);
    submission.deadline = Duration::from_millis(50);
    let error = bounded(client.submit(submission).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, WaitError::NoRecord { state: None, .. }), "{error}");
    assert!(error.to_string().contains("deadline has passed"), "{error}");
    assert_eq!(client.pending(), 0);
}

#[tokio::test]
async fn a_cancelled_job_answers_its_waiter_and_tells_everyone() {
    let station = Station::open().await;
    let mut control = station.broker.listen().await.unwrap();
    let client = station.client().await;
    let ticket = client.submit(job(&[1.0; 4])).await.unwrap();
    let id = ticket.id();
    let Cancelled::Now(result) = client.cancel(id).await.unwrap() else { panic!("it had not ended") };
    assert_eq!(bounded(ticket).await.unwrap(), result);
    assert_eq!((result.status, result.model.as_ref().unwrap().as_str()), (Status::Cancelled, "digits"));
    let told: Control = wire::decode(&bounded(control.recv()).await.unwrap()).unwrap();
    assert_eq!(told, Control::Cancelled { id });

    // Whoever still runs it finds the record and changes nothing.
    let responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    responder.handled(1).await;
    assert_eq!(client.fetch(&[id]).await.unwrap(), [Some(result.clone())]);
    assert_eq!(client.cancel(id).await.unwrap(), Cancelled::Before(result));

    let ticket = client.submit(job(&[2.0; 4])).await.unwrap();
    let id = ticket.id();
    let result = bounded(ticket).await.unwrap();
    assert_eq!(client.cancel(id).await.unwrap(), Cancelled::Before(result));
}

#[tokio::test]
async fn a_large_input_travels_as_a_claim_check() {
    let station = Station::open().await;
    let output = Payload::Opaque(Opaque { content_type: "image/png".into(), data: vec![7; 1 << 20].into() });
    let stored = Payload::Blob(station.blobs.put(&output).await.unwrap());
    let responder = station.respond(move |_, _| Act::Answer(stored.clone())).await;
    let client = station.client().await;
    let data = vec![1; INLINE_BYTES_DEFAULT + 1];
    let input = Payload::Opaque(Opaque { content_type: "text/plain".into(), data: data.into() });
    let mut submission = job(&[0.0; 4]);
    submission.input = input.clone();
    let result = bounded(client.submit(submission.clone()).await.unwrap()).await.unwrap();

    let seen = responder.seen().remove(0);
    let Payload::Blob(blob) = &seen.body.input else { panic!("{:?}", seen.body.input) };
    assert_eq!(seen.header.size, blob.size);
    assert!(seen.message.body.len() < 1024, "{} bytes", seen.message.body.len());
    assert_eq!(station.blobs.get(blob).await.unwrap(), input);
    assert!(matches!(result.output, Some(Payload::Blob(_))));
    assert_eq!(client.resolve(result).await.unwrap().output, Some(output));

    let without =
        producer::Client::open(station.config(), station.broker.clone(), station.state.clone(), None);
    let error = without.await.unwrap().submit(submission).await.unwrap_err();
    assert!(matches!(error, SubmitError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn one_key_is_one_job_and_another_input_is_a_conflict() {
    let station = Station::open().await;
    let client = station.client().await;
    let mut keyed = job(&[1.0; 4]);
    keyed.identity = Identity::Key("order-7".into());
    let (one, two) =
        (client.submit(keyed.clone()).await.unwrap(), client.submit(keyed.clone()).await.unwrap());
    assert_eq!(one.id(), two.id());
    assert_eq!(one.id(), JobId::from_key(client.name(), "order-7"));
    let _responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    assert_eq!(bounded(one).await.unwrap(), bounded(two).await.unwrap());
    keyed.input = image(&[2.0; 4]);
    let error = client.submit(keyed.clone()).await.unwrap_err();
    assert!(matches!(error, SubmitError::Conflict { .. }), "{error}");
}

/// The runtime would stand still meanwhile.
#[test]
fn a_large_input_is_not_read_on_the_runtime() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let station = Station::open().await;
        let client = station.client().await;
        let mut keyed = job(&[1.0; 4]);
        keyed.identity = Identity::Key("order-7".into());
        client.enqueue(keyed.clone()).await.unwrap();
        keyed.input = Payload::Opaque(Opaque { content_type: "t".into(), data: vec![7; 1 << 20].into() });

        let (held, released) = std::sync::mpsc::channel::<()>();
        let only_thread = tokio::task::spawn_blocking(move || released.recv());
        let mut submit = std::pin::pin!(client.submit(keyed));
        assert!(futures_util::poll!(&mut submit).is_pending(), "it is read where no thread is free");
        drop(held);
        assert!(only_thread.await.unwrap().is_err());
        let error = bounded(submit).await.unwrap_err();
        assert!(matches!(error, SubmitError::Conflict { .. }), "{error}");
    });
}

#[tokio::test]
async fn a_full_queue_makes_the_caller_wait_and_then_says_so() {
    let limits = broker::Limits { queue_messages_max: 3, ..broker::Limits::default() };
    let station = Station::with_limits(limits).await;
    let patient = station.client().await;
    for _ in 0..3 {
        patient.enqueue(job(&[1.0; 4])).await.unwrap();
    }
    let hasty = station.client_of(Config { patience: Duration::from_millis(80), ..station.config() }).await;
    let error = hasty.submit(job(&[1.0; 4])).await.unwrap_err();
    assert!(matches!(&error, SubmitError::Full { queue, .. } if queue == "jobs.normal"), "{error}");
    assert!(error.worth_another_try());
    assert_eq!(hasty.pending(), 0, "whoever was not submitted is not waited for");

    let (ticket, _responder) =
        tokio::join!(patient.submit(job(&[5.0; 4])), station.respond(|_, body| Act::Answer(sum(body))));
    assert_eq!(sum_of(&bounded(ticket.unwrap()).await.unwrap()), 20.0);
}

#[tokio::test]
async fn pending_jobs_are_bounded_and_dropping_a_ticket_frees_its_place() {
    let station = Station::open().await;
    let config = Config { pending_max: 2, patience: Duration::from_millis(50), ..station.config() };
    let client = station.client_of(config).await;
    let one = client.submit(job(&[1.0; 4])).await.unwrap();
    let _two = client.submit(job(&[1.0; 4])).await.unwrap();
    let error = client.submit(job(&[1.0; 4])).await.unwrap_err();
    assert!(matches!(error, SubmitError::TooManyPending { limit: 2 }), "{error}");
    drop(one);
    let _three = client.submit(job(&[1.0; 4])).await.unwrap();
    assert_eq!(client.pending(), 2);
}

#[tokio::test]
async fn closing_drains_and_then_answers_whoever_still_waits() {
    let station = Station::open().await;
    let client = station.client().await;
    let ended = client.submit(job(&[1.0; 4])).await.unwrap();
    let responder = station
        .respond(|header, body| match header.class {
            Class::Low => Act::Swallow,
            _ => Act::Answer(sum(body)),
        })
        .await;
    client.close(PATIENCE).await;
    assert_eq!(sum_of(&bounded(ended).await.unwrap()), 4.0, "closing waited for it");
    let error = client.submit(job(&[1.0; 4])).await.unwrap_err();
    assert!(matches!(error, SubmitError::Closed), "{error}");

    let other = station.client().await;
    let mut never = job(&[1.0; 4]);
    never.class = Class::Low;
    let never = other.submit(never).await.unwrap();
    responder.handled(2).await;
    other.close(Duration::from_millis(20)).await;
    let error = bounded(never).await.unwrap_err();
    assert!(matches!(error, WaitError::Closed { .. }), "{error}");
}

#[tokio::test]
async fn what_cannot_be_submitted_names_its_field_and_a_bad_instance_is_refused() {
    let station = Station::open().await;
    let client = station.client().await;
    let mut submission = job(&[1.0; 4]);
    submission.deadline = Duration::ZERO;
    let error = client.submit(submission).await.unwrap_err().to_string();
    assert!(error.starts_with("deadline is 0 ms: use 1 to"), "{error}");

    let config = Config { instance: Some("a.b".into()), ..Config::new(ClientName::new("x").unwrap()) };
    let opened = producer::Client::open(config, station.broker.clone(), station.state.clone(), None).await;
    assert!(matches!(opened.err(), Some(OpenError::Name(_))));
}
