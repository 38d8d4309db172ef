//! Which input an id of the caller's own choosing stood for: the same idempotency key with another input is a
//! mistake worth an error, since the answer would be the first input's. Bounded: it remembers the last so many, in
//! this process. The record, which outlives both, still gives one result per id.

use schemas::JobId;
use std::collections::{HashMap, VecDeque};

/// How many ids are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// The memory.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    digests: HashMap<JobId, u64>,
    oldest_first: VecDeque<JobId>,
}

impl Keys {
    /// Whether `id` may stand for an input with this fingerprint; it does from now on.
    pub(crate) fn agrees(&mut self, id: JobId, digest: u64) -> bool {
        if let Some(known) = self.digests.get(&id) {
            return *known == digest;
        }
        if self.oldest_first.len() == REMEMBERED_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.digests.remove(&oldest);
        }
        self.digests.insert(id, digest);
        self.oldest_first.push_back(id);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_input_under_one_id_is_noticed_and_memory_is_bounded() {
        let mut keys = Keys::default();
        let id = JobId::new();
        assert!(keys.agrees(id, 1));
        assert!(keys.agrees(id, 1));
        assert!(!keys.agrees(id, 2));
        for _ in 0..REMEMBERED_MAX {
            assert!(keys.agrees(JobId::new(), 1));
        }
        assert_eq!(keys.digests.len(), REMEMBERED_MAX);
        assert_eq!(keys.oldest_first.len(), REMEMBERED_MAX);
        assert!(keys.agrees(id, 2), "the oldest is forgotten");
    }
}
