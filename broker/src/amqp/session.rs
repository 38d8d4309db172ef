//! One channel that deliveries come in on, with the subscriptions of one consumer.

use super::acks::{Acks, Frame, Tag};
use super::allowance::{Allowance, Id, Step};
use super::connection::Link;
use super::consumer::{Arrived, Command, Item, Settler};
use super::handshake::{answered, reason};
use super::{FAREWELL, Phase, Phases, topology};
use crate::BrokerError;
use crate::delivery::Settlement;
use crate::queue::Queue;
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};

/// Most settlements in one flush.
const FLUSH: usize = 64;
/// A channel without subscriptions does not tell when it is gone: look now and then.
const LOOK: Duration = Duration::from_secs(1);

/// How a session ended.
pub(super) enum End {
    /// The channel, the connection or the queue is gone.
    Lost(String),
    /// The handle was dropped.
    Dropped,
    /// The broker adapter is being closed.
    Closing,
}

/// What the deliveries of one session share with it: where they are settled.
pub(super) struct Ledger {
    settlements: mpsc::UnboundedSender<(Tag, Settlement)>,
}

impl Ledger {
    /// A ledger, and what is settled in it. It is over once that is dropped or closed.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<(Tag, Settlement)>) {
        let (settlements, settled) = mpsc::unbounded_channel();
        (Self { settlements }, settled)
    }

    /// Whether the session is over: the broker has put back what was out.
    pub(super) fn over(&self) -> bool {
        self.settlements.is_closed()
    }

    /// Waits until the session is over.
    pub(super) async fn ended(&self) {
        self.settlements.closed().await;
    }

    pub(super) fn settle(&self, tag: Tag, settlement: Settlement) {
        // A session that is over needs no settlements.
        let _ = self.settlements.send((tag, settlement));
    }
}

/// One channel, and what is out on it.
pub(super) struct Session {
    channel: Channel,
    name: String,
    queue: Queue,
    allowance: Allowance,
    acks: Acks<Id>,
    /// The live subscriptions.
    streams: Vec<(Id, lapin::Consumer)>,
    /// Arrived and not passed on.
    arrived: Vec<(Id, Delivery)>,
    /// Why a stream ended that was not to, if one did.
    ended: Option<String>,
    ledger: Arc<Ledger>,
    settlements: mpsc::UnboundedReceiver<(Tag, Settlement)>,
}

impl Session {
    /// Opens a channel and subscribes.
    pub(super) async fn open(link: &Link, queue: &Queue, prefetch: u32) -> Result<Self, BrokerError> {
        let setup = &link.setup;
        let uplink = link.up_soon().await?;
        let opened = answered(uplink.connection.create_channel()).await;
        let channel = opened.map_err(|error| setup.failed("open a channel", &error))?;
        let mut subscriptions_max = Allowance::SUBSCRIPTIONS_MAX;
        if let Queue::Reply(reply) = queue {
            topology::declare(&channel, &topology::reply(reply, &setup.limits), setup).await?;
            subscriptions_max = 1;
        }
        let (ledger, settlements) = Ledger::new();
        let mut session = Self {
            channel,
            name: setup.name.clone(),
            queue: queue.clone(),
            allowance: Allowance::new(prefetch, subscriptions_max),
            acks: Acks::new(),
            streams: Vec::new(),
            arrived: Vec::new(),
            ended: None,
            ledger: Arc::new(ledger),
            settlements,
        };
        session.adjust().await.map_err(|error| setup.failed(&format!("consume {queue}"), &error))?;
        Ok(session)
    }

    /// Passes deliveries on and settles, until the end.
    pub(super) async fn run(
        &mut self,
        prefetch: &mut u32,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        items: &mpsc::UnboundedSender<Item>,
        phases: &mut Phases,
    ) -> End {
        let mut settled = Vec::with_capacity(FLUSH);
        let mut look = interval(LOOK);
        loop {
            let changed = tokio::select! {
                // All that is there, up to a flush full: fewer means that there is nothing more to wait for.
                _ = self.settlements.recv_many(&mut settled, FLUSH) => {
                    self.flush(&mut settled);
                    self.adjust().await
                }
                ended = poll_fn(|cx| poll_streams(&mut self.streams, &mut self.arrived, None, cx)) => {
                    self.ended = ended;
                    Ok(())
                }
                _ = look.tick(), if self.streams.is_empty() => {
                    if !self.channel.status().connected() {
                        self.ended = Some("the channel ended".to_owned());
                    }
                    Ok(())
                }
                command = commands.recv() => match command {
                    None => return End::Dropped,
                    Some(Command::SetPrefetch(target, done)) => {
                        *prefetch = target;
                        self.allowance.set_target(target);
                        let changed = self.adjust().await;
                        let _ = done.send(());
                        changed
                    }
                },
                () = phases.reached(Phase::Ending) => return End::Closing,
            };
            self.pass_on(items);
            if let Some(reason) = self.ended.take() {
                return End::Lost(reason);
            }
            if let Err(error) = changed {
                return End::Lost(reason(&error));
            }
        }
    }

    /// The handle is gone: stops deliveries, gives back what nobody saw, and stays until the rest is settled.
    pub(super) async fn linger(mut self, phases: &mut Phases) {
        for id in self.allowance.stop() {
            if self.cancel(id).await.is_err() {
                return;
            }
        }
        for (tag, _) in self.take_arrived() {
            self.ledger.settle(tag, Settlement::GiveBack);
        }
        let mut settled = Vec::with_capacity(FLUSH);
        let mut look = interval(LOOK);
        while self.acks.out() > 0 && self.channel.status().connected() {
            tokio::select! {
                _ = self.settlements.recv_many(&mut settled, FLUSH) => self.flush(&mut settled),
                _ = look.tick() => {}
                () = phases.reached(Phase::Ending) => break,
            }
        }
        self.close().await;
    }

    /// Sends what is settled, and closes the channel; what is still out comes again.
    pub(super) async fn close(&mut self) {
        let mut settled = Vec::new();
        while let Ok(settlement) = self.settlements.try_recv() {
            settled.push(settlement);
        }
        self.flush(&mut settled);
        self.settlements.close();
        if self.channel.status().connected() {
            let _ = timeout(FAREWELL, self.channel.close(200, "closed".into())).await;
        }
    }

    fn flush(&mut self, settled: &mut Vec<(Tag, Settlement)>) {
        for (tag, settlement) in settled.drain(..) {
            if let Some(id) = self.acks.settled(tag, settlement) {
                self.allowance.settled(id);
            }
        }
        for frame in self.acks.flush() {
            // Polled once, which queues the frame; waiting until it is written would gain nothing. If the channel is
            // gone the frame has no meaning any more, and the streams say so.
            let _ = match frame {
                Frame::Ack { tag, multiple } => {
                    self.channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never()
                }
                Frame::GiveBack { tag } => {
                    let options = BasicNackOptions { multiple: false, requeue: true };
                    self.channel.basic_nack(tag, options).now_or_never()
                }
            };
        }
    }

    /// Subscribes and cancels until the allowance is what it should be.
    async fn adjust(&mut self) -> lapin::Result<()> {
        while let Some(step) = self.allowance.step() {
            match step {
                Step::Cancel { id } => self.cancel(id).await?,
                Step::Subscribe { id, prefetch } => {
                    answered(self.channel.basic_qos(prefetch, BasicQosOptions { global: false })).await?;
                    let exclusive = matches!(self.queue, Queue::Reply(_));
                    let stream = self.channel.basic_consume(
                        self.queue.to_string().into(),
                        self.consumer_tag(id),
                        BasicConsumeOptions { exclusive, ..BasicConsumeOptions::default() },
                        FieldTable::default(),
                    );
                    self.streams.push((id, answered(stream).await?));
                }
            }
        }
        Ok(())
    }

    /// Cancels a subscription and collects what it still brought, and what came before that on the others: a number
    /// passed over would never be reached over by a "multiple" again.
    async fn cancel(&mut self, id: Id) -> lapin::Result<()> {
        let cancelling = self.channel.basic_cancel(self.consumer_tag(id), BasicCancelOptions::default());
        let cancelled = answered(cancelling).await;
        let mut nobody = Context::from_waker(Waker::noop());
        let drained = poll_streams(&mut self.streams, &mut self.arrived, Some(id), &mut nobody);
        if let Poll::Ready(Some(reason)) = drained {
            self.ended = Some(reason);
        }
        self.streams.retain(|(found, _)| *found != id);
        cancelled
    }

    fn consumer_tag(&self, id: Id) -> ShortString {
        format!("{}.{id}", self.name).into()
    }

    /// Passes on what has arrived.
    fn pass_on(&mut self, items: &mpsc::UnboundedSender<Item>) {
        for (tag, delivery) in self.take_arrived() {
            let settler = Settler::new(self.ledger.clone(), tag);
            // A handle that is gone gives it back by dropping it.
            let _ = items.send(Item::Arrived(Box::new(Arrived { delivery, settler })));
        }
    }

    /// Notes what has arrived as delivered, and hands it out in the order in which the broker sent it.
    fn take_arrived(&mut self) -> Vec<(Tag, Delivery)> {
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.sort_unstable_by_key(|(_, delivery)| delivery.delivery_tag);
        let note = |(id, delivery): (Id, Delivery)| {
            let tag = delivery.delivery_tag;
            debug_assert!(self.acks.is_next(tag), "delivery {tag} came before an earlier one");
            self.acks.delivered(tag, id);
            self.allowance.delivered(id);
            (tag, delivery)
        };
        arrived.into_iter().map(note).collect()
    }
}

/// Collects all that has arrived; why a stream ended, if one did. The end of the stream `cancelled` is no reason.
///
/// Several streams are polled until a whole round brings nothing: what arrived before anything collected is then
/// collected as well, so that sorting it by number restores the broker's order.
fn poll_streams<S: Stream<Item = lapin::Result<Delivery>> + Unpin>(
    streams: &mut Vec<(Id, S)>,
    arrived: &mut Vec<(Id, Delivery)>,
    cancelled: Option<Id>,
    cx: &mut Context<'_>,
) -> Poll<Option<String>> {
    let mut ended = None;
    loop {
        let before = arrived.len();
        streams.retain_mut(|(id, stream)| {
            loop {
                match stream.poll_next_unpin(cx) {
                    Poll::Pending => return true,
                    Poll::Ready(Some(Ok(delivery))) => arrived.push((*id, delivery)),
                    Poll::Ready(_) if cancelled == Some(*id) => return false,
                    Poll::Ready(Some(Err(error))) => {
                        ended = Some(reason(&error));
                        return false;
                    }
                    Poll::Ready(None) => {
                        ended.get_or_insert_with(|| "the broker cancelled the subscription".to_owned());
                        return false;
                    }
                }
            }
        });
        if ended.is_some() {
            return Poll::Ready(ended);
        }
        if arrived.len() == before {
            return if arrived.is_empty() { Poll::Pending } else { Poll::Ready(None) };
        }
    }
}

#[cfg(test)]
mod tests;
