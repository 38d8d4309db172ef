//! Who starts next. Pure.
//!
//! Jobs start in the order they came, as slots allow; several that are quick may share a slot and run in turn. A *suspect* (a job that may have killed a worker) runs alone: not
//! while another runs, and nothing starts until it is settled. Alone from its start, so that nothing else can kill
//! the worker while its start is noted; and until settled, not just until its run ends, because as long as its
//! record is not written a death would be blamed on it.

use std::collections::{HashMap, VecDeque};

/// A job in hand, by the order of its arrival.
pub(crate) type Seq = u64;

#[derive(Debug, Default)]
pub(crate) struct Line {
    slots: u32,
    waiting: VecDeque<Waiting>,
    /// Those that run, each with the first of those it shares its slot with.
    running: HashMap<Seq, Seq>,
    /// The slots in use by the first of those who share one, with how many have not run yet.
    busy: HashMap<Seq, u32>,
    /// The suspect that is running, or ran and is not settled.
    alone: Option<Seq>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    seq: Seq,
    suspect: bool,
}

impl Line {
    /// How many may run at once.
    pub(crate) fn set_slots(&mut self, slots: u32) {
        self.slots = slots;
    }

    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// One more waits.
    pub(crate) fn push(&mut self, seq: Seq, suspect: bool) {
        self.waiting.push_back(Waiting { seq, suspect });
    }

    /// Takes one out of those that wait; whether it was among them.
    pub(crate) fn remove(&mut self, seq: Seq) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.seq != seq);
        self.waiting.len() < before
    }

    /// Takes out all that wait.
    pub(crate) fn clear(&mut self) -> Vec<Seq> {
        self.waiting.drain(..).map(|waiting| waiting.seq).collect()
    }

    /// The next to start in one slot, if there is one free: the first that waits, and those behind it that `joins` lets
    /// share its slot. They count as running from now on.
    pub(crate) fn next(&mut self, mut joins: impl FnMut(Seq) -> bool) -> Option<Vec<Seq>> {
        let Waiting { seq: first, suspect } = *self.waiting.front()?;
        let free = if suspect { self.busy.is_empty() && self.slots > 0 } else { self.running() < self.slots };
        if self.alone.is_some() || !free {
            return None;
        }
        self.waiting.pop_front();
        let mut together = vec![first];
        if suspect {
            self.alone = Some(first);
        } else if joins(first) {
            while let Some(next) = self.waiting.front().filter(|next| !next.suspect && joins(next.seq)) {
                together.push(next.seq);
                self.waiting.pop_front();
            }
        }
        self.running.extend(together.iter().map(|seq| (*seq, first)));
        self.busy.insert(first, count(together.len()));
        Some(together)
    }

    /// Its run is over: its slot is free, once all that share it have run.
    pub(crate) fn ran(&mut self, seq: Seq) {
        let Some(first) = self.running.remove(&seq) else { return };
        if let Some(left) = self.busy.get_mut(&first) {
            *left -= 1;
            if *left == 0 {
                self.busy.remove(&first);
            }
        }
    }

    /// It is out of our hands.
    pub(crate) fn settled(&mut self, seq: Seq) {
        self.ran(seq);
        if self.alone == Some(seq) {
            self.alone = None;
        }
    }

    /// Slots in use.
    pub(crate) fn running(&self) -> u32 {
        count(self.busy.len())
    }

    /// Those that wait for a slot, or in one behind another.
    pub(crate) fn waiting(&self) -> u32 {
        count(self.waiting.len() + self.running.len() - self.busy.len())
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn line(slots: u32, jobs: &[(Seq, bool)]) -> Line {
        let mut line = Line::default();
        line.set_slots(slots);
        jobs.iter().for_each(|(seq, suspect)| line.push(*seq, *suspect));
        line
    }

    /// The next that starts, alone in its slot.
    fn one(line: &mut Line) -> Option<Seq> {
        line.next(|_| false).map(|together| together[0])
    }

    #[test]
    fn quick_ones_share_a_slot_until_all_of_them_have_run() {
        let mut line = line(1, &[(1, false), (2, false), (3, false), (4, true), (5, false)]);
        assert_eq!(line.next(|seq| seq < 3), Some(vec![1, 2]));
        assert_eq!((line.running(), line.waiting()), (1, 4), "one of the two waits for the other");
        line.ran(1);
        assert_eq!(line.next(|_| true), None, "its slot is in use still");
        line.ran(2);
        assert_eq!(line.next(|_| true), Some(vec![3]), "a suspect shares no slot");
        line.settled(3);
        assert_eq!(line.next(|_| true), Some(vec![4]));
        line.settled(4);
        assert_eq!(line.next(|_| true), Some(vec![5]));
        line.settled(5);
        assert_eq!((line.running(), line.waiting()), (0, 0));
    }

    #[test]
    fn jobs_start_in_order_as_slots_allow() {
        let mut line = line(2, &[(1, false), (2, false), (3, false)]);
        assert_eq!((one(&mut line), one(&mut line), one(&mut line)), (Some(1), Some(2), None));
        line.ran(1);
        assert_eq!(one(&mut line), Some(3), "a slot is free when the run is over, settled or not");
        line.set_slots(1);
        line.ran(2);
        assert_eq!(one(&mut line), None);
    }

    #[test]
    fn a_suspect_waits_for_the_others_and_the_others_until_it_is_settled() {
        let mut line = line(2, &[(1, false), (2, true), (3, false)]);
        assert_eq!((one(&mut line), one(&mut line)), (Some(1), None));
        line.ran(1);
        assert_eq!((one(&mut line), one(&mut line)), (Some(2), None));
        line.ran(2);
        assert_eq!(one(&mut line), None, "its record may not be written yet");
        line.settled(2);
        assert_eq!(one(&mut line), Some(3));
    }

    #[test]
    fn one_that_leaves_the_line_holds_up_nobody() {
        let mut line = line(1, &[(1, true), (2, false)]);
        assert!(line.remove(1) && !line.remove(1));
        assert_eq!(one(&mut line), Some(2));
        line.push(3, false);
        assert_eq!(line.clear(), [3]);
        line.set_slots(0);
        line.settled(2);
        line.push(4, true);
        assert_eq!(one(&mut line), None, "no slot, no suspect");
    }

    proptest! {
        /// Whatever happens in whatever order: never more than slots, a suspect alone from start to settled, nobody lost.
        #[test]
        fn suspects_are_alone_and_nobody_starves(
            slots in 1u32..4,
            jobs in proptest::collection::vec(any::<bool>(), 0..20),
            choices in proptest::collection::vec(any::<u8>(), 200),
        ) {
            let mut line = line(slots, &[]);
            let mut jobs = jobs.into_iter().enumerate();
            let (mut running, mut ending) = (HashMap::new(), HashMap::new());
            let (mut pushed, mut settled) = (HashMap::new(), 0);
            for choice in choices.into_iter().chain(std::iter::repeat_n(3, 100)) {
                match choice % 4 {
                    0 => if let Some((seq, suspect)) = jobs.next() {
                        line.push(seq as Seq, suspect);
                        pushed.insert(seq as Seq, suspect);
                    },
                    1 => if let Some(seq) = running.keys().copied().next() {
                        running.remove(&seq);
                        ending.insert(seq, ());
                        line.ran(seq);
                    },
                    _ => if let Some(seq) = ending.keys().chain(running.keys()).copied().next() {
                        ending.remove(&seq);
                        running.remove(&seq);
                        settled += 1;
                        line.settled(seq);
                    },
                }
                while let Some(seq) = one(&mut line) {
                    let in_progress = |(seq, ()): (&Seq, &())| pushed[seq];
                    prop_assert!(!running.iter().chain(&ending).any(in_progress), "a suspect is alone until settled");
                    prop_assert!(!pushed[&seq] || running.is_empty(), "and nothing runs when it starts");
                    running.insert(seq, ());
                    prop_assert!(running.len() <= slots as usize);
                }
                prop_assert_eq!(line.running() as usize, running.len());
            }
            prop_assert_eq!(settled, pushed.len(), "everyone got through");
        }
    }
}
