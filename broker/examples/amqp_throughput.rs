//! How many messages a RabbitMQ carries through the AMQP adapter.
//!
//! ```text
//! cargo run --release -p broker --example amqp_throughput -- URL [MESSAGES] [BYTES] [HOPS] [OUTSTANDING]
//! ```
//!
//! Messages go through HOPS quorum queues. Each hop consumes, publishes to the next queue, and acknowledges once that
//! is confirmed; the last one only acknowledges. OUTSTANDING messages are under way at most. Use a virtual host of
//! its own: what it finds in the queues it takes.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use broker::amqp::{Amqp, Config};
use broker::{Broker, Delivery, Incoming, Message, Queue, Receipt, Route};
use bytes::Bytes;
use schemas::{Class, Lane};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc};

const QUEUES: [Queue; 3] =
    [Queue::Jobs(Class::Normal), Queue::Lane(Lane::Local), Queue::Wait(Lane::Local, Class::Normal)];

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("say where: amqp://guest:guest@127.0.0.1:5672/vhost")?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (messages, bytes, hops, outstanding) = (number(50_000)?, number(1_024)?, number(1)?, number(1_000)?);
    let queues = QUEUES.get(..hops).ok_or("1 to 3 hops")?;

    // A connection per role, as in processes of their own.
    let started = Instant::now();
    let source = Amqp::open(Config::new(url.clone().into())).await?;
    println!("opened and declared in {:.2?}", started.elapsed());
    let room = Arc::new(Semaphore::new(outstanding));
    let mut last = None;
    for (nth, queue) in queues.iter().enumerate() {
        let broker = Amqp::open(Config::new(url.clone().into())).await?;
        let next = queues.get(nth + 1).cloned();
        last = Some(tokio::spawn(hop(broker, queue.clone(), next, messages, room.clone())));
    }

    let started = Instant::now();
    let body = Bytes::from(vec![7u8; bytes]);
    let (receipts, mut pending) = mpsc::channel::<Receipt>(outstanding);
    let confirmed = tokio::spawn(async move {
        while let Some(receipt) = pending.recv().await {
            receipt.await?;
        }
        Outcome::Ok(())
    });
    for _ in 0..messages {
        room.acquire().await?.forget();
        let message = Message { body: body.clone(), ..Message::default() };
        receipts.send(source.publish(Route::To(queues[0].clone()), message).await).await?;
    }
    drop(receipts);
    confirmed.await??;
    last.ok_or("no hop")?.await??;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{messages} messages of {bytes} bytes, {hops} hops: {seconds:.2} s, {:.0}/s",
        messages as f64 / seconds
    );
    source.close().await;
    Ok(())
}

/// Takes `count` messages from `queue`, hands them on to `next`, and acknowledges.
async fn hop(
    broker: Arc<Amqp>,
    queue: Queue,
    next: Option<Queue>,
    count: usize,
    room: Arc<Semaphore>,
) -> Outcome {
    let mut consumer = broker.consume(&queue, 1_000).await?;
    let (handed_on, mut pending) = mpsc::channel::<(Receipt, Box<Delivery>)>(2_000);
    let settled = tokio::spawn(async move {
        while let Some((receipt, delivery)) = pending.recv().await {
            receipt.await?;
            delivery.ack();
        }
        Outcome::Ok(())
    });
    let mut taken = 0;
    while taken < count {
        let Some(Incoming::Delivery(mut delivery)) = consumer.next().await else { continue };
        taken += 1;
        match &next {
            Some(next) => {
                let message = std::mem::take(&mut delivery.message);
                let receipt = broker.publish(Route::To(next.clone()), message).await;
                handed_on.send((receipt, delivery)).await.map_err(|_| "a publish failed")?;
            }
            None => {
                delivery.ack();
                room.add_permits(1);
            }
        }
    }
    drop(handed_on);
    settled.await??;
    drop(consumer);
    broker.close().await;
    Ok(())
}
