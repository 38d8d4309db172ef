//! The loop over the embedded broker and the embedded state, each in a folder of its own.

mod blobs;
mod cancelling;
mod endings;
mod redelivery;
mod stopping;
mod trouble;

use super::*;
use crate::catalog::Catalog;
use crate::lane::{Capacity, Ran, Task};
use crate::local::Local;
use async_trait::async_trait;
use broker::{Consumer, Delivery, Incoming, Limits, Message, Route};
use bytes::Bytes;
use schemas::body::Parameter;
use schemas::header::Placement;
use schemas::{
    Class, ClientName, Failure, JobBody, JobHeader, JobId, JobResult, Lane, ModelName, Payload, ReplyQueue,
    Tensor,
};
use std::future::Future;
use std::sync::Mutex;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// No test waits longer for what must happen.
const BOUND: Duration = Duration::from_secs(30);
const LANE: Queue = Queue::Lane(Lane::Local);

/// Broker and state of one test, and one client's reply queue.
struct Bench {
    dir: TempDir,
    broker: Arc<broker::embedded::Embedded>,
    state: Arc<state::embedded::Embedded>,
    replies: Box<dyn Consumer>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (broker, state) = Self::open(&dir).await;
        let replies = broker.consume(&Queue::Reply(reply_queue()), 16).await.unwrap();
        Self { dir, broker, state, replies }
    }

    async fn open(dir: &TempDir) -> (Arc<broker::embedded::Embedded>, Arc<state::embedded::Embedded>) {
        let config = broker::embedded::Config { dir: dir.path().join("broker"), limits: Limits::default() };
        let broker = broker::embedded::Embedded::open(config).await.unwrap();
        let state = state::embedded::Embedded::open(state::embedded::Config::new(dir.path().join("state")));
        (broker, state.await.unwrap())
    }

    /// Everything dies as if the process were killed, and comes back.
    async fn crash(self, worker: Worker) -> Self {
        self.broker.abandon().await;
        drop(worker);
        let Self { dir, state, .. } = self;
        let config = broker::embedded::Config { dir: dir.path().join("broker"), limits: Limits::default() };
        let broker = broker::embedded::Embedded::open(config).await.unwrap();
        let replies = broker.consume(&Queue::Reply(reply_queue()), 16).await.unwrap();
        Self { dir, broker, state, replies }
    }

    async fn worker(&self, config: Config, lane: Arc<dyn Executor>) -> Worker {
        let (broker, state) =
            (Arc::clone(&self.broker) as Arc<dyn Broker>, Arc::clone(&self.state) as Arc<dyn State>);
        Worker::start(config, broker, state, None, lane).await.unwrap()
    }

    /// A worker of the real local lane, with the digits and the diagnostic models.
    async fn local(&self, slots: u32) -> Worker {
        self.worker(config(), local(slots)).await
    }

    async fn publish(&self, route: Route, message: Message) {
        self.broker.publish(route, message).await.await.unwrap();
    }

    /// What a dispatcher does: into the lane's queue.
    async fn place(&self, header: &JobHeader, body: &JobBody) {
        self.publish(Route::To(LANE), message(header, body.encode())).await;
    }

    async fn reply(&mut self) -> JobResult {
        let delivery = next(&mut *self.replies).await;
        let result = JobResult::decode(&delivery.message.body).unwrap();
        assert_eq!(delivery.message.properties.correlation_id, Some(result.id.to_string()));
        delivery.ack();
        result
    }

    /// The next message of a queue.
    async fn from(&self, queue: Queue) -> Message {
        let mut consumer = self.broker.consume(&queue, 1).await.unwrap();
        let mut delivery = next(&mut *consumer).await;
        let message = std::mem::take(&mut delivery.message);
        delivery.ack();
        message
    }

    /// Takes the next `count` messages of the lane and gives them back, so that they are delivered again.
    async fn touch(&self, count: u32) {
        let mut consumer = self.broker.consume(&LANE, count).await.unwrap();
        let mut taken = Vec::new();
        for _ in 0..count {
            taken.push(next(&mut *consumer).await);
        }
        // In the opposite order, since each goes back to the front.
        taken.into_iter().rev().for_each(|delivery| delivery.give_back());
    }

    async fn record(&self, id: JobId) -> Option<JobResult> {
        let found = self.state.fetch(&[id]).await.unwrap().pop().unwrap();
        found.map(|record| JobResult::decode(&record).unwrap())
    }

    async fn recorded(&self, id: JobId) -> JobResult {
        eventually("a record", || async move { self.record(id).await }).await
    }

    /// Waits until the lane's queue holds nothing, ready or unsettled.
    async fn settled(&self) {
        eventually("everything settled", || async {
            let depth = self.broker.depths(&[LANE]).await.unwrap()[0].unwrap();
            (depth.ready == 0 && depth.unacked.unwrap_or(0) == 0).then_some(())
        })
        .await;
    }

    async fn died(&self, id: JobId) -> schemas::dead::DeadEntry {
        eventually(
            "a dead entry",
            || async move { self.state.dead_entries(&[id]).await.unwrap().pop().unwrap() },
        )
        .await
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}

async fn eventually<T, L: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> L) -> T {
    within(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn next(consumer: &mut dyn Consumer) -> Box<Delivery> {
    loop {
        match within("a delivery", consumer.next()).await {
            Some(Incoming::Delivery(delivery)) => return delivery,
            Some(Incoming::Resumed) => {}
            None => panic!("the broker is closed"),
        }
    }
}

fn config() -> Config {
    let retry = RetryPolicy { backoff_base: Duration::from_millis(1), ..RetryPolicy::default() };
    Config { name: "w1".to_owned(), retry, ..Config::default() }
}

fn local(slots: u32) -> Arc<dyn Executor> {
    let digits = (
        include_str!("../../../models/digits/model.toml"),
        include_bytes!("../../../models/digits/model.onnx").as_slice(),
    );
    let catalog = Catalog::builtin(&[digits]).unwrap().with_diagnostics();
    Arc::new(Local::start(crate::local::Config { slots, abandoned_max: 1 }, &catalog).unwrap())
}

fn reply_queue() -> ReplyQueue {
    ReplyQueue::of(&ClientName::new("tester").unwrap(), "t1").unwrap()
}

/// A job of `model` whose reply comes to the bench.
fn header(model: &str) -> JobHeader {
    let now = UnixMillis::from(SystemTime::now());
    let (model, client) = (ModelName::new(model).unwrap(), ClientName::new("tester").unwrap());
    let mut header = JobHeader::new(JobId::new(), model, client, now);
    header.reply_to = Some(reply_queue());
    header.placement = Some(Placement { lane: Lane::Local, reason: "moderate".into() });
    header.size = 300;
    header
}

fn image() -> Payload {
    Payload::Tensors(vec![Tensor::fp32("image", [1, 64], &[1.0; 64]).unwrap()])
}

fn body() -> JobBody {
    JobBody::new(image())
}

fn body_with(parameter: &str, value: i64) -> JobBody {
    let mut body = body();
    body.parameters.insert(parameter.to_owned(), Parameter::Integer(value));
    body
}

fn message(header: &JobHeader, body: Bytes) -> Message {
    Message { packed: Some(header.encode()), body, ..Message::default() }
}

fn header_of(message: &Message) -> JobHeader {
    JobHeader::decode(message.packed.as_ref().unwrap()).unwrap()
}

/// A lane whose runs the test sees begin and ends itself.
struct Stage {
    capacity: watch::Sender<Capacity>,
    begun: mpsc::UnboundedSender<Begun>,
    stopped: Mutex<bool>,
}

/// A run that has begun.
struct Begun {
    task: Task,
    end: oneshot::Sender<Result<Payload, Failure>>,
}

impl Begun {
    fn succeed(self) {
        self.end.send(Ok(self.task.input)).unwrap();
    }
}

impl Stage {
    fn new(slots: u32) -> (Arc<Self>, mpsc::UnboundedReceiver<Begun>) {
        let (begun, seen) = mpsc::unbounded_channel();
        let capacity = watch::Sender::new(Capacity { slots, abandoned: 0 });
        (Arc::new(Self { capacity, begun, stopped: Mutex::new(false) }), seen)
    }
}

#[async_trait]
impl Executor for Stage {
    fn lane(&self) -> Lane {
        Lane::Local
    }

    fn models(&self) -> Vec<ModelName> {
        vec![ModelName::new("staged").unwrap()]
    }

    fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.subscribe()
    }

    async fn run(&self, task: Task) -> Result<Ran, Failure> {
        let (end, ended) = oneshot::channel();
        self.begun.send(Begun { task, end }).unwrap();
        let output = ended.await.expect("a test ends the runs it sees")?;
        Ok(Ran { output, run_time: Duration::from_micros(1) })
    }

    async fn stop(&self) {
        *self.stopped.lock().unwrap() = true;
    }
}

async fn begun(seen: &mut mpsc::UnboundedReceiver<Begun>) -> Begun {
    within("a run to begin", seen.recv()).await.unwrap()
}
