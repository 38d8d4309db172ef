//! The bare pump: what RabbitMQ carries over three hops when nothing but the protocol is in the way. It is what
//! `straightline bench --ceiling` measures the system against, so it is written for speed alone: one queue a hop, no
//! topology, no recovery, no verdict on single messages; the first thing that goes wrong ends it.
//!
//! ```text
//! Feed ─► pump.<run>.jobs ─► Relay ─► pump.<run>.lane ─► Relay ─► pump.<run>.reply ─► Feed
//! ```
//!
//! It keeps the promise that the system keeps, or the comparison would be none: durable queues with the same arguments,
//! persistent messages, every publish confirmed, a delivery acknowledged after the confirm of its next hop. And it has the
//! habits that make a client quick: publishes queued without waiting, confirms awaited in order by a task of their own,
//! acknowledgements of many at a time.

use super::endpoint::Endpoint;
use super::handshake::{self, Setup, reason};
use super::{Config, convert, topology};
use crate::BrokerError;
use crate::message::{Message, Properties};
use crate::queue::Queue;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer};
use schemas::{Class, ClientName, Lane, ReplyQueue};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Deliveries acknowledged at once, at most.
const ACKS_MAX: usize = 64;
/// Deliveries taken together, at most: as many as a dispatcher takes.
const BATCH_MAX: usize = 128;
/// Unacknowledged deliveries of one consumer.
const PREFETCH: u16 = 1_000;
/// Published and not known to be confirmed, at most.
const IN_FLIGHT_MAX: usize = 2_000;

/// What a message carries besides its number.
#[derive(Clone, Debug, Default)]
pub struct Dress {
    /// Whether the broker is asked to return what it cannot route.
    pub mandatory: bool,
    /// The packed header.
    pub packed: Option<Bytes>,
    /// Its properties.
    pub properties: Properties,
    /// Length of its body in bytes, at least the eight of its number; none to pass on the body that came.
    pub body_bytes: Option<usize>,
}

/// What a relay awaits for each batch of deliveries before it passes them on, given their number.
pub type Errand = Arc<dyn Fn(usize) -> BoxFuture<'static, ()> + Send + Sync>;

/// The three queues of one pump, in the order of the way.
#[derive(Clone, Debug)]
pub struct Way([String; 3]);

impl Way {
    /// The queues of the pump called `run`.
    pub fn new(run: &str) -> Self {
        Self(["jobs", "lane", "reply"].map(|hop| format!("pump.{run}.{hop}")))
    }
}

/// Which hop a relay serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// From jobs to lane, as a dispatcher does.
    Place,
    /// From lane to reply, as a worker does.
    Answer,
}

/// Makes the queues of `way`; dropping them is [`Pump::remove`].
pub struct Pump {
    setup: Setup,
    way: Way,
}

impl Pump {
    /// The pump over the broker of `config`.
    pub fn new(config: Config, way: Way) -> Result<Self, BrokerError> {
        let setup = Setup {
            endpoint: Endpoint::parse(&config.url, config.ca_file.as_deref())?,
            limits: config.limits,
            name: format!("{} pump", config.name),
            connect_timeout: config.connect_timeout,
            heartbeat: config.heartbeat,
            reconnect_delay_max: config.reconnect_delay_max,
        };
        Ok(Self { setup, way })
    }

    /// The login that the broker vouches for.
    pub fn login(&self) -> Option<ClientName> {
        self.setup.endpoint.login()
    }

    /// Declares the queues, with the arguments that the system's own have.
    pub fn declare(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let connection = self.connect().await?;
            let channel = self.channel(&connection).await?;
            for declaration in topology::pump(&self.way.0, &self.setup.limits) {
                topology::declare(&channel, &declaration, &self.setup).await?;
            }
            self.close(&connection).await
        })
    }

    /// Deletes the queues.
    pub fn remove(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let connection = self.connect().await?;
            let channel = self.channel(&connection).await?;
            for queue in &self.way.0 {
                let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
                deleted.await.map_err(|error| self.setup.failed(&format!("delete queue {queue}"), &error))?;
            }
            self.close(&connection).await
        })
    }

    /// Starts passing messages on, dressed as `dress` says; ends when the connection does or the handle is dropped.
    pub fn relay(
        &self,
        hop: Hop,
        dress: Dress,
        errand: Option<Errand>,
    ) -> BoxFuture<'_, Result<Relay, BrokerError>> {
        Box::pin(async move {
            let [jobs, lane, reply] = &self.way.0;
            let (from, to) = match hop {
                Hop::Place => (jobs, lane),
                Hop::Answer => (lane, reply),
            };
            let connection = self.connect().await?;
            let (channel, stream) = self.consume(&connection, from).await?;
            let exit = Exit::open(self.channel(&connection).await?, to, dress).await;
            let exit = exit.map_err(|error| self.setup.failed("open a channel", &error))?;
            let task = tokio::spawn(relay(stream, channel, exit, errand));
            Ok(Relay { task, _connection: connection })
        })
    }

    /// The two ends of the way.
    pub fn feed(&self, dress: Dress) -> BoxFuture<'_, Result<Feed, BrokerError>> {
        Box::pin(async move {
            let [jobs, _, reply] = &self.way.0;
            let connection = self.connect().await?;
            let (replies, stream) = self.consume(&connection, reply).await?;
            let exit = Exit::open(self.channel(&connection).await?, jobs, dress).await;
            let exit = exit.map_err(|error| self.setup.failed("open a channel", &error))?;
            let (confirmed, confirms) = mpsc::channel(IN_FLIGHT_MAX);
            let settling = tokio::spawn(settle(confirms, None));
            Ok(Feed {
                exit,
                confirmed,
                acks: Acks::new(replies),
                stream,
                settling,
                next: 0,
                _connection: connection,
            })
        })
    }

    async fn connect(&self) -> Result<Connection, BrokerError> {
        handshake::handshake(&self.setup, "pump").await
    }

    async fn channel(&self, connection: &Connection) -> Result<Channel, BrokerError> {
        connection.create_channel().await.map_err(|error| self.setup.failed("open a channel", &error))
    }

    async fn consume(
        &self,
        connection: &Connection,
        queue: &str,
    ) -> Result<(Channel, Consumer), BrokerError> {
        let channel = self.channel(connection).await?;
        let consuming = async {
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.into(), "pump".into(), options, FieldTable::default()).await
        };
        let stream =
            consuming.await.map_err(|error| self.setup.failed(&format!("consume {queue}"), &error))?;
        Ok((channel, stream))
    }

    async fn close(&self, connection: &Connection) -> Result<(), BrokerError> {
        let closed = connection.close(200, "done".into()).await;
        closed.map_err(|error| self.setup.failed("close a connection", &error))
    }
}

/// A running relay.
pub struct Relay {
    task: JoinHandle<Result<(), String>>,
    _connection: Connection,
}

impl Relay {
    /// Waits for its end, which is always a failure.
    pub async fn ended(&mut self) -> String {
        match (&mut self.task).await {
            Ok(Ok(())) => "the broker cancelled the subscription".to_owned(),
            Ok(Err(error)) => error,
            Err(_) => "it panicked".to_owned(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where messages go in and come out.
pub struct Feed {
    exit: Exit,
    confirmed: mpsc::Sender<Publishing>,
    acks: Acks,
    stream: Consumer,
    settling: JoinHandle<Result<(), String>>,
    /// The number of the next message.
    next: u64,
    _connection: Connection,
}

impl Feed {
    /// Sends a message with a body of so many bytes; its number, one more than that of the message before.
    pub async fn send(&mut self, bytes: usize) -> Result<u64, String> {
        let number = self.next;
        self.next += 1;
        let publishing = self.exit.publish(&numbered(number, bytes))?;
        self.confirmed.send(publishing).await.map_err(|_| "a publish was not confirmed")?;
        Ok(number)
    }

    /// The number of the next message that has come through, and acknowledges it. Cancel-safe.
    pub async fn next(&mut self) -> Result<u64, String> {
        let delivery = match self.stream.next().now_or_never() {
            Some(next) => next,
            None => {
                self.acks.flush();
                self.stream.next().await
            }
        };
        let delivery = delivery.ok_or("the broker cancelled the subscription")?.map_err(|e| reason(&e))?;
        self.acks.note(delivery.delivery_tag);
        number_of(&delivery.data).ok_or_else(|| "a message came through that was not sent".to_owned())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.acks.flush();
        self.settling.abort();
    }
}

/// A body that says which message it is.
fn numbered(number: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![b'x'; bytes.max(size_of::<u64>())];
    body[..size_of::<u64>()].copy_from_slice(&number.to_be_bytes());
    body
}

fn number_of(body: &[u8]) -> Option<u64> {
    body.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

type Publishing = BoxFuture<'static, lapin::Result<Confirmation>>;

/// A confirmed channel to one queue.
struct Exit {
    channel: Channel,
    to: String,
    properties: BasicProperties,
    mandatory: bool,
    body_bytes: Option<usize>,
}

impl Exit {
    async fn open(channel: Channel, to: &str, dress: Dress) -> lapin::Result<Self> {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let message = Message { packed: dress.packed, properties: dress.properties, ..Message::default() };
        let properties = convert::properties(&message).expect("its texts are short");
        let (mandatory, body_bytes) = (dress.mandatory, dress.body_bytes);
        Ok(Self { channel, to: to.to_owned(), properties, mandatory, body_bytes })
    }

    /// Queues the frames; the future is done when the broker has the message.
    fn publish(&self, body: &[u8]) -> Result<Publishing, String> {
        let body = match (self.body_bytes, number_of(body)) {
            (Some(bytes), Some(number)) => numbered(number, bytes),
            _ => body.to_vec(),
        };
        let (channel, to, properties) = (self.channel.clone(), self.to.clone(), self.properties.clone());
        let options = BasicPublishOptions { mandatory: self.mandatory, immediate: false };
        let mut publishing = Box::pin(async move {
            channel.basic_publish("".into(), to.into(), options, &body, properties).await?.await
        });
        match publishing.as_mut().now_or_never() {
            Some(Err(error)) => Err(reason(&error)),
            Some(done) => Ok(Box::pin(std::future::ready(done))),
            None => Ok(publishing),
        }
    }
}

/// Acknowledges many at a time.
struct Acks {
    channel: Channel,
    last: Option<u64>,
    noted: usize,
}

impl Acks {
    fn new(channel: Channel) -> Self {
        Self { channel, last: None, noted: 0 }
    }

    /// Tags come in order.
    fn note(&mut self, tag: u64) {
        self.last = Some(tag);
        self.noted += 1;
        if self.noted == ACKS_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.noted = 0;
        if let Some(tag) = self.last.take() {
            // Polled once, which queues the frame. A channel that is gone is found out where messages come from.
            let _ = self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).now_or_never();
        }
    }
}

async fn relay(
    mut stream: Consumer,
    deliveries: Channel,
    exit: Exit,
    errand: Option<Errand>,
) -> Result<(), String> {
    let (confirmed, confirms) = mpsc::channel(IN_FLIGHT_MAX);
    let (tags, tagged) = mpsc::unbounded_channel();
    let settling = tokio::spawn(settle(confirms, Some((Acks::new(deliveries), tagged))));
    while let Some(first) = stream.next().await {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Some(Some(next)) = stream.next().now_or_never()
        {
            batch.push(next);
        }
        if let Some(errand) = &errand {
            errand(batch.len()).await;
        }
        for delivery in batch {
            let delivery = delivery.map_err(|error| reason(&error))?;
            let publishing = exit.publish(&delivery.data)?;
            // The tag first: the task that settles takes one for every publish.
            let sent = tags.send(delivery.delivery_tag).is_ok() && confirmed.send(publishing).await.is_ok();
            if !sent {
                return settling.await.map_err(|_| "it panicked")?;
            }
        }
    }
    Ok(())
}

/// Awaits confirms in the order of their messages, and acknowledges what they came by.
async fn settle(
    mut confirms: mpsc::Receiver<Publishing>,
    mut acks: Option<(Acks, mpsc::UnboundedReceiver<u64>)>,
) -> Result<(), String> {
    loop {
        let publishing = match (confirms.try_recv(), &mut acks) {
            (Ok(publishing), _) => Some(publishing),
            (Err(_), Some((acks, _))) => {
                acks.flush();
                confirms.recv().await
            }
            (Err(_), None) => confirms.recv().await,
        };
        let Some(mut publishing) = publishing else { return Ok(()) };
        let confirmation = match (publishing.as_mut().now_or_never(), &mut acks) {
            (Some(done), _) => done,
            (None, Some((acks, _))) => {
                acks.flush();
                publishing.await
            }
            (None, None) => publishing.await,
        };
        match confirmation.map_err(|error| reason(&error))? {
            Confirmation::Ack(None) => {}
            _ => return Err("the broker refused or returned a message".to_owned()),
        }
        if let Some((acks, tags)) = &mut acks
            && let Some(tag) = tags.recv().await
        {
            acks.note(tag);
        }
    }
}

/// What the queues of a pump stand for: the system's own with the same arguments.
pub(super) fn models() -> [Queue; 3] {
    let reply = ReplyQueue::new("reply.pump.pump").expect("a valid name");
    [Queue::Jobs(Class::Normal), Queue::Lane(Lane::Local), Queue::Reply(reply)]
}
