//! What happens to messages: which queue takes one, who gets it, what becomes of it when it is settled, when a retry
//! is due, when a reply queue expires.
//!
//! Pure: the clock is an argument (milliseconds since the Unix epoch), and what must be written or read is left in
//! [`Queues::writes`] and [`Queues::loads`] for the storage thread. Invariants:
//! - A message is in one place: arriving, waiting, delayed, handed out, or moving. Limits count them all.
//! - What arrives is handed out only after [`Queues::arrived`]: once it is on disk.
//! - A write, once decided, is never taken back. It is tried until the file has it; a crash before that only repeats
//!   a delivery.

mod consumers;
mod moves;
mod recovery;
#[cfg(test)]
mod tests;

use super::fifo::{Fifo, Front};
use super::record::Content;
use super::store::Write;
use crate::delivery::{Death, Settlement, UNREADABLE};
use crate::queue::{Queue, Route};
use crate::receipt::PublishError;
use crate::{Depth, Limits};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tokio::sync::Notify;

pub(super) use consumers::{Next, Subscribed, Taken};
pub(super) use recovery::Recovery;

/// Memory for hot messages, of all queues together and of one of them.
const HOT_BYTES_MAX: u64 = 64 << 20;
const HOT_BYTES_PER_QUEUE_MAX: u64 = 16 << 20;

/// Why messages die here, besides what cannot be read.
const DELIVERY_LIMIT: &str = "delivery_limit";

/// See the module.
pub(super) struct Queues {
    limits: Limits,
    numbers: HashMap<Queue, u32>,
    queues: HashMap<u32, Resting>,
    consumers: HashMap<u64, consumers::Consumer>,
    /// Messages on their way to another queue, by their new id.
    moving: HashMap<u64, moves::Moving>,
    /// Queues with retries, and reply queues by when they expire.
    retries: BTreeSet<u32>,
    expiries: BTreeSet<(u64, u32)>,
    next_id: u64,
    next_number: u32,
    next_consumer: u64,
    /// Ids below this were found when the file was opened: somebody may have had them before.
    found_below: u64,
    hot_bytes: u64,
    /// What the file must learn, in this order.
    pub(super) writes: Vec<Write>,
    /// What must be read from the file: queue numbers and ids.
    pub(super) loads: Vec<(u32, Vec<u64>)>,
    /// Who must be woken, and how many of them.
    pub(super) wakes: Vec<(Arc<Notify>, usize)>,
}

/// One queue.
struct Resting {
    queue: Queue,
    /// Messages and bytes of bodies that rest here, arriving ones included.
    count: u64,
    bytes: u64,
    /// Those of them that are not yet on disk, and those on their way to another queue.
    arriving: u64,
    leaving: u64,
    ready: Fifo,
    /// In a retry queue: when each is due, its id and size, per queue it goes to.
    delayed: BTreeMap<u32, BTreeMap<(u64, u64), u32>>,
    out: HashMap<u64, Out>,
    consumers: u32,
    /// When a reply queue expires; 0 while it is consumed, and for every other queue.
    expires: u64,
    changed: Arc<Notify>,
}

/// A message handed out.
struct Out {
    size: u32,
    returns: u32,
    consumer: u64,
}

/// A place for a message that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: u64,
    /// The number of its queue.
    pub(super) queue: u32,
    pub(super) size: u32,
    /// The number of the queue it goes to when due, and when that is; 0 for neither.
    pub(super) next: u32,
    pub(super) due: u64,
}

impl Queues {
    /// Finds a place for a message with a body of `size` bytes and keeps it free until [`Self::arrived`] or
    /// [`Self::refused`].
    pub(super) fn offer(&mut self, route: &Route, size: u32, now: u64) -> Result<Place, PublishError> {
        let target = route.queue();
        let unroutable = || PublishError::Unroutable { queue: target.to_string() };
        let (next, due) = match route {
            Route::Retry(delay, class) => {
                let next = *self.numbers.get(&Queue::Jobs(*class)).ok_or_else(unroutable)?;
                // One more, because `now` may be nearly a millisecond old.
                (next, now + u64::from(delay.millis()) + 1)
            }
            // Nothing would ever take it out again.
            Route::To(Queue::Retry(_)) => return Err(unroutable()),
            Route::Submit(_) | Route::To(_) => (0, 0),
        };
        let number = *self.numbers.get(&target).ok_or_else(unroutable)?;
        if !self.reserve(number, size) {
            return Err(PublishError::Full { queue: target.to_string() });
        }
        if let Some(resting) = self.queues.get_mut(&number) {
            resting.arriving += 1;
        }
        Ok(Place { id: self.new_id(), queue: number, size, next, due })
    }

    /// The message of `place` is on disk.
    pub(super) fn arrived(&mut self, place: &Place, content: Box<Content>) {
        let Some(resting) = self.queues.get_mut(&place.queue) else { return };
        resting.arriving -= 1;
        if place.due != 0 {
            resting.delayed.entry(place.next).or_default().insert((place.due, place.id), place.size);
            return;
        }
        let others = self.hot_bytes - resting.ready.hot_bytes();
        let hot_bytes_max = match resting.queue {
            // Nobody waits for those.
            Queue::Dead => 0,
            _ => hot_bytes_max(others),
        };
        resting.ready.push(place.id, place.size, Some(content), hot_bytes_max);
        self.hot_bytes = others + resting.ready.hot_bytes();
        wake(&mut self.wakes, &resting.changed, 1);
    }

    /// The message of `place` could not be written.
    pub(super) fn refused(&mut self, place: &Place) {
        if let Some(resting) = self.queues.get_mut(&place.queue) {
            resting.arriving -= 1;
        }
        self.release(place.queue, place.size);
    }

    /// A delivery is settled. One of a queue that is gone means nothing any more.
    pub(super) fn settle(&mut self, number: u32, id: u64, settlement: Settlement) {
        let Some(Out { size, returns, consumer }) =
            self.queues.get_mut(&number).and_then(|resting| resting.out.remove(&id))
        else {
            return;
        };
        self.gave_room(consumer);
        match settlement {
            Settlement::Ack => {
                self.release(number, size);
                self.writes.push(Write::Remove { id });
            }
            Settlement::GiveBack => {
                let returns = returns.saturating_add(1);
                if returns <= self.limits.returns_max || !self.give_up_on(number, id, size, DELIVERY_LIMIT) {
                    self.put_back(number, id, size, returns);
                }
            }
        }
    }

    /// What was asked for in [`Self::loads`] is here; `None` for a message that cannot be read. What is left of such a
    /// one goes where messages die, so that somebody answers for it; from elsewhere, or without room there, it is out of
    /// the queue and stays in the file.
    pub(super) fn loaded(&mut self, number: u32, contents: Vec<(u64, Option<Content>)>) {
        let Some(resting) = self.queues.get_mut(&number) else { return };
        let others = self.hot_bytes - resting.ready.hot_bytes();
        let (filled, unreadable) = resting.ready.fill(contents);
        self.hot_bytes = others + resting.ready.hot_bytes();
        // Someone who waits is woken even if nothing could be read: there may be more behind it.
        wake(&mut self.wakes, &resting.changed, filled.max(1));
        for (id, size) in unreadable {
            if !self.give_up_on(number, id, size, UNREADABLE) {
                self.release(number, size);
            }
        }
    }

    /// How full `queue` is; `None` if it does not exist.
    pub(super) fn depth(&self, queue: &Queue) -> Option<Depth> {
        let resting = self.queues.get(self.numbers.get(queue)?)?;
        let delayed: usize = resting.delayed.values().map(BTreeMap::len).sum();
        let (mut ready, mut unacked) = ((resting.ready.len() + delayed) as u64, resting.out.len() as u64);
        // Until it is in its new queue, a message is where it was.
        match resting.queue {
            Queue::Retry(_) => ready += resting.leaving,
            _ => unacked += resting.leaving,
        }
        Some(Depth { ready, unacked: Some(unacked), consumers: resting.consumers })
    }

    /// Everyone who waits for a delivery, to tell them that there will be none.
    pub(super) fn everyone(&self) -> impl Iterator<Item = &Arc<Notify>> {
        self.consumers.values().flat_map(|consumer| [&consumer.changed, &consumer.room])
    }

    fn put_back(&mut self, number: u32, id: u64, size: u32, returns: u32) {
        let Some(resting) = self.queues.get_mut(&number) else { return };
        resting.ready.put_back(id, size, returns);
        wake(&mut self.wakes, &resting.changed, 1);
    }

    /// Takes the front message of a queue, and asks for those that will be needed soon.
    fn take_front(&mut self, number: u32) -> Front {
        let Some(resting) = self.queues.get_mut(&number) else { return Front::Empty };
        let others = self.hot_bytes - resting.ready.hot_bytes();
        let front = resting.ready.take();
        if let Some(ids) = resting.ready.wants(hot_bytes_max(others)) {
            self.loads.push((number, ids));
        }
        self.hot_bytes = others + resting.ready.hot_bytes();
        front
    }

    fn reserve(&mut self, number: u32, size: u32) -> bool {
        let Some(resting) = self.queues.get_mut(&number) else { return false };
        let (count_max, bytes_max) = resting.limits(&self.limits);
        let bytes = resting.bytes + u64::from(size);
        if resting.count >= count_max || bytes > bytes_max {
            return false;
        }
        resting.count += 1;
        resting.bytes = bytes;
        true
    }

    fn release(&mut self, number: u32, size: u32) {
        if let Some(resting) = self.queues.get_mut(&number) {
            resting.count -= 1;
            resting.bytes -= u64::from(size);
        }
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn add_queue(&mut self, number: u32, queue: Queue, expires: u64) {
        if matches!(queue, Queue::Retry(_)) {
            self.retries.insert(number);
        }
        if expires != 0 {
            self.expiries.insert((expires, number));
        }
        self.numbers.insert(queue.clone(), number);
        self.queues.insert(
            number,
            Resting {
                queue,
                count: 0,
                bytes: 0,
                arriving: 0,
                leaving: 0,
                ready: Fifo::default(),
                delayed: BTreeMap::new(),
                out: HashMap::new(),
                consumers: 0,
                expires,
                changed: Arc::new(Notify::new()),
            },
        );
    }

    /// Declares a queue that is not there yet, and numbers it.
    fn declare(&mut self, queue: &Queue) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        self.add_queue(number, queue.clone(), 0);
        self.writes.push(Write::Declare { number, name: queue.to_string(), expires: 0 });
        number
    }
}

impl Resting {
    /// Most messages and bytes of bodies.
    fn limits(&self, limits: &Limits) -> (u64, u64) {
        match self.queue {
            Queue::Jobs(_) | Queue::Wait(..) | Queue::Lane(_) | Queue::Retry(_) => {
                (limits.queue_messages_max, limits.queue_bytes_max)
            }
            Queue::Dead | Queue::DeadIntake => (limits.dead_messages_max, limits.queue_bytes_max),
            Queue::Reply(_) => (limits.reply_messages_max, limits.reply_bytes_max),
        }
    }
}

/// Most bytes that a queue may keep hot while all others together keep `others`.
fn hot_bytes_max(others: u64) -> u64 {
    HOT_BYTES_PER_QUEUE_MAX.min(HOT_BYTES_MAX.saturating_sub(others))
}

fn wake(wakes: &mut Vec<(Arc<Notify>, usize)>, whom: &Arc<Notify>, count: usize) {
    match wakes.last_mut() {
        Some((last, sum)) if Arc::ptr_eq(last, whom) => *sum += count,
        _ => wakes.push((whom.clone(), count)),
    }
}
