//! Measures the embedded broker: how many small messages per second are durably published, pass through three hops,
//! and how long a lone publish takes.
//!
//! `cargo run --release -p broker --example embedded_throughput -- [FOLDER] [MESSAGES] [BODY_BYTES]`

#![expect(clippy::print_stdout, reason = "a program that prints its measurements")]

use broker::embedded::{Config, Embedded};
use broker::{Broker, Consumer, Delivery, Incoming, Limits, Message, Properties, Queue, Receipt, Route};
use bytes::Bytes;
use schemas::{Class, Lane};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "embedded-throughput.tmp".to_owned()));
    let messages: usize = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    let bytes: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let open = || Embedded::open(Config { dir: folder.clone(), limits: Limits::default() });
    let broker = open().await?;
    println!("{messages} messages of {bytes} bytes, in {}", folder.display());

    lone(&broker, bytes).await?;
    let phase = Phase::start();
    publish(&broker, Route::Submit(Class::Normal), messages, bytes).await?;
    phase.report("published, 4 publishers", messages);

    let started = Instant::now();
    broker.close().await;
    println!("{:<28} {:>12.0?}", "closed", started.elapsed());
    drop(broker);
    let started = Instant::now();
    let broker = open().await?;
    println!("{:<28} {:>12.0?}", "opened again", started.elapsed());

    let phase = Phase::start();
    drain(&broker, &Queue::Jobs(Class::Normal), messages).await?;
    phase.report("consumed, read from disk", messages);

    let phase = Phase::start();
    let publisher = broker.clone();
    let published =
        tokio::spawn(async move { publish(&publisher, Route::Submit(Class::High), messages, bytes).await });
    let jobs = forward(broker.clone(), Queue::Jobs(Class::High), Queue::Lane(Lane::Local), messages);
    let lane =
        forward(broker.clone(), Queue::Lane(Lane::Local), Queue::Wait(Lane::Local, Class::Low), messages);
    let (jobs, lane) = (tokio::spawn(jobs), tokio::spawn(lane));
    drain(&broker, &Queue::Wait(Lane::Local, Class::Low), messages).await?;
    published.await??;
    jobs.await??;
    lane.await??;
    phase.report("through three hops", messages);
    broker.close().await;
    Ok(std::fs::remove_dir_all(folder)?)
}

fn message(bytes: usize) -> Message {
    Message {
        packed: Some(Bytes::from(vec![1; 110])),
        properties: Properties {
            content_type: Some("application/msgpack".to_owned()),
            ..Properties::default()
        },
        body: Bytes::from(vec![7; bytes]),
        ..Message::default()
    }
}

/// What a phase took: on the clock, and of the processors.
struct Phase(Instant, Option<Duration>);

impl Phase {
    fn start() -> Self {
        Self(Instant::now(), processor_time())
    }

    fn report(self, what: &str, messages: usize) {
        let rate = messages as f64 / self.0.elapsed().as_secs_f64();
        let used = processor_time().zip(self.1).map(|(now, before)| now - before);
        let each =
            used.map(|used| format!("{:>8.1} µs of CPU each", used.as_secs_f64() * 1e6 / messages as f64));
        println!("{what:<28} {rate:>10.0}/s {}", each.unwrap_or_default());
    }
}

/// Processor time of this process so far, where the system says: in ticks of 10 ms, behind the name in brackets.
fn processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Some(Duration::from_millis(ticks * 10))
}

async fn lone(broker: &Embedded, bytes: usize) -> Result<(), Failed> {
    let mut times = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        broker.publish(Route::To(Queue::Lane(Lane::Docker)), message(bytes)).await.await?;
        times.push(started.elapsed());
    }
    times.sort();
    println!("{:<28} p50 {:.2?}, p99 {:.2?}", "one publish at a time", times[100], times[198]);
    Ok(())
}

async fn publish(broker: &Arc<Embedded>, route: Route, messages: usize, bytes: usize) -> Result<(), Failed> {
    let tasks = (0..4).map(|_| {
        let (broker, route) = (broker.clone(), route.clone());
        tokio::spawn(async move {
            let mut receipts: VecDeque<Receipt> = VecDeque::new();
            for _ in 0..messages / 4 {
                receipts.push_back(broker.publish(route.clone(), message(bytes)).await);
                if receipts.len() > 1_000
                    && let Some(receipt) = receipts.pop_front()
                {
                    receipt.await?;
                }
            }
            for receipt in receipts {
                receipt.await?;
            }
            Ok::<_, Failed>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(())
}

async fn next(consumer: &mut Box<dyn Consumer>) -> Result<Delivery, Failed> {
    match consumer.next().await {
        Some(Incoming::Delivery(delivery)) => Ok(*delivery),
        other => Err(format!("not a delivery: {other:?}").into()),
    }
}

async fn drain(broker: &Embedded, queue: &Queue, messages: usize) -> Result<(), Failed> {
    let mut consumer = broker.consume(queue, 500).await?;
    for _ in 0..messages / 4 * 4 {
        next(&mut consumer).await?.ack();
    }
    Ok(())
}

/// Moves messages on as a dispatcher does: publishes, has it confirmed, acknowledges.
async fn forward(broker: Arc<Embedded>, from: Queue, to: Queue, messages: usize) -> Result<(), Failed> {
    let mut consumer = broker.consume(&from, 1_000).await?;
    let (sender, mut confirms) = tokio::sync::mpsc::channel::<(Receipt, Delivery)>(1_000);
    let acknowledge = tokio::spawn(async move {
        while let Some((receipt, delivery)) = confirms.recv().await {
            receipt.await?;
            delivery.ack();
        }
        Ok::<_, Failed>(())
    });
    for _ in 0..messages / 4 * 4 {
        let delivery = next(&mut consumer).await?;
        let receipt = broker.publish(Route::To(to.clone()), delivery.message.clone()).await;
        sender.send((receipt, delivery)).await.map_err(|_| "confirms are no longer awaited")?;
    }
    drop(sender);
    acknowledge.await?
}
