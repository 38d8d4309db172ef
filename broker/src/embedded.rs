//! The embedded broker: durable queues in one file of this process, for one machine and no other service.
//!
//! What it owns: the file `broker.redb` in its directory, and a thread that alone touches it ([`writer`]). What it must
//! not do: I/O on the async runtime, decisions outside [`queues`]. It keeps every promise of the port:
//! - A receipt is `Ok` once the transaction that holds the message is on disk (fsync). Transactions hold whatever
//!   has arrived while the one before was written, so one fsync serves many publishers.
//! - Settlements are written with the next transaction, within 20 ms at the latest. A crash before that repeats a
//!   delivery, as a crash in mid-commit would.
//! - A kill at any moment, or a disk that is full, leaves the file as it was after some transaction.
//! - What is found when the file is opened is delivered as redelivered: it may have been in somebody's hands before.
//!
//! A message published and consumed hot never comes back from disk. What waits longer costs a few dozen bytes of memory;
//! its content is read shortly before it is needed.
//!
//! # The file
//! A redb database, format 1, with four tables. Numbers in records are little-endian.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format`, `batch` | the version of this format; the number of the last transaction |
//! | `queues` | queue number, from 1 | its name; when it expires, in milliseconds since the Unix epoch, 0 for never |
//! | `messages` | message id, rising | its record |
//! | `bodies` | body id: the message's first id | a body above 2 KiB |
//!
//! A record is a head of 32 bytes (queue number u32, the queue it moves to u32, when it moves u64, body id u64, body
//! bytes u32, description bytes u32; 0 where there is none), the description (MessagePack, an array: packed header,
//! headers, properties, death; empty if there is nothing to describe), then the body unless it has an id. A message that
//! moves to another queue gets a new id there and keeps its body id.

mod clock;
mod consumer;
mod fifo;
mod in_flight;
mod queues;
mod record;
mod shared;
mod store;
#[cfg(test)]
mod trouble;
mod writer;

use crate::message::Message;
use crate::queue::{Queue, Route};
use crate::receipt::{PublishError, Receipt};
use crate::{Broker, BrokerError, Depth, Health, Limits};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use in_flight::InFlight;
use record::{Content, Head};
use schemas::ClientName;
use schemas::limits::PAYLOAD_BYTES_MAX;
use shared::{Arrival, Ending, Waiting};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Opener, Store};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

/// Largest body, in bytes: the largest payload there is, and room for its wrapping.
const BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + (1 << 20);
/// Most bytes of everything else in a message.
const ABOUT_BYTES_MAX: usize = 1 << 20;
/// After trouble with its disk, the store is tried again every so often.
const PAUSE: Duration = Duration::from_millis(500);
/// Broadcasts that a listener may be behind.
const LISTENER_BEHIND_MAX: usize = 256;

/// Where the broker keeps its file, and the limits of its queues.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder; made if it is not there. One process at a time can use it.
    pub dir: PathBuf,
    /// The limits.
    pub limits: Limits,
}

/// See the module. Dropping the last handle ends it as [`Broker::close`] does, but nobody waits for that.
pub struct Embedded {
    store: writer::Started,
    in_flight: InFlight,
    listeners: Mutex<Vec<mpsc::Sender<Bytes>>>,
    limits: Limits,
}

impl Embedded {
    /// Opens the store in `config.dir`, or makes one.
    pub fn open(config: Config) -> BoxFuture<'static, Result<Arc<Self>, BrokerError>> {
        Box::pin(async move { Self::open_with(config, Store::opener(), PAUSE).await })
    }

    async fn open_with(config: Config, opener: Opener, pause: Duration) -> Result<Arc<Self>, BrokerError> {
        let Config { dir, limits } = config;
        check(&limits)?;
        let store = writer::start(dir, limits.clone(), opener, pause).await?;
        let in_flight = InFlight::new(&limits);
        Ok(Arc::new(Self { store, in_flight, listeners: Mutex::default(), limits }))
    }

    /// Ends as if the process had been killed: nothing that is not on disk gets there. For tests.
    #[cfg(any(test, feature = "conformance"))]
    pub async fn abandon(&self) {
        self.end(Ending::Abrupt).await;
    }

    async fn end(&self, ending: Ending) {
        self.in_flight.close();
        self.store.shared.end(ending);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut ended = self.store.shared.ended.subscribe();
        // The sender is part of what this holds.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Leaves a message for the storage thread.
    fn submit(
        &self,
        route: &Route,
        message: Message,
        in_flight: [OwnedSemaphorePermit; 2],
    ) -> Result<Receipt, PublishError> {
        let size = bytes_within(message.body.len(), BODY_BYTES_MAX)?;
        let about = record::describe(&message, None);
        let about_bytes = bytes_within(about.len(), ABOUT_BYTES_MAX)?;
        let apart = (message.body.len() > record::INLINE_BYTES_MAX).then(|| message.body.clone());
        let body = message.body.clone();
        let content = Box::new(Content { message, death: None });
        let (sender, receipt) = Receipt::pending();

        let mut state = self.store.shared.lock();
        if state.ending.is_some() {
            return Err(PublishError::Closed);
        }
        let now = self.store.shared.clock.now();
        let place = state.queues.offer(route, size, now)?;
        let body_id = if apart.is_some() { place.id } else { 0 };
        let head = Head {
            queue: place.queue,
            next: place.next,
            due: place.due,
            body_id,
            body_bytes: size,
            about_bytes,
        };
        let waiting = Some(Waiting { receipt: sender, since: now, in_flight });
        let record = head.record(&about, &body);
        state.arrive(Arrival { place, content, record, apart, waiting });
        Ok(receipt)
    }
}

#[async_trait]
impl Broker for Embedded {
    async fn publish(&self, route: Route, message: Message) -> Receipt {
        // With room in flight nothing here waits, and whoever publishes on and on would never let others run.
        consume_budget().await;
        let submitted = match self.in_flight.enter(message.body.len()).await {
            Ok(in_flight) => self.submit(&route, message, in_flight),
            Err(error) => Err(error),
        };
        submitted.unwrap_or_else(Receipt::refused)
    }

    async fn consume(&self, queue: &Queue, prefetch: u32) -> Result<Box<dyn crate::Consumer>, BrokerError> {
        let (consumer, declared) = {
            let mut state = self.store.shared.lock();
            if state.ending.is_some() {
                return Err(BrokerError::Closed);
            }
            let subscribed = state.queues.subscribe(queue, prefetch)?;
            let declared = subscribed.declared.then(|| state.when_declared());
            (consumer::Consumer::new(self.store.shared.clone(), subscribed), declared)
        };
        // A queue that others publish to must be there after a crash as well.
        if let Some(declared) = declared {
            match timeout(self.limits.publish_timeout, declared).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(BrokerError::Closed),
                Err(_) => {
                    let operation = format!("declare {queue}");
                    let reason =
                        format!("its store was not written within {:?}", self.limits.publish_timeout);
                    return Err(BrokerError::Refused { operation, reason });
                }
            }
        }
        Ok(Box::new(consumer))
    }

    async fn depths(&self, queues: &[Queue]) -> Result<Vec<Option<Depth>>, BrokerError> {
        let state = self.store.shared.lock();
        if state.ending.is_some() {
            return Err(BrokerError::Closed);
        }
        Ok(queues.iter().map(|queue| state.queues.depth(queue)).collect())
    }

    async fn broadcast(&self, control: Bytes) -> Result<(), BrokerError> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if self.store.shared.lock().ending.is_some() {
            return Err(BrokerError::Closed);
        }
        // One that is full misses this; one that is gone is forgotten.
        listeners.retain(|listener| {
            !matches!(listener.try_send(control.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
        Ok(())
    }

    async fn listen(&self) -> Result<mpsc::Receiver<Bytes>, BrokerError> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the listeners' lock, so that whoever ends finds this one among them.
        if self.store.shared.lock().ending.is_some() {
            return Err(BrokerError::Closed);
        }
        let (sender, receiver) = mpsc::channel(LISTENER_BEHIND_MAX);
        listeners.push(sender);
        Ok(receiver)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.store.health.clone()
    }

    fn login(&self) -> Option<ClientName> {
        None
    }

    async fn close(&self) {
        self.end(Ending::Orderly).await;
    }
}

fn bytes_within(bytes: usize, limit: usize) -> Result<u32, PublishError> {
    u32::try_from(bytes).ok().filter(|_| bytes <= limit).ok_or(PublishError::TooLarge { bytes, limit })
}

fn check(limits: &Limits) -> Result<(), BrokerError> {
    let counts = [
        ("queue_messages_max", limits.queue_messages_max),
        ("queue_bytes_max", limits.queue_bytes_max),
        ("dead_messages_max", limits.dead_messages_max),
        ("reply_messages_max", limits.reply_messages_max),
        ("reply_bytes_max", limits.reply_bytes_max),
        ("in_flight_messages_max", limits.in_flight_messages_max.into()),
        ("in_flight_bytes_max", limits.in_flight_bytes_max.into()),
    ];
    match counts.into_iter().find(|(_, count)| *count == 0) {
        Some((field, _)) => Err(BrokerError::Config { field, problem: "must be at least 1".to_owned() }),
        None => Ok(()),
    }
}
