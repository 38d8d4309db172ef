//! What operators do.

use crate::rig::{Act, Station, bounded, job, sum};
use broker::{Message, Properties, Queue, Route};
use futures_util::{StreamExt, stream};
use producer::operations::{Which, dead_drop, dead_list, dead_requeue, dead_show, status};
use producer::{Client, Submission};
use schemas::{FailureKind, JobId, Status};

/// `count` dead jobs, oldest first.
async fn die(station: &Station, client: &Client, count: u8) -> Vec<JobId> {
    let responder = station.respond(|_, _| Act::Die(FailureKind::ModelError)).await;
    let mut ids = Vec::new();
    for n in 0..count {
        // One after the other, so that their order is known.
        let result = bounded(client.submit(job(&[f32::from(n); 4])).await.unwrap()).await.unwrap();
        assert_eq!(result.status, Status::Failed);
        ids.push(result.id);
        // Acknowledged as well: one aborted before that would leave its job in the queue.
        responder.handled(ids.len()).await;
    }
    drop(responder);
    ids
}

#[tokio::test]
async fn dead_jobs_are_listed_in_pages_newest_first_and_shown() {
    let station = Station::open().await;
    let client = station.client().await;
    let ids = die(&station, &client, 5).await;
    let page = dead_list(&*station.state, 1, 2).await.unwrap();
    assert_eq!((page.total, page.offset), (5, 1));
    assert_eq!(page.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [ids[3], ids[2]]);
    let shown = dead_show(&*station.state, ids[2]).await.unwrap().unwrap();
    assert_eq!((shown.entry.id, shown.entry.failure.kind), (ids[2], FailureKind::ModelError));
    assert_eq!(shown.result.unwrap().status, Status::Failed);
    assert!(dead_show(&*station.state, JobId::new()).await.unwrap().is_none());
}

#[tokio::test]
async fn chosen_dead_jobs_are_requeued_as_new_jobs_and_the_others_stay() {
    let station = Station::open().await;
    let client = station.client().await;
    let ids = die(&station, &client, 6).await;
    let stranger = JobId::new();
    let which = Which::These(vec![ids[4], ids[1], stranger]);
    let requeued = bounded(dead_requeue(&*station.broker, &*station.state, &which)).await.unwrap();
    assert_eq!(requeued.not_found, [stranger]);
    assert_eq!(requeued.jobs.iter().map(|job| job.origin).collect::<Vec<_>>(), [ids[1], ids[4]]);
    assert_eq!(dead_list(&*station.state, 0, 10).await.unwrap().total, 4);
    let depth = station.depth(Queue::Dead).await;
    assert_eq!((depth.ready, depth.unacked), (4, Some(0)), "the others were given back");

    let responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    for requeue in &requeued.jobs {
        let result = client.wait(requeue.id, crate::rig::PATIENCE).await.unwrap();
        assert_eq!((result.status, result.origin), (Status::Succeeded, Some(requeue.origin)));
    }
    let headers: Vec<_> = responder.seen().into_iter().map(|seen| seen.header).collect();
    assert!(headers.iter().all(|header| header.attempt == 1 && header.history.is_empty()));
    assert!(headers.iter().all(|header| header.client == *client.name() && header.reply_to.is_none()));
}

#[tokio::test]
async fn all_dead_jobs_are_requeued_but_for_those_that_cannot_be_read() {
    let station = Station::open().await;
    let client = station.client().await;
    let ids = die(&station, &client, 3).await;
    let unreadable = JobId::new();
    let properties = Properties { correlation_id: Some(unreadable.to_string()), ..Properties::default() };
    let message = Message { packed: Some("rubbish".into()), properties, ..Message::default() };
    station.broker.publish(Route::To(Queue::Dead), message).await.await.unwrap();

    let requeued = bounded(dead_requeue(&*station.broker, &*station.state, &Which::All)).await.unwrap();
    assert_eq!((requeued.jobs.len(), requeued.unreadable), (3, 1));
    assert!(requeued.jobs.iter().map(|job| job.origin).eq(ids));
    assert_eq!(
        (station.ready(Queue::Dead).await, station.ready(Queue::Jobs(schemas::Class::Normal)).await),
        (1, 3)
    );

    let which = Which::These(vec![unreadable]);
    let dropped = bounded(dead_drop(&*station.broker, &*station.state, &which)).await.unwrap();
    assert_eq!((dropped.jobs, dropped.not_found.len()), (1, 0));
    assert_eq!(station.ready(Queue::Dead).await, 0);
}

#[tokio::test]
async fn dropping_forgets_jobs_and_entries_and_a_copy_goes_with_its_job() {
    let station = Station::open().await;
    let client = station.client().await;
    let ids = die(&station, &client, 4).await;
    // A crash between publish and acknowledge leaves a job twice in the queue.
    let mut dead = station.broker.consume(&Queue::Dead, 10).await.unwrap();
    let Some(broker::Incoming::Delivery(first)) = bounded(dead.next()).await else {
        panic!("nothing is dead")
    };
    station.broker.publish(Route::To(Queue::Dead), first.message.clone()).await.await.unwrap();
    first.give_back();
    drop(dead);

    let which = Which::These(vec![ids[0]]);
    let dropped = bounded(dead_drop(&*station.broker, &*station.state, &which)).await.unwrap();
    assert_eq!(dropped.jobs, 1);
    assert_eq!(dead_list(&*station.state, 0, 10).await.unwrap().total, 3);
    let dropped = bounded(dead_drop(&*station.broker, &*station.state, &Which::All)).await.unwrap();
    assert!((3..=4).contains(&dropped.jobs), "{dropped:?}");
    assert_eq!(dead_list(&*station.state, 0, 10).await.unwrap().total, 0);
    let depth = station.depth(Queue::Dead).await;
    assert_eq!((depth.ready, depth.unacked), (0, Some(0)));
}

#[tokio::test]
async fn status_tells_depths_lanes_and_what_to_do() {
    let station = Station::open().await;
    let client = station.client().await;
    die(&station, &client, 1).await;
    let jobs = client.enqueue_many(stream::iter((0..3).map(|_| job(&[1.0; 4]))));
    assert_eq!(bounded(jobs.count()).await, 3);
    let empty = status(Ok(&*station.broker), &*station.state).await;
    assert!(
        empty.lanes.iter().all(|lane| !lane.available && lane.note.as_ref().unwrap().contains("no worker"))
    );

    station.pretend_alive().await;
    let status = status(Ok(&*station.broker), &*station.state).await;
    assert!(status.broker.healthy && status.state.healthy, "{status:?}");
    assert_eq!((status.dead, status.intake.ready, status.dispatchers.len()), (Some(1), 3, 1));
    let queue = |name: &str| status.queues.iter().find(|queue| queue.name == name).unwrap();
    assert_eq!((queue("jobs.normal").ready, queue("dead").ready), (3, 1));
    let local = status.lanes.iter().find(|lane| lane.lane == schemas::Lane::Local).unwrap();
    assert_eq!(
        (local.available, local.workers, local.slots, local.running, local.room),
        (true, 1, 2, 1, Some(1))
    );
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<producer::operations::Status>(&json).unwrap(), status);

    station.state.close().await;
    let away = producer::operations::status(Ok(&*station.broker), &*station.state).await;
    assert!(away.broker.healthy && !away.state.healthy && away.state.problem.is_some());
    assert_eq!(away.dead, None);
    assert!(!away.queues.is_empty(), "what the broker knows is still told");
}

#[tokio::test]
async fn a_dead_claim_check_is_requeued_with_its_input() {
    let station = Station::open().await;
    let client = station.client().await;
    let responder = station.respond(|_, _| Act::Die(FailureKind::ModelError)).await;
    let input =
        schemas::Payload::Opaque(schemas::Opaque { content_type: "t".into(), data: vec![1; 300_000].into() });
    let large = Submission { input: input.clone(), ..job(&[0.0; 4]) };
    bounded(client.submit(large).await.unwrap()).await.unwrap();
    responder.handled(1).await;
    drop(responder);
    let requeued = bounded(dead_requeue(&*station.broker, &*station.state, &Which::All)).await.unwrap();
    let responder = station.respond(|_, _| Act::Swallow).await;
    responder.handled(1).await;
    let seen = responder.seen().remove(0);
    assert_eq!(seen.header.id, requeued.jobs[0].id);
    let schemas::Payload::Blob(blob) = &seen.body.input else { panic!("{:?}", seen.body.input) };
    assert_eq!((seen.header.size, station.blobs.get(blob).await.unwrap()), (blob.size, input));
}
