//! Who consumes, and what they get.

use super::super::fifo::{Front, Item};
use super::super::record::Content;
use super::super::store::Write;
use super::{Out, Queues, wake};
use crate::BrokerError;
use crate::queue::Queue;
use std::sync::Arc;
use tokio::sync::Notify;

/// A consumer of one queue.
pub(super) struct Consumer {
    number: u32,
    prefetch: u32,
    out: u32,
    pub(super) changed: Arc<Notify>,
    pub(super) room: Arc<Notify>,
}

/// A new consumer.
pub(in super::super) struct Subscribed {
    pub(in super::super) key: u64,
    /// The number of its queue.
    pub(in super::super) number: u32,
    /// Woken when its queue may have something; shared with the queue's other consumers.
    pub(in super::super) changed: Arc<Notify>,
    /// Woken when it may have one more.
    pub(in super::super) room: Arc<Notify>,
    /// Whether the file must learn of it before it counts.
    pub(in super::super) declared: bool,
}

/// What there is for a consumer.
pub(in super::super) enum Next {
    /// A message, now in its hands.
    Taken(Box<Taken>),
    /// Nothing before its queue changes.
    Wait,
    /// Nothing before it settles something.
    NoRoom,
    /// It is not on the list.
    Gone,
}

/// A message to hand out.
pub(in super::super) struct Taken {
    pub(in super::super) id: u64,
    pub(in super::super) returns: u32,
    pub(in super::super) redelivered: bool,
    pub(in super::super) content: Content,
}

impl Queues {
    /// Puts a consumer on the list. A reply queue is declared if it is not there, and takes one consumer only.
    pub(in super::super) fn subscribe(
        &mut self,
        queue: &Queue,
        prefetch: u32,
    ) -> Result<Subscribed, BrokerError> {
        let refused = |reason: &str| BrokerError::Refused {
            operation: format!("consume {queue}"),
            reason: reason.to_owned(),
        };
        let (number, new) = match (self.numbers.get(queue), queue) {
            (_, Queue::Retry(_)) => return Err(refused("what waits there moves on by itself")),
            (Some(number), _) => (*number, false),
            (None, Queue::Reply(_)) => (self.declare(queue), true),
            (None, _) => return Err(refused("it does not exist")),
        };
        let resting = self.queues.get_mut(&number).expect("a numbered queue rests somewhere");
        if matches!(queue, Queue::Reply(_)) && resting.consumers > 0 {
            return Err(refused("it has a consumer, and takes one only"));
        }
        resting.consumers += 1;
        let expired = std::mem::take(&mut resting.expires);
        if expired != 0 {
            self.expiries.remove(&(expired, number));
            self.writes.push(Write::Declare { number, name: queue.to_string(), expires: 0 });
        }
        let key = self.next_consumer;
        self.next_consumer += 1;
        let (changed, room) = (resting.changed.clone(), Arc::new(Notify::new()));
        let consumer = Consumer {
            number,
            prefetch: prefetch.max(1),
            out: 0,
            changed: changed.clone(),
            room: room.clone(),
        };
        self.consumers.insert(key, consumer);
        Ok(Subscribed { key, number, changed, room, declared: new || expired != 0 })
    }

    /// Takes a consumer off the list. What it has in hand stays out; a reply queue begins to expire.
    pub(in super::super) fn unsubscribe(&mut self, key: u64, now: u64) {
        let Some(consumer) = self.consumers.remove(&key) else { return };
        let Some(resting) = self.queues.get_mut(&consumer.number) else { return };
        resting.consumers -= 1;
        if matches!(resting.queue, Queue::Reply(_)) && resting.consumers == 0 {
            self.expire_later(consumer.number, now);
        }
    }

    /// Lets a consumer have at most so many messages in hand.
    pub(in super::super) fn set_prefetch(&mut self, key: u64, prefetch: u32) {
        if let Some(consumer) = self.consumers.get_mut(&key) {
            consumer.prefetch = prefetch.max(1);
        }
    }

    /// Whether a consumer is on the list.
    pub(in super::super) fn has_consumer(&self, key: u64) -> bool {
        self.consumers.contains_key(&key)
    }

    /// Hands the next message to a consumer, if there is one for it.
    pub(in super::super) fn take(&mut self, key: u64) -> Next {
        let Some(consumer) = self.consumers.get_mut(&key) else { return Next::Gone };
        if consumer.out >= consumer.prefetch {
            return Next::NoRoom;
        }
        let number = consumer.number;
        match self.take_front(number) {
            Front::Ready(item) => Next::Taken(Box::new(self.hand_out(number, key, item))),
            Front::Cold | Front::Empty => Next::Wait,
        }
    }

    fn hand_out(&mut self, number: u32, key: u64, item: Item) -> Taken {
        let Item { id, size, returns, content } = item;
        if let Some(consumer) = self.consumers.get_mut(&key) {
            consumer.out += 1;
        }
        if let Some(resting) = self.queues.get_mut(&number) {
            resting.out.insert(id, Out { size, returns, consumer: key });
        }
        Taken { id, returns, redelivered: returns > 0 || id < self.found_below, content: *content }
    }

    /// A consumer has one message less in hand, if it is still there.
    pub(super) fn gave_room(&mut self, key: u64) {
        let Some(consumer) = self.consumers.get_mut(&key) else { return };
        consumer.out -= 1;
        if consumer.out + 1 >= consumer.prefetch {
            wake(&mut self.wakes, &consumer.room, 1);
        }
    }
}
