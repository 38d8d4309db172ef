//! Consumers: the handle that a caller has, and the task that keeps its subscription alive.
//!
//! The task runs one [`Session`] after another: a session is one channel with its subscriptions, and ends when the
//! channel, the connection or the queue does. Deliveries of a session that is over are not handed out any more, and
//! settling one that was is a harmless no-op: the broker has put it back, and sends it again.

use super::connection::Link;
use super::session::{End, Ledger, Session};
use super::{Phase, Phases, Tasks, convert};
use crate::delivery::{Delivery, Settle, Settlement};
use crate::queue::Queue;
use crate::{BrokerError, Consumer, Incoming};
use async_trait::async_trait;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
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

/// Settles one delivery, once.
pub(super) struct Settler {
    ledger: Arc<Ledger>,
    tag: u64,
    handed_out: bool,
    settled: bool,
}

impl Settler {
    pub(super) fn new(ledger: Arc<Ledger>, tag: u64) -> Self {
        Self { ledger, tag, handed_out: false, settled: false }
    }

    fn finish(&mut self, settlement: Settlement) {
        self.settled = true;
        if self.handed_out {
            self.ledger.take_back();
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
    let handle = AmqpConsumer { items, next: None, prefetch, commands, registered, last_stop };
    is_open.await.unwrap_or(Err(BrokerError::Closed)).map(|()| handle)
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Option<Incoming> {
        loop {
            if self.next.is_none() {
                match self.items.recv().await? {
                    Item::Resumed => return Some(Incoming::Resumed),
                    Item::Arrived(arrived) => self.next = Some(arrived),
                }
            }
            let ledger = self.next.as_ref().expect("just filled").settler.ledger.clone();
            if !ledger.over() && !ledger.hand_out(self.prefetch) {
                ledger.changed().await;
                continue;
            }
            let arrived = self.next.take().expect("filled above");
            if !ledger.over() {
                return Some(Incoming::Delivery(Box::new(self.delivery(*arrived))));
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
        settler.handed_out = true;
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
