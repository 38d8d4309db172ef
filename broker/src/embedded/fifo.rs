//! The messages of one queue that wait to be handed out, in the order of their ids.
//!
//! A message is *hot* while its content is in memory and *cold* while only the file has it. What is kept hot is the
//! front of the queue, because that is handed out next; a cold message costs a few dozen bytes. What is hot stays within
//! the bytes that the caller allows, but for the one message at the front, which must be read to be handed out.

use super::record::Content;
use std::collections::{BTreeMap, VecDeque};

/// Cold messages this far behind the front are asked for, so that a consumer rarely waits for the file.
const AHEAD: usize = 1_024;
/// Most messages read at once.
const LOAD_MESSAGES_MAX: usize = 4 * AHEAD;
/// Most bytes of bodies read at once; one message may be larger.
const LOAD_BYTES_MAX: u64 = 8 << 20;
/// What a hot message costs beyond its body.
const HOT_OVERHEAD_BYTES: u64 = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Fifo {
    /// Those that came in the order of their ids and never left.
    in_order: VecDeque<Slot>,
    /// The others: those that came back, and the few whose write was overtaken.
    apart: BTreeMap<u64, Apart>,
    /// What the cold messages take that have been asked for and are not here yet.
    loading: Option<u64>,
    hot_bytes: u64,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    size: u32,
    content: Option<Box<Content>>,
}

#[derive(Debug)]
struct Apart {
    size: u32,
    returns: u32,
    content: Option<Box<Content>>,
}

/// A message on its way out.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: u64,
    pub(super) size: u32,
    /// How often it came back.
    pub(super) returns: u32,
    pub(super) content: Box<Content>,
}

/// What is at the front.
#[derive(Debug)]
pub(super) enum Front {
    Ready(Item),
    /// Only messages that must be read from the file first.
    Cold,
    Empty,
}

impl Fifo {
    pub(super) fn len(&self) -> usize {
        self.in_order.len() + self.apart.len()
    }

    /// Bytes of memory that content takes, or is about to.
    pub(super) fn hot_bytes(&self) -> u64 {
        self.hot_bytes + self.loading.unwrap_or(0)
    }

    /// Every message, in no particular order.
    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.in_order.iter().map(|slot| slot.id).chain(self.apart.keys().copied())
    }

    /// Adds a message at its place. Its content is kept if `hot_bytes_max` allows, and if everything before it is hot:
    /// behind a cold message it would only take memory for longer.
    pub(super) fn push(&mut self, id: u64, size: u32, content: Option<Box<Content>>, hot_bytes_max: u64) {
        let front_is_hot = self.in_order.back().is_none_or(|slot| slot.content.is_some());
        let fits = self.hot_bytes() + hot_cost(size) <= hot_bytes_max;
        let content = content.filter(|_| front_is_hot && fits);
        self.hot_bytes += if content.is_some() { hot_cost(size) } else { 0 };
        if self.in_order.back().is_some_and(|back| back.id > id) {
            self.apart.insert(id, Apart { size, returns: 0, content });
        } else {
            self.in_order.push_back(Slot { id, size, content });
        }
    }

    /// Puts a message back at its old place, without its content.
    pub(super) fn put_back(&mut self, id: u64, size: u32, returns: u32) {
        self.apart.insert(id, Apart { size, returns, content: None });
    }

    /// Takes the message at the front. While one that came back is cold, those behind it are not held up by it.
    pub(super) fn take(&mut self) -> Front {
        let front = self.in_order.front().map(|slot| slot.id);
        let apart = self
            .apart
            .first_entry()
            .filter(|entry| entry.get().content.is_some() && front.is_none_or(|id| *entry.key() < id));
        let item = if let Some(entry) = apart {
            let (id, Apart { size, returns, content }) = entry.remove_entry();
            content.map(|content| Item { id, size, returns, content })
        } else {
            let hot = self.in_order.pop_front_if(|slot| slot.content.is_some());
            hot.and_then(|Slot { id, size, content }| Some(Item { id, size, returns: 0, content: content? }))
        };
        match item {
            Some(item) => {
                self.hot_bytes -= hot_cost(item.size);
                Front::Ready(item)
            }
            None if self.len() > 0 => Front::Cold,
            None => Front::Empty,
        }
    }

    /// Cold messages that should be read now, if there are any and none have been asked for already: the one at the
    /// front, and those behind it for which `hot_bytes_max` leaves room.
    pub(super) fn wants(&mut self, hot_bytes_max: u64) -> Option<Vec<u64>> {
        let room = hot_bytes_max.saturating_sub(self.hot_bytes);
        let needed = self.front_is_cold();
        // Not one read for every message that is handed out.
        if self.loading.is_some() || !(needed || (self.cold_ahead() && room >= hot_bytes_max / 4)) {
            return None;
        }
        let (mut ids, mut bytes) = (Vec::new(), 0);
        for (id, size) in self.cold().take(LOAD_MESSAGES_MAX) {
            let with = bytes + hot_cost(size);
            if with > room.min(LOAD_BYTES_MAX) && !(needed && ids.is_empty()) {
                break;
            }
            ids.push(id);
            bytes = with;
        }
        if ids.is_empty() {
            return None;
        }
        self.loading = Some(bytes);
        Some(ids)
    }

    /// What was asked for is here: content for some messages, and others that cannot be read and are not handed out.
    /// How many became hot, and the others with their sizes.
    pub(super) fn fill(&mut self, contents: Vec<(u64, Option<Content>)>) -> (usize, Vec<(u64, u32)>) {
        self.loading = None;
        let (mut filled, mut unreadable) = (0, Vec::new());
        for (id, content) in contents {
            match content {
                Some(content) => filled += usize::from(self.warm(id, Box::new(content))),
                None => unreadable.extend(self.discard(id).map(|size| (id, size))),
            }
        }
        (filled, unreadable)
    }

    fn front_is_cold(&self) -> bool {
        let slot = self.in_order.front().map(|slot| (slot.id, slot.content.is_none()));
        let apart = self.apart.first_key_value().map(|(id, apart)| (*id, apart.content.is_none()));
        slot.into_iter().chain(apart).min().is_some_and(|(_, cold)| cold)
    }

    /// Whether something is cold that will be needed soon.
    fn cold_ahead(&self) -> bool {
        let slots = [0, AHEAD].into_iter().filter_map(|n| self.in_order.get(n));
        let apart = self.apart.first_key_value().map(|(_, apart)| &apart.content);
        slots.map(|slot| &slot.content).chain(apart).any(Option::is_none)
    }

    /// Cold messages near the front and their sizes, in the order of their ids.
    fn cold(&self) -> impl Iterator<Item = (u64, u32)> {
        let apart = self.apart.iter().filter(|(_, apart)| apart.content.is_none());
        let mut apart = apart.map(|(id, apart)| (*id, apart.size)).peekable();
        let slots = self.in_order.iter().take(LOAD_MESSAGES_MAX).filter(|slot| slot.content.is_none());
        let mut slots = slots.map(|slot| (slot.id, slot.size)).peekable();
        std::iter::from_fn(move || match (apart.peek(), slots.peek()) {
            (Some((apart_id, _)), Some((id, _))) if id < apart_id => slots.next(),
            (Some(_), _) => apart.next(),
            (None, _) => slots.next(),
        })
    }

    fn warm(&mut self, id: u64, content: Box<Content>) -> bool {
        let (place, size) = if let Some(apart) = self.apart.get_mut(&id) {
            (&mut apart.content, apart.size)
        } else if let Ok(at) = self.in_order.binary_search_by_key(&id, |slot| slot.id) {
            let slot = &mut self.in_order[at];
            (&mut slot.content, slot.size)
        } else {
            return false;
        };
        if place.replace(content).is_none() {
            self.hot_bytes += hot_cost(size);
        }
        true
    }

    /// Forgets a message; its size.
    fn discard(&mut self, id: u64) -> Option<u32> {
        if let Some(apart) = self.apart.remove(&id) {
            return Some(apart.size);
        }
        let at = self.in_order.binary_search_by_key(&id, |slot| slot.id).ok()?;
        self.in_order.remove(at).map(|slot| slot.size)
    }
}

fn hot_cost(size: u32) -> u64 {
    u64::from(size) + HOT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: u64 = u64::MAX;

    fn hot() -> Option<Box<Content>> {
        Some(Box::default())
    }

    fn take(fifo: &mut Fifo) -> Option<(u64, u32)> {
        match fifo.take() {
            Front::Ready(item) => Some((item.id, item.returns)),
            Front::Cold => panic!("cold"),
            Front::Empty => None,
        }
    }

    fn fill(fifo: &mut Fifo, ids: Vec<u64>) -> usize {
        fifo.fill(ids.into_iter().map(|id| (id, Some(Content::default()))).collect()).0
    }

    #[test]
    fn what_comes_back_or_comes_late_goes_to_its_place() {
        let mut fifo = Fifo::default();
        for id in [2, 3, 5, 4] {
            fifo.push(id, 1, hot(), PLENTY);
        }
        assert_eq!((take(&mut fifo), take(&mut fifo)), (Some((2, 0)), Some((3, 0))));
        fifo.put_back(2, 1, 1);
        fifo.put_back(3, 1, 1);
        assert_eq!(fifo.wants(PLENTY), Some(vec![2, 3]), "what came back has no content");
        assert_eq!(fifo.wants(PLENTY), None, "asked for once");
        assert_eq!(take(&mut fifo), Some((5, 0)), "and holds up nothing");
        assert_eq!(fill(&mut fifo, vec![2, 3]), 2);
        let rest: Vec<_> = std::iter::from_fn(|| take(&mut fifo)).collect();
        assert_eq!(rest, [(2, 1), (3, 1), (4, 0)]);
        assert_eq!((fifo.len(), fifo.hot_bytes()), (0, 0));
    }

    #[test]
    fn the_front_is_hot_within_the_budget_and_the_rest_is_read_before_it_is_needed() {
        // Few large ones, of which the budget ends the reading ahead, and many small ones.
        for (size, fit, many) in [(1 << 20, 16, 300), (10, 3 * AHEAD as u64, 3 * LOAD_MESSAGES_MAX as u64)] {
            let mut fifo = Fifo::default();
            let budget = fit * hot_cost(size);
            for id in 0..many {
                fifo.push(id, size, hot(), budget);
            }
            assert_eq!(fifo.hot_bytes(), budget);
            let mut reads = 0;
            for id in 0..many {
                assert_eq!(take(&mut fifo), Some((id, 0)), "{size}");
                if let Some(ids) = fifo.wants(budget) {
                    reads += 1;
                    assert!(ids.len() <= LOAD_MESSAGES_MAX && ids[0] > id, "{ids:?}");
                    assert!(fifo.hot_bytes() <= budget, "{} bytes asked for", fifo.hot_bytes());
                    fill(&mut fifo, ids);
                }
                assert!(fifo.hot_bytes() <= budget, "{} bytes hot", fifo.hot_bytes());
            }
            assert!(matches!(fifo.take(), Front::Empty));
            assert_eq!(fifo.hot_bytes(), 0);
            assert!(reads <= 4 * many / fit + 1, "{reads} reads of {many} messages");
        }
    }

    #[test]
    fn without_any_room_the_front_is_read_and_nothing_else() {
        let mut fifo = Fifo::default();
        for id in [2, 4, 6, 5] {
            fifo.push(id, 1 << 20, None, 0);
        }
        for id in [2, 4, 5, 6] {
            assert!(matches!(fifo.take(), Front::Cold));
            assert_eq!(fifo.wants(0), Some(vec![id]), "the oldest first, wherever it is kept");
            assert_eq!(fifo.hot_bytes(), hot_cost(1 << 20));
            fill(&mut fifo, vec![id]);
            assert_eq!(fifo.wants(0), None);
            assert_eq!(take(&mut fifo), Some((id, 0)));
        }
        assert_eq!(fifo.hot_bytes(), 0);
    }

    #[test]
    fn nothing_is_kept_hot_behind_a_cold_message() {
        let mut fifo = Fifo::default();
        fifo.push(1, 10, hot(), 0);
        fifo.push(2, 10, hot(), PLENTY);
        assert_eq!(fifo.hot_bytes(), 0);
        assert_eq!(fifo.wants(PLENTY), Some(vec![1, 2]));
    }

    #[test]
    fn what_is_read_at_once_is_bounded_in_bytes_and_is_at_least_one() {
        let mut fifo = Fifo::default();
        for id in 0..10 {
            fifo.push(id, LOAD_BYTES_MAX as u32 / 3, None, 0);
        }
        assert_eq!(fifo.wants(PLENTY).unwrap().len(), 2);
        let mut fifo = Fifo::default();
        fifo.push(7, u32::MAX, None, 0);
        assert_eq!(fifo.wants(PLENTY), Some(vec![7]));
    }

    #[test]
    fn a_message_that_cannot_be_read_is_passed_over() {
        let mut fifo = Fifo::default();
        for id in 1..=3 {
            fifo.push(id, 10 + id as u32, None, 0);
        }
        assert_eq!(fifo.wants(PLENTY), Some(vec![1, 2, 3]));
        let filled = fifo.fill(vec![(1, None), (2, Some(Content::default())), (3, None), (9, None)]);
        assert_eq!(filled, (1, vec![(1, 11), (3, 13)]));
        assert_eq!((take(&mut fifo), take(&mut fifo)), (Some((2, 0)), None));
        assert_eq!(fifo.hot_bytes(), 0);
    }
}
