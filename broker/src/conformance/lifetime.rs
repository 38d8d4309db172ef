//! Broadcasts, and the end.

use super::Fixture;
use super::steps::*;
use crate::{BrokerError, Health, PublishError, Queue, Route};
use bytes::Bytes;
use schemas::Class;

/// A broadcast reaches everyone who listens, in its own process and in others; who comes later hears what is said
/// later.
pub async fn a_broadcast_reaches_every_listener<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let (one, other) = (fixture.open().await, fixture.open().await);
    let mut listeners = Vec::new();
    for broker in [&one, &one, &other] {
        listeners.push(broker.listen().await.expect("listening"));
    }
    one.broadcast(Bytes::from_static(b"first")).await.expect("broadcast");
    for listener in &mut listeners {
        assert_eq!(within("the first broadcast", listener.recv()).await.as_deref(), Some(&b"first"[..]));
    }
    let mut late = other.listen().await.expect("listening");
    other.broadcast(Bytes::from_static(b"second")).await.expect("broadcast");
    for listener in listeners.iter_mut().chain([&mut late]) {
        assert_eq!(within("the second broadcast", listener.recv()).await.as_deref(), Some(&b"second"[..]));
    }
    // A listener that is gone is nobody's trouble.
    drop(listeners);
    one.broadcast(Bytes::from_static(b"third")).await.expect("broadcast");
    assert_eq!(within("the third broadcast", late.recv()).await.as_deref(), Some(&b"third"[..]));
}

/// Closing ends every consumer, one that waits in `next` included, and later calls fail as closed; what was published
/// before is confirmed.
pub async fn closing_ends_everything<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let queue = Queue::Jobs(Class::Normal);
    assert_eq!(*broker.health().borrow(), Health::Connected);
    let mut waiting = consume(&*broker, &Queue::Jobs(Class::High), 1).await;
    let mut listener = broker.listen().await.expect("listening");
    let waiter = tokio::spawn(async move {
        let end = waiting.next().await.is_none();
        (end, waiting.registered())
    });
    let mut receipts = Vec::new();
    for n in 0..100 {
        receipts.push(broker.publish(Route::To(queue.clone()), message(n.to_string())).await);
    }
    within("closing", broker.close()).await;
    assert_eq!(within("the end of the consumer", waiter).await.expect("no panic"), (true, false));
    assert_eq!(within("the end of the listener", listener.recv()).await, None);
    for receipt in receipts {
        assert_eq!(within("a receipt", receipt).await, Ok(()), "closing must wait for what is under way");
    }
    assert_eq!(offer(&*broker, Route::To(queue.clone()), message("late")).await, Err(PublishError::Closed));
    assert!(matches!(broker.consume(&queue, 1).await.err(), Some(BrokerError::Closed)));
    assert!(matches!(broker.depths(std::slice::from_ref(&queue)).await, Err(BrokerError::Closed)));
    assert!(matches!(broker.broadcast(Bytes::new()).await, Err(BrokerError::Closed)));
    assert!(matches!(broker.listen().await, Err(BrokerError::Closed)));
    within("closing again", broker.close()).await;

    let broker = fixture.open().await;
    let mut consumer = consume(&*broker, &queue, 100).await;
    assert_eq!(drain(&mut consumer, 100).await, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}
