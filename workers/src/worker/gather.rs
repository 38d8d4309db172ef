//! Which jobs are quick enough to share a slot: handing one over costs as much as many of them take to run. Pure.
//!
//! What a run of a model may take is the longest seen of late, not the mean: a job that waits in a slot behind another cannot
//! go to one that falls free. Together those that share a slot should take no longer than [`TOGETHER`], which nobody
//! notices who waits for one of them. A job that has failed before shares with nobody: it may be the one that hangs.

use super::services::Job;
use schemas::ModelName;
use std::collections::HashMap;
use std::time::Duration;

/// How long those that share a slot may take together.
const TOGETHER: Duration = Duration::from_millis(1);
/// Most that share one.
const MOST: usize = 64;
/// A larger input takes as long to read as a quick run takes.
const INPUT_BYTES_MAX: u64 = 16 * 1024;
/// How much of the longest run is forgotten with each shorter one.
const FORGET: f64 = 0.05;
/// What a run that outlived its limit counts as, whatever the limit: hundreds of good ones make up for it.
const HUNG: Duration = Duration::from_secs(60);

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

    /// A run of `model` outlived its limit.
    pub(crate) fn hung(&mut self, model: &ModelName) {
        self.ran(model, HUNG);
    }

    /// Nobody yet.
    pub(crate) fn together(&self) -> Together<'_> {
        Together { gather: self, jobs: 0, seconds: 0.0 }
    }
}

impl Together<'_> {
    /// Whether `job` may join; it has joined then.
    pub(crate) fn joins(&mut self, job: &Job) -> bool {
        let (header, body_bytes) = (&job.header, job.message.body.len() as u64);
        let Some(longest) = self.gather.longest_s.get(&header.model) else { return false };
        let seconds = self.seconds + longest;
        // The size of an input that rests in the blob store is not that of its message.
        let inline = header.size == body_bytes && body_bytes <= INPUT_BYTES_MAX;
        let joins =
            inline && header.history.is_empty() && self.jobs < MOST && seconds <= TOGETHER.as_secs_f64();
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
    use broker::Message;
    use schemas::{Attempt, ClientName, Failure, FailureKind, JobHeader, JobId, UnixMillis};

    fn job(model: &str) -> Job {
        let (model, client) = (ModelName::new(model).unwrap(), ClientName::new("c").unwrap());
        let header = JobHeader::new(JobId::new(), model, client, UnixMillis(0));
        Job { header, message: Message::default(), suspect: false, redelivered: false }
    }

    fn joined(gather: &Gather, job: &Job) -> usize {
        let mut together = gather.together();
        std::iter::repeat_with(|| together.joins(job)).take_while(|joins| *joins).count()
    }

    #[test]
    fn as_many_share_a_slot_as_take_a_millisecond_together() {
        let mut gather = Gather::default();
        let (quick, mut tiny, slow) = (job("quick"), job("tiny"), job("slow"));
        assert_eq!(joined(&gather, &quick), 0, "what was never run may take any time");
        gather.ran(&quick.header.model, Duration::from_micros(90));
        gather.ran(&tiny.header.model, Duration::from_nanos(100));
        gather.ran(&slow.header.model, Duration::from_millis(5));
        assert_eq!([&quick, &tiny, &slow].map(|job| joined(&gather, job)), [11, MOST, 0]);

        tiny.header.size = 100;
        assert_eq!(joined(&gather, &tiny), 0, "its input is elsewhere");
        tiny.message.body = vec![0; 100].into();
        assert_eq!(joined(&gather, &tiny), MOST);
        let failure = Failure::new(FailureKind::Timeout, "x");
        let (number, at, worker) = (1, UnixMillis(0), "w".to_owned());
        tiny.header.history.push(Attempt { number, lane: None, worker, at, failure });
        assert_eq!(joined(&gather, &tiny), 0, "it failed before");
    }

    #[test]
    fn one_long_run_is_remembered_for_a_while() {
        let mut gather = Gather::default();
        let job = job("m");
        let runs = |gather: &mut Gather, runs: u32| {
            (0..runs).for_each(|_| gather.ran(&job.header.model, Duration::from_micros(10)));
        };
        runs(&mut gather, 1);
        gather.ran(&job.header.model, Duration::from_millis(20));
        assert_eq!(joined(&gather, &job), 0);
        runs(&mut gather, 50);
        assert_eq!(joined(&gather, &job), 0, "seen one run in fifty");
        runs(&mut gather, 200);
        assert_eq!(joined(&gather, &job), MOST);
        gather.hung(&job.header.model);
        runs(&mut gather, 200);
        assert_eq!(joined(&gather, &job), 0);
    }
}
