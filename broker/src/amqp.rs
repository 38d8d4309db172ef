//! RabbitMQ, versions 3.10 to 4.3, through lapin.
//!
//! Two connections ([`connection`]), one to publish and one to consume: a broker that runs low on memory stops reading
//! publishers, and acknowledgements must still get through. Both come back by themselves, declare what is missing
//! ([`topology`]: the one place that knows every exchange, queue and argument), and everything above opens its
//! channels again.
//!
//! Publishing ([`publisher`], [`outlet`]): persistent, `mandatory`, confirmed; many in flight, a channel per queue. A
//! receipt is `Ok` only for a message that was confirmed and not returned.
//!
//! Consuming ([`consumer`], [`session`]): a channel per consumer, its prefetch kept by [`allowance`], settlements sent as
//! [`acks`] decides.
//!
//! What a broker cannot do for us: a passive declare says nothing about unacknowledged messages, so [`Depth::unacked`]
//! is `None`; reply queues are classic, which do not count returns, so [`Delivery::returns`](crate::Delivery::returns)
//! is 0 or 1 there; and a message limit is soft by the few messages that are on their way when it is reached. On
//! brokers before 4.3 every return counts towards `returns_max`, a lost connection's included.

mod acks;
mod allowance;
mod connection;
mod consumer;
mod convert;
mod depths;
mod endpoint;
#[cfg(feature = "conformance")]
pub mod fixture;
mod handshake;
mod listener;
mod outlet;
mod publisher;
pub mod pump;
mod session;
mod topology;
mod transport;

use crate::message::Message;
use crate::queue::{Queue, Route};
use crate::receipt::{PublishError, Receipt};
use crate::{Broker, BrokerError, Consumer, Depth, Health, Limits};
use async_trait::async_trait;
use bytes::Bytes;
use connection::{Board, Link, Role};
use depths::Depths;
use endpoint::Endpoint;
use futures_util::future::BoxFuture;
use handshake::Setup;
use publisher::Publisher;
use schemas::ClientName;
use secrecy::SecretString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long the last words to a broker may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// How to reach the broker, and its limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// `amqp://user:password@host:port/vhost`, or `amqps://` for an encrypted connection.
    pub url: SecretString,
    /// Certificates to trust besides the usual ones, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// What operators see as the name of our connections and consumers.
    pub name: String,
    /// How long connecting may take, and answers that a caller waits for.
    pub connect_timeout: Duration,
    /// How often both sides show that they live, in whole seconds; a side that is silent for twice as long is gone.
    pub heartbeat: Duration,
    /// Longest delay between two attempts to connect again.
    pub reconnect_delay_max: Duration,
    /// Largest body, in bytes: the broker closes the channel over one that is larger than its own limit.
    pub message_bytes_max: u32,
    /// Limits of queues and of what is in flight.
    pub limits: Limits,
}

impl Config {
    /// The broker at `url`, all else by default.
    pub fn new(url: SecretString) -> Self {
        Self {
            url,
            ca_file: None,
            name: "straightline".to_owned(),
            connect_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(10),
            reconnect_delay_max: Duration::from_secs(5),
            // The default of RabbitMQ 4; 3.10 takes more.
            message_bytes_max: 16 << 20,
            limits: Limits::default(),
        }
    }
}

/// How far closing has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Not at all.
    Open,
    /// Calls are refused, and what is in flight is waited for.
    Finishing,
    /// Channels close.
    Ending,
    /// Connections close.
    Closed,
}

/// Sees how far closing has got.
#[derive(Clone)]
struct Phases(watch::Receiver<Phase>);

impl Phases {
    /// Waits until closing has got this far, or the broker was dropped.
    async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }

    fn open(&self) -> bool {
        *self.0.borrow() == Phase::Open
    }
}

/// Tasks of one broker. They are aborted when it is dropped without having been closed; the client library then closes
/// what they held.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().expect("nothing panics with the tasks in hand");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Waits until all have ended; those that have not in time are aborted.
    async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.0.lock().expect("nothing panics with the tasks in hand"));
        let _ = timeout(FAREWELL, async { while tasks.join_next().await.is_some() {} }).await;
    }
}

/// A RabbitMQ broker.
pub struct Amqp {
    publisher: Publisher,
    consuming: Link,
    depths: Depths,
    health: watch::Receiver<Health>,
    login: Option<ClientName>,
    phase: watch::Sender<Phase>,
    /// Channels have tasks of their own, which end before those of the connections.
    channels: Tasks,
    connections: Tasks,
}

impl Amqp {
    /// Connects and declares every queue; what is wrong with the configuration is found out here.
    pub fn open(config: Config) -> BoxFuture<'static, Result<Arc<Self>, BrokerError>> {
        Box::pin(async move {
            let endpoint = Endpoint::parse(&config.url, config.ca_file.as_deref())?;
            let login = endpoint.login();
            let setup = Arc::new(Setup {
                endpoint,
                limits: config.limits,
                name: config.name,
                connect_timeout: config.connect_timeout,
                heartbeat: config.heartbeat,
                reconnect_delay_max: config.reconnect_delay_max,
            });
            let (phase, phases) = watch::channel(Phase::Open);
            let phases = Phases(phases);
            let (board, health) = Board::new();
            let (channels, connections) = (Tasks::default(), Tasks::default());
            let open = |role| Link::open(setup.clone(), role, board.clone(), phases.clone(), &connections);
            let publishing = open(Role::Publishing).await?;
            let consuming = open(Role::Consuming).await?;
            Ok(Arc::new(Self {
                publisher: Publisher::new(publishing, config.message_bytes_max, phases, channels.clone()),
                depths: Depths::new(consuming.clone()),
                consuming,
                health,
                login,
                phase,
                channels,
                connections,
            }))
        })
    }

    fn phases(&self) -> Phases {
        Phases(self.phase.subscribe())
    }

    fn ensure_open(&self) -> Result<(), BrokerError> {
        if self.phases().open() { Ok(()) } else { Err(BrokerError::Closed) }
    }
}

#[async_trait]
impl Broker for Amqp {
    async fn publish(&self, route: Route, message: Message) -> Receipt {
        self.publisher.publish(Some(route), message).await
    }

    async fn consume(&self, queue: &Queue, prefetch: u32) -> Result<Box<dyn Consumer>, BrokerError> {
        self.ensure_open()?;
        let link = self.consuming.clone();
        let consumer = consumer::consume(link, queue, prefetch, self.phases(), &self.channels).await?;
        Ok(Box::new(consumer))
    }

    async fn depths(&self, queues: &[Queue]) -> Result<Vec<Option<Depth>>, BrokerError> {
        self.ensure_open()?;
        self.depths.of(queues).await
    }

    async fn broadcast(&self, control: Bytes) -> Result<(), BrokerError> {
        let message = Message { body: control, ..Message::default() };
        let sent = self.publisher.publish(None, message).await.await;
        sent.map_err(|error| match error {
            PublishError::Closed => BrokerError::Closed,
            PublishError::Lost | PublishError::Unavailable(_) => {
                self.consuming.setup.unreachable(format!("failed to broadcast: {error}"))
            }
            error => BrokerError::Refused { operation: "broadcast".into(), reason: error.to_string() },
        })
    }

    async fn listen(&self) -> Result<mpsc::Receiver<Bytes>, BrokerError> {
        self.ensure_open()?;
        listener::listen(self.consuming.clone(), self.phases(), &self.channels).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn login(&self) -> Option<ClientName> {
        self.login.clone()
    }

    async fn close(&self) {
        let first = self.phase.send_if_modified(|phase| {
            let open = *phase == Phase::Open;
            *phase = (*phase).max(Phase::Finishing);
            open
        });
        if !first {
            // Somebody else is closing: closed when they are done.
            self.phases().reached(Phase::Closed).await;
            return;
        }
        self.publisher.drain().await;
        self.phase.send_replace(Phase::Ending);
        self.channels.end().await;
        self.phase.send_replace(Phase::Closed);
        self.connections.end().await;
    }
}
