//! Who starts next. Pure.
//!
//! Jobs start in the order they came, as slots allow. A *suspect* (a job that may have killed a worker) runs alone: not
//! while another runs, and nothing starts until it is settled. Alone from its start, so that nothing else can kill
//! the worker while its start is noted; and until settled, not just until its run ends, because as long as its
//! record is not written a death would be blamed on it.

use std::collections::{HashSet, VecDeque};

/// A job in hand, by the order of its arrival.
pub(crate) type Seq = u64;

#[derive(Debug, Default)]
pub(crate) struct Line {
    slots: u32,
    waiting: VecDeque<Waiting>,
    running: HashSet<Seq>,
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

    /// The next to start, if one may; it counts as running from now on.
    pub(crate) fn next(&mut self) -> Option<Seq> {
        let Waiting { seq, suspect } = *self.waiting.front()?;
        let free =
            if suspect { self.running.is_empty() && self.slots > 0 } else { self.running() < self.slots };
        if self.alone.is_some() || !free {
            return None;
        }
        self.waiting.pop_front();
        self.running.insert(seq);
        if suspect {
            self.alone = Some(seq);
        }
        Some(seq)
    }

    /// Its run is over: its slot is free.
    pub(crate) fn ran(&mut self, seq: Seq) {
        self.running.remove(&seq);
    }

    /// It is out of our hands.
    pub(crate) fn settled(&mut self, seq: Seq) {
        self.running.remove(&seq);
        if self.alone == Some(seq) {
            self.alone = None;
        }
    }

    pub(crate) fn running(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn waiting(&self) -> u32 {
        u32::try_from(self.waiting.len()).unwrap_or(u32::MAX)
    }
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

    #[test]
    fn jobs_start_in_order_as_slots_allow() {
        let mut line = line(2, &[(1, false), (2, false), (3, false)]);
        assert_eq!((line.next(), line.next(), line.next()), (Some(1), Some(2), None));
        line.ran(1);
        assert_eq!(line.next(), Some(3), "a slot is free when the run is over, settled or not");
        line.set_slots(1);
        line.ran(2);
        assert_eq!(line.next(), None);
    }

    #[test]
    fn a_suspect_waits_for_the_others_and_the_others_until_it_is_settled() {
        let mut line = line(2, &[(1, false), (2, true), (3, false)]);
        assert_eq!((line.next(), line.next()), (Some(1), None));
        line.ran(1);
        assert_eq!((line.next(), line.next()), (Some(2), None));
        line.ran(2);
        assert_eq!(line.next(), None, "its record may not be written yet");
        line.settled(2);
        assert_eq!(line.next(), Some(3));
    }

    #[test]
    fn one_that_leaves_the_line_holds_up_nobody() {
        let mut line = line(1, &[(1, true), (2, false)]);
        assert!(line.remove(1) && !line.remove(1));
        assert_eq!(line.next(), Some(2));
        line.push(3, false);
        assert_eq!(line.clear(), [3]);
        line.set_slots(0);
        line.settled(2);
        line.push(4, true);
        assert_eq!(line.next(), None, "no slot, no suspect");
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
                while let Some(seq) = line.next() {
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
