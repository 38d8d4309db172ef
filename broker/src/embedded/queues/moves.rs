//! Messages that change their queue, and queues that go, by themselves.

use super::super::store::Write;
use super::{Death, Queues, UNREADABLE, wake};
use crate::queue::Queue;

/// A message on its way to another queue. It counts in both until the file has it there.
pub(super) struct Moving {
    from: u32,
    to: u32,
    size: u32,
}

/// Most retries that move on at once: after a long pause millions may be due, and others wait meanwhile.
const MOVES_MAX: usize = 4_096;
/// A reply queue that should go while a reply arrives is looked at again after this many milliseconds.
const EXPIRY_RETRY_MS: u64 = 1_000;

impl Queues {
    /// Does what is due, or a good part of it: retries whose delay has passed move on while there is room for them,
    /// reply queues that nobody used expire. Whether it left writes; after those it should be called again.
    pub(in super::super) fn tick(&mut self, now: u64) -> bool {
        let before = self.writes.len();
        let mut moves_left = MOVES_MAX;
        for number in self.retries.clone() {
            self.move_due(number, now, &mut moves_left);
        }
        while let Some(&(at, number)) = self.expiries.first()
            && at <= now
        {
            self.expiries.pop_first();
            self.expire(number, now);
        }
        self.writes.len() > before
    }

    /// When something is due next. What is due and waits for room is not counted: room comes with a settlement, and
    /// every settlement is followed by a [`Self::tick`].
    pub(in super::super) fn next_due(&self, now: u64) -> Option<u64> {
        let retries = self.retries.iter().filter_map(|number| self.queues.get(number));
        let due = retries
            .flat_map(|resting| resting.delayed.values())
            .filter_map(|delayed| delayed.first_key_value())
            .map(|((due, _), _)| *due)
            .filter(|due| *due > now)
            .min();
        let expiry = self.expiries.first().map(|(at, _)| *at);
        due.into_iter().chain(expiry).min()
    }

    /// A message is in its new queue.
    pub(in super::super) fn moved(&mut self, id: u64) {
        let Some(Moving { from, to, size }) = self.moving.remove(&id) else { return };
        self.release(from, size);
        if let Some(resting) = self.queues.get_mut(&from) {
            resting.leaving -= 1;
        }
        if let Some(resting) = self.queues.get_mut(&to) {
            resting.ready.push(id, size, None, 0);
            wake(&mut self.wakes, &resting.changed, 1);
        }
    }

    /// Sends a message to `dead.intake`, if messages die in its queue at all and there is room.
    pub(super) fn give_up_on(&mut self, number: u32, id: u64, size: u32, reason: &str) -> bool {
        let Some(resting) = self.queues.get(&number) else { return false };
        if !matches!(resting.queue, Queue::Jobs(_) | Queue::Wait(..) | Queue::Lane(_)) {
            return false;
        }
        let death = Death { queue: resting.queue.to_string(), reason: reason.to_owned() };
        let intake = self.numbers.get(&Queue::DeadIntake).copied();
        intake.is_some_and(|intake| self.start_move(number, intake, id, size, Some(death)))
    }

    /// Lets an unused reply queue expire `reply_expiry` from now.
    pub(super) fn expire_later(&mut self, number: u32, now: u64) {
        let expiry = u64::try_from(self.limits.reply_expiry.as_millis()).unwrap_or(u64::MAX);
        let Some(resting) = self.queues.get_mut(&number) else { return };
        resting.expires = now.saturating_add(expiry).max(1);
        self.expiries.insert((resting.expires, number));
        let name = resting.queue.to_string();
        self.writes.push(Write::Declare { number, name, expires: resting.expires });
    }

    fn start_move(&mut self, from: u32, to: u32, id: u64, size: u32, death: Option<Death>) -> bool {
        if !self.reserve(to, size) {
            return false;
        }
        if let Some(resting) = self.queues.get_mut(&from) {
            resting.leaving += 1;
        }
        let new = self.new_id();
        self.moving.insert(new, Moving { from, to, size });
        let bare = death.as_ref().is_some_and(|death| death.reason == UNREADABLE);
        self.writes.push(Write::Move { id, to: new, queue: to, death, bare });
        true
    }

    fn move_due(&mut self, number: u32, now: u64, moves_left: &mut usize) {
        let Some(resting) = self.queues.get(&number) else { return };
        let targets: Vec<u32> = resting.delayed.keys().copied().collect();
        for to in targets {
            while let Some((key, size)) = self.first_due(number, to, now) {
                if *moves_left == 0 || !self.start_move(number, to, key.1, size, None) {
                    break;
                }
                *moves_left -= 1;
                if let Some(delayed) = self.queues.get_mut(&number).and_then(|r| r.delayed.get_mut(&to)) {
                    delayed.remove(&key);
                }
            }
        }
    }

    fn first_due(&self, number: u32, to: u32, now: u64) -> Option<((u64, u64), u32)> {
        let (key, size) = self.queues.get(&number)?.delayed.get(&to)?.first_key_value()?;
        (key.0 <= now).then_some((*key, *size))
    }

    fn expire(&mut self, number: u32, now: u64) {
        let Some(resting) = self.queues.get_mut(&number) else { return };
        if resting.arriving > 0 {
            resting.expires = now + EXPIRY_RETRY_MS;
            self.expiries.insert((resting.expires, number));
            return;
        }
        let Some(resting) = self.queues.remove(&number) else { return };
        self.numbers.remove(&resting.queue);
        self.hot_bytes -= resting.ready.hot_bytes();
        let ids: Vec<u64> = resting.ready.ids().chain(resting.out.keys().copied()).collect();
        tracing::info!(queue = %resting.queue, messages = ids.len(), "reply queue expired");
        self.writes.push(Write::Delete { number, ids });
    }
}
