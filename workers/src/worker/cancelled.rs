//! The ids of jobs that were cancelled of late. A hint, never the truth, which is the record: the set is bounded, and
//! one that fell out of it is found out when its record is written.

use schemas::JobId;
use std::collections::{HashSet, VecDeque};

/// Most ids remembered.
const CANCELLED_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Cancelled {
    ids: HashSet<JobId>,
    order: VecDeque<JobId>,
}

impl Cancelled {
    pub(crate) fn insert(&mut self, id: JobId) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > CANCELLED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    pub(crate) fn contains(&self, id: &JobId) -> bool {
        self.ids.contains(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_no_more() {
        let mut cancelled = Cancelled::default();
        let ids: Vec<JobId> = (0..=CANCELLED_MAX).map(|_| JobId::new()).collect();
        for id in ids.iter().chain(&ids[CANCELLED_MAX..]) {
            cancelled.insert(*id);
        }
        assert!(!cancelled.contains(&ids[0]) && ids[1..].iter().all(|id| cancelled.contains(id)));
        assert_eq!((cancelled.ids.len(), cancelled.order.len()), (CANCELLED_MAX, CANCELLED_MAX));
    }
}
