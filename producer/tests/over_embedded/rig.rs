//! What every test here stands on.

use async_trait::async_trait;
use broker::{
    Broker, BrokerError, Consumer, Delivery, Depth, Health, Incoming, Message, Properties, Queue, Receipt,
    Route,
};
use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use producer::{Client, Config, Submission};
use schemas::dead::DeadEntry;
use schemas::heartbeat::{DispatcherReport, Resources, WorkerReport};
use schemas::wire::WIRE_VERSION;
use schemas::{
    Class, ClientName, Failure, FailureKind, JobBody, JobHeader, JobResult, Lane, ModelName, Payload, Status,
    Tensor, UnixMillis,
};
use state::blobs::Blobs;
use state::{Finish, Record, State};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

/// Longer than anything here takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long results are kept in these tests.
pub(crate) const KEEP: Duration = Duration::from_secs(3600);

/// Broker, state and blobs in a folder of their own.
pub(crate) struct Station {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) state: Arc<dyn State>,
    pub(crate) blobs: Arc<Blobs>,
    /// Makes every consumer opened here say that it was interrupted.
    pub(crate) interrupt: Arc<Notify>,
    _dir: TempDir,
}

impl Station {
    pub(crate) async fn open() -> Self {
        Self::with_limits(broker::Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: broker::Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = broker::embedded::Config { dir: dir.path().join("broker"), limits };
        let inner = broker::embedded::Embedded::open(config).await.unwrap();
        let state = state::embedded::Embedded::open(state::embedded::Config::new(dir.path().join("state")));
        let blobs = Blobs::open(state::blobs::Config::new(dir.path().join("blobs"))).await.unwrap();
        let interrupt = Arc::new(Notify::new());
        Self {
            broker: Arc::new(Interruptible { inner, interrupt: interrupt.clone() }),
            state: state.await.unwrap(),
            blobs: Arc::new(blobs),
            interrupt,
            _dir: dir,
        }
    }

    pub(crate) fn config(&self) -> Config {
        Config { patience: Duration::from_secs(10), ..Config::new(ClientName::new("tester").unwrap()) }
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of(self.config()).await
    }

    pub(crate) async fn client_of(&self, config: Config) -> Client {
        Client::open(config, self.broker.clone(), self.state.clone(), Some(self.blobs.clone())).await.unwrap()
    }

    /// Plays dispatcher and workers: does to every job what `act` says.
    pub(crate) async fn respond(
        &self,
        act: impl Fn(&JobHeader, &JobBody) -> Act + Send + Sync + 'static,
    ) -> Responder {
        let act: Arc<Play> = Arc::new(act);
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (handled, _) = watch::channel(0);
        let mut tasks = Vec::new();
        for class in Class::ALL {
            let consumer = self.broker.consume(&Queue::Jobs(class), 256).await.unwrap();
            let player = Player {
                broker: self.broker.clone(),
                state: self.state.clone(),
                act: act.clone(),
                seen: seen.clone(),
                handled: handled.clone(),
            };
            tasks.push(tokio::spawn(Arc::new(player).run(consumer)));
        }
        Responder { tasks, seen, handled }
    }

    /// A live worker and a live dispatcher, as far as state knows.
    pub(crate) async fn pretend_alive(&self) {
        let worker = WorkerReport {
            version: WIRE_VERSION,
            worker: "worker-1".into(),
            lane: Lane::Local,
            queue: "lane.local".into(),
            slots: 2,
            running: 1,
            prefetched: 0,
            completed_per_s: 3.0,
            models: vec![ModelName::new("digits").unwrap()],
            draining: false,
            abandoned: 0,
            last_failure: None,
            backend: None,
            resources: Resources::default(),
            started: now(),
            build: "test".into(),
        };
        let dispatcher = DispatcherReport {
            version: WIRE_VERSION,
            dispatcher: "dispatcher-1".into(),
            held: 0,
            placed_per_s: 0.0,
            policy: "straightline".into(),
            draining: false,
            started: now(),
            build: "test".into(),
        };
        self.state.report_worker(&worker, KEEP).await.unwrap();
        self.state.report_dispatcher(&dispatcher, KEEP).await.unwrap();
    }

    pub(crate) async fn ready(&self, queue: Queue) -> u64 {
        self.depth(queue).await.ready
    }

    pub(crate) async fn depth(&self, queue: Queue) -> Depth {
        self.broker.depths(&[queue]).await.unwrap().remove(0).unwrap_or_default()
    }
}

/// What the player does to a job.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// It succeeds with this output.
    Answer(Payload),
    /// It succeeds, and its reply comes twice.
    AnswerTwice(Payload),
    /// It succeeds and is recorded, but its reply is lost.
    LoseReply(Payload),
    /// It fails for good and rests in `dead`.
    Die(FailureKind),
    /// It is never done.
    Swallow,
}

type Play = dyn Fn(&JobHeader, &JobBody) -> Act + Send + Sync;

/// A job as the player saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) header: JobHeader,
    pub(crate) body: JobBody,
    pub(crate) message: Message,
}

/// The playing tasks; they end with this.
pub(crate) struct Responder {
    tasks: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    handled: watch::Sender<usize>,
}

impl Responder {
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until `count` jobs were done with.
    pub(crate) async fn handled(&self, count: usize) {
        let mut handled = self.handled.subscribe();
        bounded(handled.wait_for(|handled| *handled >= count)).await.unwrap();
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Player {
    broker: Arc<dyn Broker>,
    state: Arc<dyn State>,
    act: Arc<Play>,
    seen: Arc<Mutex<Vec<Seen>>>,
    handled: watch::Sender<usize>,
}

impl Player {
    async fn run(self: Arc<Self>, mut consumer: Box<dyn Consumer>) {
        while let Some(incoming) = consumer.next().await {
            if let Incoming::Delivery(delivery) = incoming {
                // Together, so that they share the stores' commits as real workers do.
                let player = self.clone();
                tokio::spawn(async move {
                    player.play(*delivery).await;
                    player.handled.send_modify(|handled| *handled += 1);
                });
            }
        }
    }

    async fn play(&self, delivery: Delivery) {
        let message = delivery.message.clone();
        let header = JobHeader::decode(message.packed.as_ref().unwrap()).unwrap();
        let body = JobBody::decode(&message.body).unwrap();
        self.seen.lock().unwrap().push(Seen {
            header: header.clone(),
            body: body.clone(),
            message: message.clone(),
        });
        let mut result = JobResult::of(&header, Status::Succeeded, now());
        result.attempts = 1;
        result.lane = Some(Lane::Local);
        result.reason = Some("moderate".into());
        let replies = match (self.act)(&header, &body) {
            Act::Answer(output) => {
                result.output = Some(output);
                1
            }
            Act::AnswerTwice(output) => {
                result.output = Some(output);
                2
            }
            Act::LoseReply(output) => {
                result.output = Some(output);
                0
            }
            Act::Die(kind) => {
                result.status = Status::Failed;
                result.error = Some(Failure::new(kind, "as told"));
                self.bury(&header, &message, result.error.clone().unwrap()).await;
                1
            }
            Act::Swallow => return delivery.ack(),
        };
        let record = Record { id: header.id, result: result.encode(), keep: KEEP };
        let recorded = match self.state.finish(std::slice::from_ref(&record)).await.unwrap().remove(0) {
            Finish::Won => record.result,
            Finish::Lost(earlier) => earlier,
        };
        for _ in 0..replies {
            self.reply(&header, recorded.clone()).await;
        }
        delivery.ack();
    }

    async fn reply(&self, header: &JobHeader, body: Bytes) {
        let Some(to) = header.reply_to.clone() else { return };
        let properties = Properties { correlation_id: Some(header.id.to_string()), ..Properties::default() };
        let message = Message { properties, body, ..Message::default() };
        self.broker.publish(Route::To(Queue::Reply(to)), message).await.await.unwrap();
    }

    async fn bury(&self, header: &JobHeader, message: &Message, failure: Failure) {
        self.broker.publish(Route::To(Queue::Dead), message.clone()).await.await.unwrap();
        self.state.bury(&[dead_entry(header, failure)]).await.unwrap();
    }
}

pub(crate) fn dead_entry(header: &JobHeader, failure: Failure) -> DeadEntry {
    DeadEntry {
        version: WIRE_VERSION,
        id: header.id,
        died: now(),
        failure,
        attempts: 1,
        history: Vec::new(),
        model: Some(header.model.clone()),
        client: Some(header.client.clone()),
        class: header.class,
        size: header.size,
        queue: "lane.local".into(),
    }
}

/// The embedded broker, whose consumers can be told to report an interruption: the one thing it never does by
/// itself.
struct Interruptible {
    inner: Arc<dyn Broker>,
    interrupt: Arc<Notify>,
}

struct InterruptibleConsumer {
    inner: Box<dyn Consumer>,
    interrupt: Arc<Notify>,
}

#[async_trait]
impl Broker for Interruptible {
    async fn publish(&self, route: Route, message: Message) -> Receipt {
        self.inner.publish(route, message).await
    }
    async fn consume(&self, queue: &Queue, prefetch: u32) -> Result<Box<dyn Consumer>, BrokerError> {
        let inner = self.inner.consume(queue, prefetch).await?;
        Ok(match queue {
            Queue::Reply(_) => Box::new(InterruptibleConsumer { inner, interrupt: self.interrupt.clone() }),
            _ => inner,
        })
    }
    async fn depths(&self, queues: &[Queue]) -> Result<Vec<Option<Depth>>, BrokerError> {
        self.inner.depths(queues).await
    }
    async fn broadcast(&self, control: Bytes) -> Result<(), BrokerError> {
        self.inner.broadcast(control).await
    }
    async fn listen(&self) -> Result<mpsc::Receiver<Bytes>, BrokerError> {
        self.inner.listen().await
    }
    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }
    fn login(&self) -> Option<ClientName> {
        self.inner.login()
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl Consumer for InterruptibleConsumer {
    async fn next(&mut self) -> Option<Incoming> {
        tokio::select! {
            () = self.interrupt.notified() => Some(Incoming::Resumed),
            incoming = self.inner.next() => incoming,
        }
    }
    async fn set_prefetch(&mut self, prefetch: u32) -> Result<(), BrokerError> {
        self.inner.set_prefetch(prefetch).await
    }
    fn registered(&self) -> bool {
        self.inner.registered()
    }
}

/// Metrics of this thread, for as long as the guard lives.
pub(crate) struct Meter {
    handle: PrometheusHandle,
    _recorder: metrics::LocalRecorderGuard<'static>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        Self { handle: recorder.handle(), _recorder: metrics::set_default_local_recorder(recorder) }
    }

    /// Waits until the text holds `line`.
    pub(crate) async fn shows(&self, line: &str) {
        bounded(async {
            while !self.handle.render().contains(line) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// `future`, which must not take forever.
pub(crate) async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("done in time")
}

/// A job for `digits` of one image with these values.
pub(crate) fn job(values: &[f32; 4]) -> Submission {
    Submission::new(ModelName::new("digits").unwrap(), image(values))
}

pub(crate) fn image(values: &[f32; 4]) -> Payload {
    Payload::Tensors(vec![Tensor::fp32("image", [1, 4], values).unwrap()])
}

/// An answer that tells whose it is: the sum of the input's values.
pub(crate) fn sum(body: &JobBody) -> Payload {
    let values = body.input.tensor("image").unwrap().as_fp32().unwrap();
    Payload::Tensors(vec![Tensor::fp32("sum", [1], &[values.iter().sum()]).unwrap()])
}

pub(crate) fn sum_of(result: &JobResult) -> f32 {
    result.output.as_ref().unwrap().tensor("sum").unwrap().as_fp32().unwrap()[0]
}

/// Answers every job with its sum, and counts.
pub(crate) fn summing(
    count: &Arc<AtomicUsize>,
) -> impl Fn(&JobHeader, &JobBody) -> Act + Send + Sync + use<> {
    let count = count.clone();
    move |_, body| {
        count.fetch_add(1, Ordering::Relaxed);
        Act::Answer(sum(body))
    }
}

pub(crate) fn now() -> UnixMillis {
    SystemTime::now().into()
}
