//! Queues: one small port, [`Broker`], and its adapters [`amqp`] (RabbitMQ, through lapin) and [`embedded`] (a
//! durable store in this process). Both pass one conformance suite, [`conformance`].
//!
//! What this crate owns: where messages rest, that a confirmed message survives a crash, that each delivery is
//! settled once. What it must not do: look into headers or bodies, decide where a job goes, retry a job.
//!
//! The promise: when a [`Receipt`] resolves to `Ok`, the message is on disk (and on the replicas the queue has) and
//! will be delivered at least once. Nothing else is promised: a message may come twice, and in a queue with
//! several consumers or returns it may come out of order.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod amqp;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod delivery;
pub mod embedded;
pub mod message;
pub mod queue;
pub mod receipt;

pub use delivery::{Death, Delivery, Settle, Settlement};
pub use message::{Message, Properties, Value};
pub use queue::{Queue, Route};
pub use receipt::{PublishError, Receipt};

use async_trait::async_trait;
use bytes::Bytes;
use schemas::ClientName;
use tokio::sync::{mpsc, watch};

/// The port. Every method may be called from many tasks at once.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Hands `message` over. Waits only for room among the messages in flight (bounded in count and bytes) and, while
    /// the broker is away, for its return up to the adapter's publish time-out; the [`Receipt`] then resolves when
    /// the broker has the message for good, or has not. Messages of one caller reach one queue in the
    /// order of their calls.
    async fn publish(&self, route: Route, message: Message) -> Receipt;

    /// Starts consuming `queue`. A reply queue is declared first if it is not there, and consumed exclusively; every
    /// other queue is part of the topology that opening the broker declared.
    async fn consume(&self, queue: &Queue, prefetch: u32) -> Result<Box<dyn Consumer>, BrokerError>;

    /// Depths of these queues, in their order; `None` for one that does not exist. Costs the broker work: never on
    /// the path of a job.
    async fn depths(&self, queues: &[Queue]) -> Result<Vec<Option<Depth>>, BrokerError>;

    /// Sends `control` to every listener that is connected now; at most once, not kept.
    async fn broadcast(&self, control: Bytes) -> Result<(), BrokerError>;

    /// Listens to broadcasts from now on. A listener that falls behind misses some.
    async fn listen(&self) -> Result<mpsc::Receiver<Bytes>, BrokerError>;

    /// Whether the broker can be reached, as last seen, and changes of that.
    fn health(&self) -> watch::Receiver<Health>;

    /// The login that the broker vouches for: the client name of whoever publishes here. `None` where there are none.
    fn login(&self) -> Option<ClientName>;

    /// Settles what is already under way, ends every consumer and lets go of connections and files. Later calls fail
    /// as closed.
    async fn close(&self);
}

/// One consumer of one queue. Dropping it stops deliveries; those already handed out can still be settled.
#[async_trait]
pub trait Consumer: Send {
    /// The next thing that happens; `None` once the broker is closed. An adapter subscribes again by itself after
    /// whatever ended the subscription. Cancel-safe.
    async fn next(&mut self) -> Option<Incoming>;

    /// Lets at most `prefetch` deliveries (at least 1) be unsettled at once from now on. What is already handed out
    /// stays out.
    async fn set_prefetch(&mut self, prefetch: u32) -> Result<(), BrokerError>;

    /// Whether the broker has this consumer on its list: what liveness means for a process that consumes.
    fn registered(&self) -> bool;
}

/// What a consumer yields.
#[derive(Debug)]
pub enum Incoming {
    /// A message to settle. Boxed: it is large next to the other variant.
    Delivery(Box<Delivery>),
    /// The subscription was lost and is back: unsettled deliveries will come again, and what is kept
    /// elsewhere about this queue may have been missed.
    Resumed,
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages waiting to be delivered.
    pub ready: u64,
    /// Messages delivered and not settled; `None` where the broker does not say.
    pub unacked: Option<u64>,
    /// Consumers the broker knows.
    pub consumers: u32,
}

/// Whether the broker can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Connected,
    /// It holds publishers back, for the reason given: an alarm.
    Blocked(String),
    /// It cannot; the last error.
    Disconnected(String),
}

/// Why an operation on the broker failed. No message ever shows a password.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// It cannot be reached, or went away.
    #[error("broker {address} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port, or the folder of the embedded one.
        address: String,
        /// What the operating system or the protocol said.
        reason: String,
    },
    /// It does not accept our login.
    #[error("broker {address} refuses user {user:?}: check broker.url")]
    Credentials {
        /// Host and port.
        address: String,
        /// The login, without its password.
        user: String,
    },
    /// A queue exists with other settings.
    #[error(
        "queue {queue} exists with other settings ({reason}): restore the setting or delete the queue once it is empty"
    )]
    Mismatch {
        /// The queue.
        queue: String,
        /// What the broker said.
        reason: String,
    },
    /// The broker said no.
    #[error("broker refuses to {operation}: {reason}")]
    Refused {
        /// What was asked of it.
        operation: String,
        /// What it said.
        reason: String,
    },
    /// A setting that cannot work.
    #[error("{field} {problem}")]
    Config {
        /// The setting, as in the configuration file.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The embedded store cannot be used.
    #[error("store {path} cannot be used: {reason}")]
    Store {
        /// Its file.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// [`Broker::close`] was called.
    #[error("broker is closed")]
    Closed,
}

/// Limits of the queues, the same for every adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most messages in one of `jobs.*`, `wait.*`, `retry.*`; at the limit publishing is refused.
    pub queue_messages_max: u64,
    /// Most bytes of bodies in one of them. Keep the sum below the broker's disk alarm.
    pub queue_bytes_max: u64,
    /// Most messages in `dead`; at the limit publishing is refused, and what should die stays where it is.
    pub dead_messages_max: u64,
    /// Most messages in one reply queue; at the limit a reply is dropped, and its record holds the result.
    pub reply_messages_max: u64,
    /// Most bytes of bodies in one reply queue.
    pub reply_bytes_max: u64,
    /// A reply queue that nobody consumed for so long is deleted.
    pub reply_expiry: std::time::Duration,
    /// Returns of one message after which the broker sends it to `dead.intake`.
    pub returns_max: u32,
    /// Published messages not yet confirmed, per process.
    pub in_flight_messages_max: u32,
    /// Bytes of bodies of published messages not yet confirmed, per process.
    pub in_flight_bytes_max: u32,
    /// How long publishing waits for a broker that is away, and for a confirm.
    pub publish_timeout: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_messages_max: 2_000_000,
            queue_bytes_max: 4 << 30,
            dead_messages_max: 100_000,
            reply_messages_max: 200_000,
            reply_bytes_max: 512 << 20,
            reply_expiry: std::time::Duration::from_secs(3600),
            returns_max: 20,
            in_flight_messages_max: 2_000,
            in_flight_bytes_max: 64 << 20,
            publish_timeout: std::time::Duration::from_secs(30),
        }
    }
}
