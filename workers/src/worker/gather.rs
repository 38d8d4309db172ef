//! Which jobs are quick enough to share a slot: handing one over costs as much as many of them take to run. Pure.
//!
//! What a run of a model may take is the longest seen of late, not the mean: a job that waits in a slot behind another cannot
//! go to one that falls free. Together those that share a slot should take no longer than [`TOGETHER`], which nobody
//! notices who waits for one of them.

use schemas::{JobHeader, ModelName};
use std::collections::HashMap;
use std::time::Duration;

/// How long those that share a slot may take together.
const TOGETHER: Duration = Duration::from_millis(1);
/// Most that share one.
const MOST: usize = 64;
/// A larger input takes as long to read as a quick run takes, and one that rests in the blob store much longer.
const INPUT_BYTES_MAX: u64 = 16 * 1024;
/// How much of the longest run is forgotten with each shorter one.
const FORGET: f64 = 0.05;

/// How long runs take, by model.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    longest_s: HashMap<ModelName, f64>,
}

/// Those that share a slot, so far.
pub(crate) struct Together<'a> {
    gather: &'a Gather,
    jobs: usize,
    seconds: f64,
}

impl Gather {
    /// A run of `model` took so long. There are as many models as the worker has.
    pub(crate) fn ran(&mut self, model: &ModelName, took: Duration) {
        let took = took.as_secs_f64();
        match self.longest_s.get_mut(model) {
            Some(longest) => *longest = took.max(*longest + (took - *longest) * FORGET),
            None => drop(self.longest_s.insert(model.clone(), took)),
        }
    }

    /// Nobody yet.
    pub(crate) fn together(&self) -> Together<'_> {
        Together { gather: self, jobs: 0, seconds: 0.0 }
    }
}

impl Together<'_> {
    /// Whether the job of `header` may join; it has joined then.
    pub(crate) fn joins(&mut self, header: &JobHeader) -> bool {
        let Some(longest) = self.gather.longest_s.get(&header.model) else { return false };
        let seconds = self.seconds + longest;
        let joins = header.size <= INPUT_BYTES_MAX && self.jobs < MOST && seconds <= TOGETHER.as_secs_f64();
        if joins {
            self.jobs += 1;
            self.seconds = seconds;
        }
        joins
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{ClientName, JobId, UnixMillis};

    fn header(model: &str) -> JobHeader {
        let (model, client) = (ModelName::new(model).unwrap(), ClientName::new("c").unwrap());
        JobHeader::new(JobId::new(), model, client, UnixMillis(0))
    }

    fn joined(gather: &Gather, header: &JobHeader) -> usize {
        let mut together = gather.together();
        std::iter::repeat_with(|| together.joins(header)).take_while(|joins| *joins).count()
    }

    #[test]
    fn as_many_share_a_slot_as_take_a_millisecond_together() {
        let mut gather = Gather::default();
        let (quick, tiny, slow) = (header("quick"), header("tiny"), header("slow"));
        assert_eq!(joined(&gather, &quick), 0, "what was never run may take any time");
        gather.ran(&quick.model, Duration::from_micros(90));
        gather.ran(&tiny.model, Duration::from_nanos(100));
        gather.ran(&slow.model, Duration::from_millis(5));
        assert_eq!([&quick, &tiny, &slow].map(|header| joined(&gather, header)), [11, MOST, 0]);
        let large = JobHeader { size: INPUT_BYTES_MAX + 1, ..tiny.clone() };
        assert_eq!(joined(&gather, &large), 0);
    }

    #[test]
    fn one_long_run_is_remembered_for_a_while() {
        let mut gather = Gather::default();
        let header = header("m");
        gather.ran(&header.model, Duration::from_micros(10));
        gather.ran(&header.model, Duration::from_millis(20));
        assert_eq!(joined(&gather, &header), 0);
        (0..50).for_each(|_| gather.ran(&header.model, Duration::from_micros(10)));
        assert_eq!(joined(&gather, &header), 0, "seen one run in fifty");
        (0..200).for_each(|_| gather.ran(&header.model, Duration::from_micros(10)));
        assert_eq!(joined(&gather, &header), MOST);
    }
}
