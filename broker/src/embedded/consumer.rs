//! Consumers, and what they hand out.

use super::queues::{Next, Subscribed, Taken};
use super::shared::Shared;
use crate::delivery::{Delivery, Settle, Settlement};
use crate::{BrokerError, Incoming};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;

/// A consumer on the list. It holds nothing itself: a message leaves its queue when it is asked for.
pub(super) struct Consumer {
    shared: Arc<Shared>,
    key: u64,
    number: u32,
    changed: Arc<Notify>,
    room: Arc<Notify>,
}

impl Consumer {
    pub(super) fn new(shared: Arc<Shared>, subscribed: Subscribed) -> Self {
        let Subscribed { key, number, changed, room, declared: _ } = subscribed;
        Self { shared, key, number, changed, room }
    }

    fn deliver(&self, taken: Taken) -> Incoming {
        let Taken { id, returns, redelivered, content } = taken;
        let settle = Box::new(Handed { shared: self.shared.clone(), number: self.number, id });
        Incoming::Delivery(Box::new(Delivery::new(
            content.message,
            redelivered,
            returns,
            content.death,
            settle,
        )))
    }

    fn take(&self) -> Next {
        let mut state = self.shared.lock();
        if state.ending.is_some() { Next::Gone } else { state.queues.take(self.key) }
    }
}

#[async_trait]
impl crate::Consumer for Consumer {
    async fn next(&mut self) -> Option<Incoming> {
        // There may be something for long, and then nothing below ever waits.
        consume_budget().await;
        loop {
            // Listens before it looks, so that nothing that comes in between is missed.
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            let mut next = self.take();
            if matches!(next, Next::Wait) {
                changed.as_mut().enable();
                next = self.take();
            }
            match next {
                Next::Taken(taken) => return Some(self.deliver(*taken)),
                Next::Wait => changed.await,
                Next::NoRoom => self.room.notified().await,
                Next::Gone => return None,
            }
        }
    }

    async fn set_prefetch(&mut self, prefetch: u32) -> Result<(), BrokerError> {
        let mut state = self.shared.lock();
        if state.ending.is_some() {
            return Err(BrokerError::Closed);
        }
        state.queues.set_prefetch(self.key, prefetch);
        Ok(())
    }

    fn registered(&self) -> bool {
        let state = self.shared.lock();
        state.ending.is_none() && state.queues.has_consumer(self.key)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let now = self.shared.clock.now();
        self.shared.lock().queues.unsubscribe(self.key, now);
    }
}

/// A message in somebody's hands.
struct Handed {
    shared: Arc<Shared>,
    number: u32,
    id: u64,
}

impl Settle for Handed {
    fn settle(self: Box<Self>, settlement: Settlement) {
        let mut state = self.shared.lock();
        // After the end the file is no longer ours: the message comes again when it is next opened.
        if state.ending.is_none() {
            state.queues.settle(self.number, self.id, settlement);
        }
    }
}
