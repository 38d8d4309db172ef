//! Consumers: the handle that a caller has, and the task that keeps its subscription alive.
//!
//! The task runs one [`Session`] after another: a session is one channel with its subscriptions, and ends when the
//! channel, the connection or the queue does. Deliveries of a session that is over are not handed out any more, and
//! settling one that was is a harmless no-op: the broker has put it back, and sends it again. Until then it takes its
//! place among those that may be out: who holds it may be busy with it still.

use super::acks::Tag;
use super::connection::Link;
use super::session::{End, Ledger, Session};
use super::{Phase, Phases, Tasks, convert};
use crate::delivery::{Delivery, Settle, Settlement};
use crate::queue::Queue;
use crate::{BrokerError, Consumer, Incoming};
use async_trait::async_trait;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep;

/// What the task passes on to the handle.
pub(super) enum Item {
    Arrived(Box<Arrived>),
    Resumed,
}

/// A delivery not handed out yet. One that is dropped goes back.
pub(super) struct Arrived {
    pub(super) delivery: lapin::message::Delivery,
    pub(super) settler: Settler,
}

/// What the handle asks of the task.
pub(super) enum Command {
    SetPrefetch(u32, oneshot::Sender<()>),
}

/// How many deliveries of a handle are out, whatever became of the sessions they came in.
#[derive(Default)]
struct Hands {
    out: AtomicU32,
    taken_back: Notify,
}

impl Hands {
    /// Counts one more as handed out, if that makes at most `most`.
    fn hand_out(&self, most: u32) -> bool {
        // Only the handle counts up, so nothing can come between the look and the count.
        let may = self.out.load(Ordering::Acquire) < most;
        if may {
            self.out.fetch_add(1, Ordering::AcqRel);
        }
        may
    }

    fn take_back(&self) {
        self.out.fetch_sub(1, Ordering::AcqRel);
        self.taken_back.notify_one();
    }
}

/// Settles one delivery, once.
pub(super) struct Settler {
    ledger: Arc<Ledger>,
    tag: Tag,
    /// Where it is counted, once it is handed out.
    hands: Option<Arc<Hands>>,
    settled: bool,
}

impl Settler {
    pub(super) fn new(ledger: Arc<Ledger>, tag: Tag) -> Self {
        Self { ledger, tag, hands: None, settled: false }
    }

    fn finish(&mut self, settlement: Settlement) {
        self.settled = true;
        if let Some(hands) = self.hands.take() {
            hands.take_back();
        }
        self.ledger.settle(self.tag, settlement);
    }
}

impl Settle for Settler {
    fn settle(mut self: Box<Self>, settlement: Settlement) {
        self.finish(settlement);
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        if !self.settled {
            self.finish(Settlement::GiveBack);
        }
    }
}

/// The handle.
pub(super) struct AmqpConsumer {
    items: mpsc::UnboundedReceiver<Item>,
    /// Taken from `items` and held back, because as many are out as may be.
    next: Option<Box<Arrived>>,
    hands: Arc<Hands>,
    prefetch: u32,
    /// Dropped with the handle, which ends the task.
    commands: mpsc::UnboundedSender<Command>,
    registered: watch::Receiver<bool>,
    /// The queue is where the broker's own dead letters end.
    last_stop: bool,
}

/// Subscribes to `queue`; the task does so again after every loss. It does the first time as well, so that a caller who
/// stops waiting leaves nothing half open: the client library would cancel and close at the same time, and drop the
/// connection over it.
pub(super) async fn consume(
    link: Link,
    queue: &Queue,
    prefetch: u32,
    phases: Phases,
    tasks: &Tasks,
) -> Result<AmqpConsumer, BrokerError> {
    let prefetch = prefetch.max(1);
    let (items_in, items) = mpsc::unbounded_channel();
    let (commands, commands_out) = mpsc::unbounded_channel();
    let (registered_in, registered) = watch::channel(true);
    let (opened, is_open) = oneshot::channel();
    let task = Subscription {
        link,
        queue: queue.clone(),
        prefetch,
        items: items_in,
        commands: commands_out,
        registered: registered_in,
        phases,
    };
    tasks.spawn(task.start(opened));
    let last_stop = *queue == Queue::DeadIntake;
    let hands = Arc::default();
    let handle = AmqpConsumer { items, next: None, hands, prefetch, commands, registered, last_stop };
    is_open.await.unwrap_or(Err(BrokerError::Closed)).map(|()| handle)
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Option<Incoming> {
        loop {
            let arrived = match self.next.take() {
                Some(held_back) => held_back,
                None => match self.items.recv().await? {
                    Item::Resumed => return Some(Incoming::Resumed),
                    Item::Arrived(arrived) => arrived,
                },
            };
            let ledger = &arrived.settler.ledger;
            if ledger.over() {
                continue;
            }
            if self.hands.hand_out(self.prefetch) {
                return Some(Incoming::Delivery(Box::new(self.delivery(*arrived))));
            }
            let ledger = ledger.clone();
            self.next = Some(arrived);
            tokio::select! {
                () = self.hands.taken_back.notified() => {}
                () = ledger.ended() => {}
            }
        }
    }

    async fn set_prefetch(&mut self, prefetch: u32) -> Result<(), BrokerError> {
        let prefetch = prefetch.max(1);
        if prefetch == self.prefetch {
            return Ok(());
        }
        self.prefetch = prefetch;
        let (done, is_done) = oneshot::channel();
        self.commands.send(Command::SetPrefetch(prefetch, done)).map_err(|_| BrokerError::Closed)?;
        is_done.await.map_err(|_| BrokerError::Closed)
    }

    fn registered(&self) -> bool {
        *self.registered.borrow()
    }
}

impl AmqpConsumer {
    fn delivery(&self, arrived: Arrived) -> Delivery {
        let Arrived { delivery, mut settler } = arrived;
        settler.hands = Some(self.hands.clone());
        let found = convert::arrival(delivery, self.last_stop);
        Delivery::new(found.message, found.redelivered, found.returns, found.death, Box::new(settler))
    }
}

/// The task behind a handle.
struct Subscription {
    link: Link,
    queue: Queue,
    prefetch: u32,
    items: mpsc::UnboundedSender<Item>,
    commands: mpsc::UnboundedReceiver<Command>,
    registered: watch::Sender<bool>,
    phases: Phases,
}

impl Subscription {
    async fn start(self, opened: oneshot::Sender<Result<(), BrokerError>>) {
        match Session::open(&self.link, &self.queue, self.prefetch).await {
            Ok(session) => {
                // Nobody to tell means that the handle is gone too, which the session finds out.
                let _ = opened.send(Ok(()));
                self.keep(session).await;
            }
            Err(error) => drop(opened.send(Err(error))),
        }
    }

    async fn keep(mut self, mut session: Session) {
        loop {
            let end =
                session.run(&mut self.prefetch, &mut self.commands, &self.items, &mut self.phases).await;
            self.registered.send_replace(false);
            match end {
                End::Dropped => {
                    // The handle's own deliveries went back with it; what was handed out is still to come.
                    self.items.closed().await;
                    session.linger(&mut self.phases).await;
                    return;
                }
                End::Closing => {
                    session.close().await;
                    return;
                }
                End::Lost(reason) => {
                    tracing::warn!(broker.queue = %self.queue, error = reason, "subscription lost");
                    session.close().await;
                }
            }
            let Some(next) = self.subscribe_again().await else { return };
            session = next;
            tracing::info!(broker.queue = %self.queue, "subscribed again");
            self.registered.send_replace(true);
            // Nobody to tell means that the handle was dropped, which the session finds out.
            let _ = self.items.send(Item::Resumed);
        }
    }

    /// A new session, as soon as there can be one; `None` when there shall be none.
    async fn subscribe_again(&mut self) -> Option<Session> {
        let mut backoff = self.link.setup.backoff();
        // If it was the queue that went, the connection that is up makes it again.
        self.link.declare_again();
        loop {
            let delay = backoff.next().unwrap_or(self.link.setup.reconnect_delay_max);
            self.wait(delay).await?;
            match Session::open(&self.link, &self.queue, self.prefetch).await {
                Ok(session) => return Some(session),
                Err(error) => {
                    tracing::debug!(broker.queue = %self.queue, %error, "failed to subscribe again");
                    self.link.declare_again();
                }
            }
        }
    }

    /// Waits for `delay` and then for the connection; `None` once there is no more reason to.
    async fn wait(&mut self, delay: Duration) -> Option<()> {
        let link = self.link.clone();
        let mut ready = pin!(async {
            sleep(delay).await;
            link.up().await
        });
        loop {
            tokio::select! {
                up = &mut ready => return up.map(|_| ()),
                command = self.commands.recv() => {
                    let Command::SetPrefetch(prefetch, done) = command?;
                    self.prefetch = prefetch;
                    let _ = done.send(());
                }
                () = self.phases.reached(Phase::Ending) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

    type Settled = UnboundedReceiver<(Tag, Settlement)>;

    /// A handle whose task is the test.
    fn handle(prefetch: u32) -> (AmqpConsumer, UnboundedSender<Item>) {
        let (items_in, items) = mpsc::unbounded_channel();
        let (commands, _) = mpsc::unbounded_channel();
        let (_, registered) = watch::channel(true);
        let hands = Arc::default();
        let last_stop = false;
        (AmqpConsumer { items, next: None, hands, prefetch, commands, registered, last_stop }, items_in)
    }

    /// A session that delivered so many.
    fn session(items: &UnboundedSender<Item>, deliveries: u64) -> Settled {
        let (ledger, settled) = Ledger::new();
        let ledger = Arc::new(ledger);
        for tag in 1..=deliveries {
            let delivery = lapin::message::Delivery::mock(tag, "".into(), "q".into(), false, Vec::new());
            let settler = Settler::new(ledger.clone(), tag);
            assert!(items.send(Item::Arrived(Box::new(Arrived { delivery, settler }))).is_ok());
        }
        settled
    }

    fn delivery(consumer: &mut AmqpConsumer) -> Option<Delivery> {
        match consumer.next().now_or_never()?? {
            Incoming::Delivery(delivery) => Some(*delivery),
            Incoming::Resumed => panic!("resumed"),
        }
    }

    #[test]
    fn what_is_held_from_a_session_that_is_over_takes_its_place_until_it_is_settled() {
        let (mut consumer, items) = handle(2);
        let first = session(&items, 3);
        let (one, other) = (delivery(&mut consumer).unwrap(), delivery(&mut consumer).unwrap());
        assert!(delivery(&mut consumer).is_none(), "two are out and two may be");

        drop(first);
        assert!(items.send(Item::Resumed).is_ok());
        let mut second = session(&items, 3);
        assert!(matches!(consumer.next().now_or_never(), Some(Some(Incoming::Resumed))));
        assert!(delivery(&mut consumer).is_none(), "the two are still being worked on");
        one.ack();
        let next = delivery(&mut consumer).unwrap();
        assert!(delivery(&mut consumer).is_none());
        drop(other);
        let last = delivery(&mut consumer).unwrap();
        assert!(delivery(&mut consumer).is_none());
        assert!(second.try_recv().is_err(), "what was settled belonged to the session before");
        next.ack();
        assert_eq!(second.try_recv(), Ok((1, Settlement::Ack)));
        last.give_back();
        assert_eq!(second.try_recv(), Ok((2, Settlement::GiveBack)));
        assert!(delivery(&mut consumer).is_some());
    }

    #[test]
    fn a_call_that_is_cancelled_takes_no_place_and_loses_nothing() {
        let (mut consumer, items) = handle(1);
        let mut settled = session(&items, 2);
        let held = delivery(&mut consumer).unwrap();
        for _ in 0..3 {
            assert!(delivery(&mut consumer).is_none());
        }
        held.ack();
        let next = delivery(&mut consumer).unwrap();
        next.ack();
        assert_eq!(
            [settled.try_recv(), settled.try_recv()],
            [Ok((1, Settlement::Ack)), Ok((2, Settlement::Ack))]
        );
    }
}
