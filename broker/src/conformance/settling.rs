//! What becomes of deliveries.

use super::Fixture;
use super::steps::*;
use crate::{Death, Limits, Queue, Route};
use schemas::{Class, Lane};
use std::collections::BTreeSet;

/// What is acknowledged never comes again, not even to another process after a restart; what is not, does.
pub async fn an_acknowledged_message_is_gone_for_good<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let queue = Queue::Jobs(Class::Normal);
    let broker = fixture.open().await;
    publish_all(&*broker, &queue, ["a", "b", "c"].map(String::from)).await;
    let mut consumer = consume(&*broker, &queue, 3).await;
    let mut taken = take_many(&mut consumer, 3).await;
    let left = taken.remove(1);
    taken.into_iter().for_each(crate::Delivery::ack);
    within("closing", broker.close()).await;
    drop(left);

    let broker = fixture.open().await;
    let broker = fixture.restart(broker).await;
    let mut consumer = consume(&*broker, &queue, 3).await;
    assert_eq!(drain(&mut consumer, 1).await, ["b"]);
    drop(consumer);
    assert_empty(&*broker, &queue).await;
}

/// A delivery that is dropped unsettled comes again, says so, and its returns are counted.
pub async fn a_dropped_delivery_comes_again_and_is_counted<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let queue = Queue::Lane(Lane::Local);
    publish(&*broker, Route::To(queue.clone()), message("again")).await;
    let mut consumer = consume(&*broker, &queue, 1).await;
    for returns in 0..3 {
        let delivery = take(&mut consumer).await;
        assert_eq!(body(&delivery), "again");
        assert_eq!((delivery.redelivered, delivery.returns), (returns > 0, returns));
        drop(delivery);
    }
    take(&mut consumer).await.ack();
    drop(consumer);
    assert_empty(&*broker, &queue).await;
}

/// A delivery given back comes again, to whoever consumes the queue, and holds up nothing else.
pub async fn a_delivery_given_back_comes_again<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let queue = Queue::Wait(Lane::Docker, Class::High);
    publish_all(&*broker, &queue, ["a", "b", "c"].map(String::from)).await;
    let mut first = consume(&*broker, &queue, 1).await;
    let delivery = take(&mut first).await;
    drop(first);
    let mut second = consume(&*broker, &queue, 1).await;
    delivery.give_back();
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        let delivery = take(&mut second).await;
        assert_eq!(delivery.redelivered, body(&delivery) == "a", "{}", body(&delivery));
        assert!(seen.insert(body(&delivery)), "{} came twice", body(&delivery));
        delivery.ack();
    }
}

/// At most `prefetch` deliveries are out at once: what one consumer may not have, another gets. Prefetch can be
/// raised and lowered while deliveries are out.
pub async fn prefetch_is_never_exceeded_and_can_be_changed<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let queue = Queue::Jobs(Class::Normal);
    publish_all(&*broker, &queue, (0..12).map(|n| n.to_string())).await;
    let mut bounded = consume(&*broker, &queue, 3).await;
    let mut held = take_many(&mut bounded, 3).await;
    within("set_prefetch", bounded.set_prefetch(5)).await.expect("raised");
    held.extend(take_many(&mut bounded, 2).await);
    within("set_prefetch", bounded.set_prefetch(1)).await.expect("lowered");
    held.drain(1..).for_each(crate::Delivery::ack);

    let mut greedy = consume(&*broker, &queue, 100).await;
    let rest = tokio::select! {
        biased;
        over = bounded.next() => panic!("the bounded consumer got more than it may have: {over:?}"),
        rest = drain(&mut greedy, 7) => rest,
    };
    let expected: Vec<String> = (5..12).map(|n| n.to_string()).collect();
    assert_eq!(rest, expected, "the bounded consumer was kept more than it may have");
    drop(greedy);

    publish_all(&*broker, &queue, ["next".to_owned()]).await;
    held.drain(..).for_each(crate::Delivery::ack);
    assert_eq!(drain(&mut bounded, 1).await, ["next"]);
}

/// Several consumers of one queue, in one process and in others, share its messages: each goes to one of them, and
/// each of them gets as many as it may hold.
pub async fn consumers_of_one_queue_share_it<F: Fixture>() {
    const EACH: usize = 40;
    let fixture = F::clean(roomy()).await;
    let queue = Queue::Jobs(Class::High);
    let (one, other) = (fixture.open().await, fixture.open().await);
    let mut consumers = Vec::new();
    for broker in [&one, &one, &other] {
        consumers.push(consume(&**broker, &queue, EACH as u32).await);
    }
    publish_all(&*one, &queue, (0..3 * EACH).map(|n| n.to_string())).await;
    let mut held = Vec::new();
    for consumer in &mut consumers {
        held.extend(take_many(consumer, EACH).await);
    }
    let distinct: BTreeSet<String> = held.iter().map(body).collect();
    assert_eq!(distinct.len(), 3 * EACH, "a message came twice");
    assert!(held.iter().all(|delivery| !delivery.redelivered));
    held.into_iter().for_each(crate::Delivery::ack);
}

/// Dropping a consumer stops its deliveries; those already handed out are settled as if it were there, and the
/// messages it never saw go to others.
pub async fn a_dropped_consumer_leaves_its_deliveries_to_be_settled<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let queue = Queue::Lane(Lane::Serverless);
    publish_all(&*broker, &queue, (0..10).map(|n| n.to_string())).await;
    let mut consumer = consume(&*broker, &queue, 10).await;
    let mut held = take_many(&mut consumer, 3).await;
    drop(consumer);

    let mut second = consume(&*broker, &queue, 20).await;
    let mut others: Vec<String> = drain(&mut second, 7).await;
    others.sort_by_key(|body| body.parse::<u32>().expect("a number"));
    assert_eq!(others, (3..10).map(|n| n.to_string()).collect::<Vec<_>>());
    let given_back = held.remove(1);
    held.into_iter().for_each(crate::Delivery::ack);
    given_back.give_back();
    assert_eq!(drain(&mut second, 1).await, ["1"]);
    within("closing", broker.close()).await;

    assert_empty(&*fixture.open().await, &queue).await;
}

/// A message returned more than `returns_max` times leaves its queue and arrives at `dead.intake`, with the queue
/// it was in and the reason. Its neighbour stays.
pub async fn a_message_returned_too_often_arrives_at_dead_intake<F: Fixture>() {
    const RETURNS: u32 = 3;
    let fixture = F::clean(Limits { returns_max: RETURNS, ..roomy() }).await;
    let broker = fixture.open().await;
    let queue = Queue::Lane(Lane::Local);
    publish_all(&*broker, &queue, ["poison".to_owned()]).await;
    let mut consumer = consume(&*broker, &queue, 1).await;
    for returns in 0..=RETURNS {
        let delivery = take(&mut consumer).await;
        assert_eq!((body(&delivery).as_str(), delivery.returns), ("poison", returns));
        delivery.give_back();
    }
    publish_all(&*broker, &queue, ["good".to_owned()]).await;
    assert_eq!(drain(&mut consumer, 1).await, ["good"], "it came once too often");

    let mut intake = consume(&*broker, &Queue::DeadIntake, 10).await;
    let dead = take(&mut intake).await;
    assert_eq!(body(&dead), "poison");
    assert_eq!(dead.death, Some(Death { queue: queue.to_string(), reason: "delivery_limit".to_owned() }));
    dead.ack();
    drop(intake);
    assert_empty(&*broker, &Queue::DeadIntake).await;
}

/// The end of the line has no end of its own: what is returned to `dead.intake` stays there, however often, and
/// keeps the reason it came with over a restart.
pub async fn dead_intake_gives_up_on_nothing<F: Fixture>() {
    let fixture = F::clean(Limits { returns_max: 1, ..roomy() }).await;
    let broker = fixture.open().await;
    let queue = Queue::Jobs(Class::Low);
    publish_all(&*broker, &queue, ["poison".to_owned()]).await;
    let mut consumer = consume(&*broker, &queue, 1).await;
    for _ in 0..2 {
        take(&mut consumer).await.give_back();
    }
    let mut intake = consume(&*broker, &Queue::DeadIntake, 1).await;
    // More than the 20 returns that some brokers allow where nothing is set.
    for _ in 0..25 {
        let dead = take(&mut intake).await;
        assert_eq!(body(&dead), "poison");
        dead.give_back();
    }
    drop(intake);
    let broker = fixture.restart(broker).await;
    let mut intake = consume_when_free(&*broker, &Queue::DeadIntake, 1).await;
    let dead = take(&mut intake).await;
    assert_eq!(body(&dead), "poison");
    assert_eq!(dead.death.as_ref().map(|death| death.queue.as_str()), Some("jobs.low"));
    dead.ack();
}
