//! Limits, and how full a queue is.

use super::Fixture;
use super::steps::*;
use crate::{Depth, Limits, PublishError, Queue, Route};
use schemas::{Class, Lane};

/// A broker that is told of a full queue a moment late takes this many more.
const OVERSHOOT: usize = 200;

/// At `queue_messages_max` publishing is refused; other queues are not concerned; once there is room it is accepted.
pub async fn a_full_queue_refuses_by_count_until_there_is_room<F: Fixture>() {
    const MAX: usize = 50;
    let fixture = F::clean(Limits { queue_messages_max: MAX as u64, ..roomy() }).await;
    fills_and_frees(&fixture, &Queue::Jobs(Class::Normal), 10, MAX).await;
}

/// At `queue_bytes_max` publishing is refused; other queues are not concerned; once there is room it is accepted.
pub async fn a_full_queue_refuses_by_bytes_until_there_is_room<F: Fixture>() {
    const BYTES: usize = 4_000;
    const MAX: usize = 50;
    let fixture = F::clean(Limits { queue_bytes_max: (BYTES * MAX) as u64, ..roomy() }).await;
    fills_and_frees(&fixture, &Queue::Lane(Lane::Docker), BYTES, MAX).await;
}

/// `dead` holds at most `dead_messages_max`.
pub async fn dead_is_bounded<F: Fixture>() {
    const MAX: usize = 30;
    let fixture = F::clean(Limits { dead_messages_max: MAX as u64, ..roomy() }).await;
    fills_and_frees(&fixture, &Queue::Dead, 10, MAX).await;
}

/// A reply queue holds at most `reply_messages_max`.
pub async fn a_reply_queue_is_bounded_by_count<F: Fixture>() {
    const MAX: usize = 40;
    let fixture = F::clean(Limits { reply_messages_max: MAX as u64, ..roomy() }).await;
    let queue = Queue::Reply(reply_queue("count"));
    drop(consume(&*fixture.open().await, &queue, 1).await);
    fills_and_frees(&fixture, &queue, 10, MAX).await;
}

/// A reply queue holds at most `reply_bytes_max`.
pub async fn a_reply_queue_is_bounded_by_bytes<F: Fixture>() {
    const BYTES: usize = 4_000;
    const MAX: usize = 40;
    let fixture = F::clean(Limits { reply_bytes_max: (BYTES * MAX) as u64, ..roomy() }).await;
    let queue = Queue::Reply(reply_queue("bytes"));
    drop(consume(&*fixture.open().await, &queue, 1).await);
    fills_and_frees(&fixture, &queue, BYTES, MAX).await;
}

async fn fills_and_frees<F: Fixture>(fixture: &F, queue: &Queue, bytes: usize, max: usize) {
    let broker = fixture.open().await;
    let taken = fill(&*broker, queue, bytes, max + OVERSHOOT).await;
    assert!(taken >= max, "{queue} refused after {taken} of {max} messages");
    // Still full, and still nobody else's business.
    let refused = offer(&*broker, Route::To(queue.clone()), message("x".repeat(bytes))).await;
    assert_eq!(refused, Err(PublishError::Full { queue: queue.to_string() }));
    publish(&*broker, Route::To(Queue::Wait(Lane::Local, Class::High)), message("elsewhere")).await;

    let mut consumer = consume_when_free(&*broker, queue, 100).await;
    assert!(drain(&mut consumer, taken).await.iter().all(|body| body.len() == bytes));
    let room = eventually("room", || async {
        match offer(&*broker, Route::To(queue.clone()), message("room")).await {
            Ok(()) => Some("room"),
            Err(PublishError::Full { .. }) => None,
            Err(error) => panic!("publishing to {queue}: {error}"),
        }
    });
    let room = room.await;
    assert_eq!(drain(&mut consumer, 1).await, [room], "what was refused must not arrive");
}

/// Depths say how many messages are ready and, where the broker knows, unacknowledged, and how many consume.
pub async fn depths_tell_ready_unacked_and_consumers<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let (used, unused) = (Queue::Jobs(Class::High), Queue::Jobs(Class::Low));
    publish_all(&*broker, &used, (0..5).map(|n| n.to_string())).await;
    let mut consumer = consume(&*broker, &used, 2).await;
    let held = take_many(&mut consumer, 2).await;
    let is = |ready, unacked, consumers| {
        let (broker, used) = (&broker, &used);
        async move {
            let found: Depth = depth(&**broker, used).await.expect("a fixed queue exists");
            let unacked_fits = found.unacked.is_none_or(|found| found == unacked);
            (found.ready == ready && found.consumers == consumers && unacked_fits).then_some(())
        }
    };
    eventually("3 ready, 2 out, 1 consumer", || is(3, 2, 1)).await;
    drop(consumer);
    // What a consumer was given may keep it on a broker's list until it is settled.
    held.into_iter().for_each(crate::Delivery::ack);
    eventually("3 ready, none out, no consumer", || is(3, 0, 0)).await;

    let missing = Queue::Reply(reply_queue("nobody"));
    let depths = broker.depths(&[unused, missing, used.clone()]).await.expect("depths");
    assert_eq!(depths[0].map(|depth| (depth.ready, depth.consumers)), Some((0, 0)));
    assert_eq!(depths[1], None);
    assert_eq!(depths[2].map(|depth| depth.ready), Some(3));
}
