//! What arrives, and in what order.

use super::Fixture;
use super::steps::*;
use crate::{Limits, Message, Properties, Queue, Route, Value};
use bytes::Bytes;
use schemas::Class;
use schemas::retry::DELAYS;

/// Messages of one publisher reach one queue in the order of its calls, several publishers at once and receipts
/// not awaited.
pub async fn order_is_kept_per_publisher_and_queue<F: Fixture>() {
    const EACH: usize = 300;
    let fixture = F::clean(roomy()).await;
    let queue = Queue::Jobs(Class::Normal);
    let publishers = [fixture.open().await, fixture.open().await, fixture.open().await];
    let tasks = publishers.iter().enumerate().map(|(name, broker)| {
        let (broker, queue) = (broker.clone(), queue.clone());
        tokio::spawn(async move {
            let mut receipts = Vec::new();
            for n in 0..EACH {
                receipts.push(broker.publish(Route::To(queue.clone()), message(format!("{name}:{n}"))).await);
            }
            for receipt in receipts {
                within("a receipt", receipt).await.expect("confirmed");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a publisher");
    }
    let mut consumer = consume(&*publishers[0], &queue, 50).await;
    let all = drain(&mut consumer, publishers.len() * EACH).await;
    for name in 0..publishers.len() {
        let prefix = format!("{name}:");
        let own: Vec<usize> = all
            .iter()
            .filter_map(|b| b.strip_prefix(&prefix))
            .map(|n| n.parse().expect("a number"))
            .collect();
        assert_eq!(own, (0..EACH).collect::<Vec<_>>(), "publisher {name}");
    }
}

/// Many more messages than may be in flight, published without awaiting a receipt, are all confirmed, and each
/// arrives once.
pub async fn thousands_in_flight_arrive_once_and_in_order<F: Fixture>() {
    const MANY: usize = 5_000;
    let fixture =
        F::clean(Limits { in_flight_messages_max: 500, in_flight_bytes_max: 64 << 10, ..roomy() }).await;
    let broker = fixture.open().await;
    let queue = Queue::Jobs(Class::Low);
    let mut receipts = Vec::with_capacity(MANY);
    for n in 0..MANY {
        let route = Route::Submit(Class::Low);
        let message = message(format!("{n:>200}"));
        receipts.push(within("room in flight", broker.publish(route, message)).await);
    }
    for receipt in receipts {
        within("a receipt", receipt).await.expect("confirmed");
    }
    let mut consumer = consume(&*broker, &queue, 500).await;
    let numbers: Vec<usize> =
        drain(&mut consumer, MANY).await.iter().map(|b| b.trim().parse().expect("a number")).collect();
    assert_eq!(numbers, (0..MANY).collect::<Vec<_>>());
}

/// Packed header, unknown headers of every type, properties and body arrive byte for byte.
pub async fn what_is_published_comes_out_the_same<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let sent = rich(broker.login().map(|login| login.to_string()));
    for route in [Route::Submit(Class::High), Route::To(Queue::Jobs(Class::High))] {
        publish(&*broker, route, sent.clone()).await;
    }
    publish(&*broker, Route::To(Queue::Jobs(Class::High)), Message::default()).await;
    let mut consumer = consume(&*broker, &Queue::Jobs(Class::High), 10).await;
    for _ in 0..2 {
        let delivery = take(&mut consumer).await;
        assert_eq!(sorted(delivery.message.clone()), sent);
        assert!(!delivery.redelivered);
        assert_eq!((delivery.returns, &delivery.death), (0, &None));
        delivery.ack();
    }
    let empty = take(&mut consumer).await;
    assert_eq!(empty.message.body, Bytes::new());
    assert_eq!((&empty.message.packed, empty.message.headers.len()), (&None, 0));
    empty.ack();
}

/// A retry arrives in the queue of its class, and its contents are what they were.
pub async fn a_retry_keeps_its_contents_and_its_class<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    let sent = rich(broker.login().map(|login| login.to_string()));
    for class in Class::ALL {
        let own = Message { body: class.as_str().into(), ..sent.clone() };
        publish(&*broker, Route::Retry(DELAYS[0], class), own).await;
    }
    for class in Class::ALL {
        let mut consumer = consume(&*broker, &Queue::Jobs(class), 10).await;
        let delivery = take(&mut consumer).await;
        assert_eq!(sorted(delivery.message.clone()), Message { body: class.as_str().into(), ..sent.clone() });
        delivery.ack();
    }
}

/// Every queue of the fixed topology exists and gives what it takes; retry queues are seen above.
pub async fn every_fixed_queue_takes_and_gives<F: Fixture>() {
    let fixture = F::clean(roomy()).await;
    let broker = fixture.open().await;
    for queue in Queue::fixed().filter(|queue| !matches!(queue, Queue::Retry(_))) {
        publish(&*broker, Route::To(queue.clone()), message(queue.to_string())).await;
        let mut consumer = consume(&*broker, &queue, 1).await;
        assert_eq!(drain(&mut consumer, 1).await, [queue.to_string()]);
    }
    let queues: Vec<Queue> = Queue::fixed().collect();
    let depths = within("depths", broker.depths(&queues)).await.expect("depths");
    assert_eq!(depths.len(), queues.len());
    for (queue, depth) in queues.iter().zip(depths) {
        assert!(depth.is_some(), "{queue} does not exist");
    }
}

fn rich(user_id: Option<String>) -> Message {
    let nested = vec![("a".to_owned(), Value::Integer(-1)), ("b".to_owned(), Value::Text("deep".to_owned()))];
    let headers = [
        ("empty", Value::Null),
        ("false", Value::Bool(false)),
        ("large", Value::Integer(i64::MAX)),
        (
            "list",
            Value::List(vec![Value::Bool(true), Value::Integer(i64::MIN), Value::Table(nested.clone())]),
        ),
        ("number", Value::Number(-0.125)),
        ("raw", Value::Binary(Bytes::from_static(&[0, 255, 128, 7]))),
        ("table", Value::Table(nested)),
        ("text", Value::Text("grün, 手書き".to_owned())),
        ("when", Value::Timestamp(1_800_000_000)),
    ];
    Message {
        packed: Some((0..=255).collect()),
        headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
        properties: Properties {
            content_type: Some("application/msgpack".to_owned()),
            correlation_id: Some("0197c2b4-3c1e-7000-8000-000000000000".to_owned()),
            reply_to: Some("reply.guest.x".to_owned()),
            user_id,
        },
        body: (0..100_000u32).map(|n| (n % 251) as u8).collect(),
    }
}

/// Brokers may reorder headers.
fn sorted(mut message: Message) -> Message {
    message.headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    message
}
