//! From the file's index to queues.

use super::super::record::Head;
use super::super::store::Index;
use super::Queues;
use crate::Limits;
use crate::queue::Queue;
use schemas::ReplyQueue;
use std::collections::{BTreeSet, HashMap};

/// Builds [`Queues`] from what the file holds.
pub(in super::super) struct Recovery {
    queues: Queues,
    /// Messages of queues that this version does not know: they stay in the file.
    strangers: HashMap<u32, (String, u64)>,
    now: u64,
}

impl Recovery {
    pub(in super::super) fn new(limits: Limits, now: u64) -> Self {
        let queues = Queues {
            limits,
            numbers: HashMap::new(),
            queues: HashMap::new(),
            consumers: HashMap::new(),
            moving: HashMap::new(),
            retries: BTreeSet::new(),
            expiries: BTreeSet::new(),
            next_id: 1,
            next_number: 1,
            next_consumer: 1,
            found_below: 1,
            hot_bytes: 0,
            writes: Vec::new(),
            loads: Vec::new(),
            wakes: Vec::new(),
        };
        Self { queues, strangers: HashMap::new(), now }
    }

    /// The queues, once the file has told everything. Queues of the fixed topology that it does not have yet are
    /// declared; reply queues expire from now unless they are consumed again.
    pub(in super::super) fn finish(self) -> Queues {
        let Self { mut queues, strangers, now } = self;
        for (name, messages) in strangers.into_values().filter(|(_, messages)| *messages > 0) {
            tracing::error!(
                queue = name,
                messages,
                "queue is not known to this version: its messages stay in the store"
            );
        }
        for queue in Queue::fixed() {
            if !queues.numbers.contains_key(&queue) {
                queues.declare(&queue);
            }
        }
        let in_use: Vec<u32> = queues
            .queues
            .iter()
            .filter(|(_, resting)| matches!(resting.queue, Queue::Reply(_)) && resting.expires == 0)
            .map(|(number, _)| *number)
            .collect();
        for number in in_use {
            queues.expire_later(number, now);
        }
        queues.found_below = queues.next_id;
        queues
    }
}

impl Index for Recovery {
    fn queue(&mut self, number: u32, name: &str, expires: u64) {
        self.queues.next_number = self.queues.next_number.max(number.saturating_add(1));
        let fixed = Queue::fixed().find(|queue| queue.to_string() == name);
        match fixed.or_else(|| ReplyQueue::new(name).ok().map(Queue::Reply)) {
            Some(queue) => self.queues.add_queue(number, queue, expires),
            None => {
                self.strangers.insert(number, (name.to_owned(), 0));
            }
        }
    }

    fn message(&mut self, id: u64, head: &Head) {
        self.queues.next_id = self.queues.next_id.max(id.max(head.body_id) + 1);
        let next_known = head.due == 0 || self.queues.queues.contains_key(&head.next);
        match self.queues.queues.get_mut(&head.queue) {
            Some(resting) if next_known => {
                resting.count += 1;
                resting.bytes += u64::from(head.body_bytes);
                if head.due == 0 {
                    resting.ready.push(id, head.body_bytes, None, 0);
                } else {
                    // A clock that was set back must not make a retry wait longer than its delay.
                    let due = match &resting.queue {
                        Queue::Retry(delay) => head.due.min(self.now + u64::from(delay.millis())),
                        _ => head.due,
                    };
                    resting.delayed.entry(head.next).or_default().insert((due, id), head.body_bytes);
                }
            }
            _ => {
                let stranger =
                    self.strangers.entry(head.queue).or_insert_with(|| (format!("number {}", head.queue), 0));
                stranger.1 += 1;
            }
        }
    }
}
