//! The steps that properties are made of. Each waits for its condition and panics, naming it, when it does not come.

use super::PATIENCE;
use crate::{
    Broker, BrokerError, Consumer, Delivery, Depth, Incoming, Limits, Message, PublishError, Queue, Route,
};
use bytes::Bytes;
use schemas::{ClientName, ReplyQueue};
use std::future::Future;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(20);

/// Limits that no property reaches unless it lowers one.
pub(super) fn roomy() -> Limits {
    Limits { queue_messages_max: 100_000, queue_bytes_max: 256 << 20, ..Limits::default() }
}

/// What `future` yields, within [`PATIENCE`].
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Looks until `look` finds something.
pub(super) async fn eventually<T, L: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> L,
) -> T {
    within(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(LOOK).await;
        }
    })
    .await
}

pub(super) fn message(body: impl AsRef<str>) -> Message {
    Message { body: Bytes::copy_from_slice(body.as_ref().as_bytes()), ..Message::default() }
}

pub(super) fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.to_vec()).expect("the suite publishes text")
}

pub(super) fn reply_queue(instance: &str) -> ReplyQueue {
    let client = ClientName::new("guest").expect("a client name");
    ReplyQueue::of(&client, instance).expect("a reply queue name")
}

/// Publishes and waits for the receipt.
pub(super) async fn offer(broker: &dyn Broker, route: Route, message: Message) -> Result<(), PublishError> {
    within("a receipt", async { broker.publish(route, message).await.await }).await
}

/// Publishes and has it confirmed.
pub(super) async fn publish(broker: &dyn Broker, route: Route, message: Message) {
    let queue = route.queue();
    offer(broker, route, message).await.unwrap_or_else(|error| panic!("publishing to {queue}: {error}"));
}

/// Publishes these bodies in order and has all of them confirmed.
pub(super) async fn publish_all(
    broker: &dyn Broker,
    queue: &Queue,
    bodies: impl IntoIterator<Item = String>,
) {
    for body in bodies {
        publish(broker, Route::To(queue.clone()), message(body)).await;
    }
}

pub(super) async fn consume(broker: &dyn Broker, queue: &Queue, prefetch: u32) -> Box<dyn Consumer> {
    within("a consumer", broker.consume(queue, prefetch))
        .await
        .unwrap_or_else(|error| panic!("consuming {queue}: {error}"))
}

/// Consumes as soon as the queue's last consumer is really gone: brokers learn of that a little later.
pub(super) async fn consume_when_free(
    broker: &dyn Broker,
    queue: &Queue,
    prefetch: u32,
) -> Box<dyn Consumer> {
    eventually("the queue to be free for a consumer", || async {
        match broker.consume(queue, prefetch).await {
            Ok(consumer) => Some(consumer),
            Err(BrokerError::Refused { .. }) => None,
            Err(error) => panic!("consuming {queue}: {error}"),
        }
    })
    .await
}

/// The next delivery.
pub(super) async fn take(consumer: &mut Box<dyn Consumer>) -> Delivery {
    within("a delivery", async {
        loop {
            match consumer.next().await.expect("the broker is open") {
                Incoming::Delivery(delivery) => return *delivery,
                Incoming::Resumed => {}
            }
        }
    })
    .await
}

/// The next `count` deliveries.
pub(super) async fn take_many(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        taken.push(take(consumer).await);
    }
    taken
}

/// Takes and acknowledges `count` deliveries; their bodies.
pub(super) async fn drain(consumer: &mut Box<dyn Consumer>, count: usize) -> Vec<String> {
    let mut bodies = Vec::with_capacity(count);
    while bodies.len() < count {
        let delivery = take(consumer).await;
        bodies.push(body(&delivery));
        delivery.ack();
    }
    bodies
}

/// Shows that `queue`, which nobody consumes, holds nothing: what is published last is what comes first.
pub(super) async fn assert_empty(broker: &dyn Broker, queue: &Queue) {
    publish(broker, Route::To(queue.clone()), message("sentinel")).await;
    let mut consumer = consume_when_free(broker, queue, 10).await;
    assert_eq!(drain(&mut consumer, 1).await, ["sentinel"], "{queue} should have been empty");
}

pub(super) async fn depth(broker: &dyn Broker, queue: &Queue) -> Option<Depth> {
    let depths = within("depths", broker.depths(std::slice::from_ref(queue))).await;
    depths.unwrap_or_else(|error| panic!("depth of {queue}: {error}"))[0]
}

/// Publishes messages of `bytes` bytes until the queue is full; how many it took. More than `at_most` is a failure.
pub(super) async fn fill(broker: &dyn Broker, queue: &Queue, bytes: usize, at_most: usize) -> usize {
    for taken in 0..=at_most {
        let message = Message { body: vec![b'x'; bytes].into(), ..Message::default() };
        match offer(broker, Route::To(queue.clone()), message).await {
            Ok(()) => {}
            Err(PublishError::Full { queue: full }) => {
                assert_eq!(full, queue.to_string());
                return taken;
            }
            Err(error) => panic!("publishing to {queue}: {error}"),
        }
    }
    panic!("{queue} took more than {at_most} messages of {bytes} bytes")
}
