//! Reply queues: they come and go with their clients.

use super::Fixture;
use super::steps::*;
use crate::{BrokerError, Limits, PublishError, Queue, Route};
use schemas::Class;
use std::time::Duration;

/// A message for a queue that is not there is an error of its own receipt; its neighbours are confirmed, and the
/// broker works on.
pub async fn an_unroutable_message_fails_alone<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let (there, gone) = (Queue::Jobs(Class::Normal), Queue::Reply(reply_queue("gone")));
    let mut receipts = Vec::new();
    for n in 0..30 {
        let queue = if n % 3 == 1 { &gone } else { &there };
        receipts.push(broker.publish(Route::To(queue.clone()), message(n.to_string())).await);
    }
    for (n, receipt) in receipts.into_iter().enumerate() {
        let expected =
            if n % 3 == 1 { Err(PublishError::Unroutable { queue: gone.to_string() }) } else { Ok(()) };
        assert_eq!(within("a receipt", receipt).await, expected, "message {n}");
    }
    let mut consumer = consume(&*broker, &there, 10).await;
    let expected: Vec<String> = (0..30).filter(|n| n % 3 != 1).map(|n: i32| n.to_string()).collect();
    assert_eq!(drain(&mut consumer, 20).await, expected);
}

/// A reply queue that nobody consumed for `reply_expiry` is gone; one that is consumed stays.
pub async fn an_unused_reply_queue_expires<F: Fixture>() {
    let fixture = F::clean(Limits { reply_expiry: Duration::from_millis(500), ..roomy() }).await;
    let broker = fixture.open().await;
    let (kept, left) = (Queue::Reply(reply_queue("kept")), Queue::Reply(reply_queue("left")));
    let mut keeper = consume(&*broker, &kept, 10).await;
    drop(consume(&*broker, &left, 10).await);
    // Looked at by publishing: asking for its depth counts as using it on some brokers.
    let error = eventually("the expiry of an unused reply queue", || async {
        offer(&*broker, Route::To(left.clone()), message("late")).await.err()
    })
    .await;
    assert_eq!(error, PublishError::Unroutable { queue: left.to_string() });
    assert_eq!(depth(&*broker, &left).await, None);
    publish(&*broker, Route::To(kept.clone()), message("kept")).await;
    assert_eq!(drain(&mut keeper, 1).await, ["kept"]);

    // Its name can be used again, and nothing of before comes with it.
    let mut consumer = consume(&*broker, &left, 10).await;
    publish(&*broker, Route::To(left.clone()), message("new")).await;
    assert_eq!(drain(&mut consumer, 1).await, ["new"]);
}

/// A reply queue has one consumer: a second is refused, in this process and in another, until the first is gone.
pub async fn a_reply_queue_has_one_consumer<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let (broker, other) = (fixture.open().await, fixture.open().await);
    let queue = Queue::Reply(reply_queue("one"));
    let mut first = consume(&*broker, &queue, 10).await;
    for broker in [&broker, &other] {
        let refused = within("a refusal", broker.consume(&queue, 10)).await.err();
        assert!(matches!(refused, Some(BrokerError::Refused { .. })), "{refused:?}");
    }
    publish(&*other, Route::To(queue.clone()), message("for the first")).await;
    assert_eq!(drain(&mut first, 1).await, ["for the first"], "a refused consumer must not harm the first");
    drop(first);
    let mut second = consume_when_free(&*other, &queue, 10).await;
    publish(&*broker, Route::To(queue.clone()), message("for the second")).await;
    assert_eq!(drain(&mut second, 1).await, ["for the second"]);
}

/// Replies that arrive while their client is away, or the service restarts, wait for it.
pub async fn a_reply_queue_keeps_replies_while_its_client_is_away<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let queue = Queue::Reply(reply_queue("away"));
    drop(consume(&*broker, &queue, 10).await);
    publish_all(&*broker, &queue, ["a".to_owned()]).await;
    let broker = fixture.restart(broker).await;
    publish_all(&*broker, &queue, ["b".to_owned()]).await;
    let mut consumer = consume_when_free(&*broker, &queue, 10).await;
    assert_eq!(drain(&mut consumer, 2).await, ["a", "b"]);
}
