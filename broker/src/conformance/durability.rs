//! What survives.

use super::Fixture;
use super::steps::*;
use crate::{Incoming, Queue, Route};
use schemas::retry::RetryDelay;
use schemas::{Class, Lane};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Brokers count whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(5);

/// What was confirmed is there after a restart, in its queue and in its order.
pub async fn a_confirmed_message_survives_a_restart<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let queues = [
        Queue::Jobs(Class::High),
        Queue::Wait(Lane::Local, Class::Low),
        Queue::Lane(Lane::Docker),
        Queue::Dead,
    ];
    for queue in &queues {
        publish_all(&*broker, queue, (0..20).map(|n| format!("{queue} {n}"))).await;
    }
    let broker = fixture.restart(broker).await;
    for queue in &queues {
        let mut consumer = consume(&*broker, queue, 5).await;
        let expected: Vec<String> = (0..20).map(|n| format!("{queue} {n}")).collect();
        assert_eq!(drain(&mut consumer, 20).await, expected);
    }
}

/// What a lost process had in hand comes again, to another, and says so; what it had acknowledged and what it had
/// not yet seen are where they should be.
pub async fn a_lost_process_loses_no_message<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let queue = Queue::Lane(Lane::Local);
    let lost = fixture.open().await;
    publish_all(&*lost, &queue, (0..10).map(|n| n.to_string())).await;
    let mut consumer = consume(&*lost, &queue, 4).await;
    let held = take_many(&mut consumer, 4).await;
    fixture.crash(lost).await;

    let broker = fixture.open().await;
    let mut other = consume(&*broker, &queue, 20).await;
    let mut seen = BTreeSet::new();
    for delivery in take_many(&mut other, 10).await {
        let number: u32 = body(&delivery).parse().expect("a number");
        assert!(delivery.redelivered || number >= 4, "{number} was in hand before");
        assert!(seen.insert(number), "{number} came twice");
        delivery.ack();
    }
    // Settling what is no longer ours must change nothing.
    held.into_iter().for_each(crate::Delivery::give_back);
    drop((other, consumer));
    assert_empty(&*broker, &queue).await;
}

/// A retry arrives in the queue of its class, not before its delay. A short delay does not wait behind a long one.
pub async fn a_retry_arrives_after_its_delay_and_not_before<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let mut consumer = consume(&*broker, &Queue::Jobs(Class::Normal), 10).await;
    let started = Instant::now();
    for ms in [1_000, 100, 500] {
        let delay = RetryDelay::at_least(Duration::from_millis(ms));
        publish(&*broker, Route::Retry(delay, Class::Normal), message(ms.to_string())).await;
    }
    for ms in [100, 500, 1_000] {
        let delivery = take(&mut consumer).await;
        let elapsed = started.elapsed();
        assert_eq!(body(&delivery), ms.to_string());
        assert!(elapsed + ROUNDING >= Duration::from_millis(ms), "{ms} ms took {elapsed:?}");
        delivery.ack();
    }
}

/// A retry that waits while the service restarts arrives once, not before its delay.
pub async fn a_retry_survives_a_restart<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let delay = RetryDelay::at_least(Duration::from_secs(2));
    let started = Instant::now();
    publish(&*broker, Route::Retry(delay, Class::Low), message("later")).await;
    let broker = fixture.restart(broker).await;
    let mut consumer = consume(&*broker, &Queue::Jobs(Class::Low), 1).await;
    assert_eq!(drain(&mut consumer, 1).await, ["later"]);
    let elapsed = started.elapsed();
    assert!(elapsed + ROUNDING >= delay.duration(), "took {elapsed:?}");
    drop(consumer);
    assert_empty(&*broker, &Queue::Jobs(Class::Low)).await;
}

/// A consumer whose service restarts says so with `Resumed`, gets what it had in hand again, and goes on. Where the
/// service lives inside the process, the consumer ends instead, and the next one finds everything.
pub async fn a_consumer_resumes_after_a_restart<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let queue = Queue::Jobs(Class::Normal);
    let broker = fixture.open().await;
    publish_all(&*broker, &queue, ["held".to_owned()]).await;
    let mut consumer = consume(&*broker, &queue, 10).await;
    let held = take(&mut consumer).await;
    let broker = fixture.restart(broker).await;
    if fixture.service_apart() {
        let next = within("Resumed", consumer.next()).await.expect("the broker is open");
        assert!(matches!(next, Incoming::Resumed), "{next:?}");
    } else {
        assert!(within("the end", consumer.next()).await.is_none());
        consumer = consume(&*broker, &queue, 10).await;
    }
    let again = take(&mut consumer).await;
    assert_eq!((body(&again).as_str(), again.redelivered), ("held", true));
    held.ack();
    again.ack();
    publish_all(&*broker, &queue, ["new".to_owned()]).await;
    assert_eq!(drain(&mut consumer, 1).await, ["new"]);
    assert!(consumer.registered());
}
