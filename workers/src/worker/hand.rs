//! What a worker has in hand: every delivery it has not settled, and the tasks that work on their jobs.

use super::ending::Output;
use super::line::Seq;
use super::services::Job;
use super::settle::End;
use broker::{Delivery, Settlement};
use bytes::Bytes;
use futures_util::FutureExt;
use schemas::lifecycle::{Event as Step, Stage, transition};
use schemas::{Failure, FailureKind, JobHeader, JobId};
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

/// A job in hand.
pub(crate) struct Held {
    pub(crate) job: Arc<Job>,
    /// The delivery it came by, and copies of it that came later.
    deliveries: Vec<Delivery>,
    stage: Stage,
    since: Instant,
    /// When its end began.
    ending: Option<Instant>,
}

/// What a job took, in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// From its delivery.
    pub(crate) in_hand: Duration,
    /// From when its end began; none if it had none here.
    pub(crate) ending: Option<Duration>,
}

impl Held {
    /// Its end begins, with this step if it is one.
    pub(crate) fn ending(&mut self, step: Option<Step>) {
        self.ending = Some(Instant::now());
        if let Some(step) = step {
            self.step(step);
        }
    }

    /// Takes the job a step further. One that the chart does not have is a fault of ours: loud in tests, counted in
    /// production, where the job goes on.
    pub(crate) fn step(&mut self, step: Step) {
        match transition(self.stage, step) {
            Ok(stage) => self.stage = stage,
            Err(illegal) => {
                debug_assert!(false, "{illegal}");
                metrics::counter!("straightline_illegal_steps_total").increment(1);
                tracing::error!(job.id = %self.job.header.id, error = %illegal, "illegal step");
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct Hand {
    held: HashMap<Seq, Held>,
    /// Messages that are no jobs.
    strays: HashMap<Seq, Box<Delivery>>,
    next: Seq,
    checks: JoinSet<(Seq, Option<Bytes>)>,
    runs: JoinSet<Vec<(Seq, Result<Output, Failure>)>>,
    ends: JoinSet<Vec<(Seq, End)>>,
}

/// A task has done its work.
pub(crate) enum Done {
    Checked(Seq, Option<Bytes>),
    /// Those that shared a slot.
    Ran(Vec<(Seq, Result<Output, Failure>)>),
    /// Those that ended together.
    Ended(Vec<(Seq, End)>),
}

impl Hand {
    pub(crate) fn hold(&mut self, job: Arc<Job>, delivery: Box<Delivery>) -> Seq {
        let seq = self.number();
        self.held.insert(
            seq,
            Held {
                job,
                deliveries: vec![*delivery],
                stage: Stage::Placed,
                since: Instant::now(),
                ending: None,
            },
        );
        seq
    }

    pub(crate) fn hold_stray(&mut self, delivery: Box<Delivery>) -> Seq {
        let seq = self.number();
        self.strays.insert(seq, delivery);
        seq
    }

    fn number(&mut self) -> Seq {
        self.next += 1;
        self.next
    }

    pub(crate) fn get_mut(&mut self, seq: Seq) -> Option<&mut Held> {
        self.held.get_mut(&seq)
    }

    pub(crate) fn get(&self, seq: Seq) -> Option<&Held> {
        self.held.get(&seq)
    }

    pub(crate) fn job(&self, seq: Seq) -> Option<Arc<Job>> {
        self.held.get(&seq).map(|held| Arc::clone(&held.job))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.strays.is_empty()
    }

    /// The jobs of this id: several if their clients differ, or their attempts.
    pub(crate) fn with_id(&self, id: JobId) -> Vec<(Seq, Arc<Job>)> {
        let found = self.held.iter().filter(|(_, held)| held.job.header.id == id);
        found.map(|(seq, held)| (*seq, Arc::clone(&held.job))).collect()
    }

    /// Keeps `delivery` beside the one it is a copy of, if that is in hand; gives it back if not.
    pub(crate) fn keep_copy(&mut self, header: &JobHeader, delivery: Box<Delivery>) -> Option<Box<Delivery>> {
        let twin = self.held.values_mut().find(|held| {
            let held = &held.job.header;
            (held.id, held.attempt, &held.reply_to) == (header.id, header.attempt, &header.reply_to)
        });
        match twin {
            Some(held) => {
                held.deliveries.push(*delivery);
                None
            }
            None => Some(delivery),
        }
    }

    /// Settles what came by `seq`: the one place where deliveries are settled. Says what its job took.
    pub(crate) fn settle(&mut self, seq: Seq, settlement: Settlement) -> Option<Spent> {
        let held = self.held.remove(&seq);
        let spent = held.as_ref().map(|held| Spent {
            in_hand: held.since.elapsed(),
            ending: held.ending.map(|ending| ending.elapsed()),
        });
        let deliveries = held.into_iter().flat_map(|held| held.deliveries);
        for delivery in deliveries.chain(self.strays.remove(&seq).map(|stray| *stray)) {
            match settlement {
                Settlement::Ack => delivery.ack(),
                Settlement::GiveBack => delivery.give_back(),
            }
        }
        spent
    }

    /// Stops every task and gives everything back; how many deliveries that was.
    pub(crate) fn give_everything_back(&mut self) -> usize {
        self.checks.abort_all();
        self.runs.abort_all();
        self.ends.abort_all();
        let held: Vec<Seq> = self.held.keys().chain(self.strays.keys()).copied().collect();
        for seq in &held {
            self.settle(*seq, Settlement::GiveBack);
        }
        held.len()
    }

    pub(crate) fn checks(&self) -> u32 {
        u32::try_from(self.checks.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn check(&mut self, seq: Seq, check: impl Future<Output = Option<Bytes>> + Send + 'static) {
        self.checks
            .spawn(async move { (seq, AssertUnwindSafe(check).catch_unwind().await.unwrap_or_default()) });
    }

    /// `run` gives an outcome for each of `seqs`.
    pub(crate) fn run(
        &mut self,
        seqs: Vec<Seq>,
        run: impl Future<Output = Vec<Result<Output, Failure>>> + Send + 'static,
    ) {
        let fault = || Err(Failure::new(FailureKind::Internal, "the worker's own code panicked"));
        self.runs.spawn(async move { each(seqs, AssertUnwindSafe(run).catch_unwind().await, fault) });
    }

    /// `end` gives a settlement.
    pub(crate) fn end(&mut self, seq: Seq, end: impl Future<Output = Settlement> + Send + 'static) {
        self.end_together(vec![seq], async move { vec![End::Settled(end.await)] });
    }

    /// `end` says for each of `seqs` what became of it.
    pub(crate) fn end_together(
        &mut self,
        seqs: Vec<Seq>,
        end: impl Future<Output = Vec<End>> + Send + 'static,
    ) {
        let fault = || End::Settled(Settlement::GiveBack);
        self.ends.spawn(async move { each(seqs, AssertUnwindSafe(end).catch_unwind().await, fault) });
    }

    /// Waits until a task is done; for ever if there is none. Cancel-safe.
    pub(crate) async fn done(&mut self) -> Done {
        tokio::select! {
            Some(outcomes) = self.runs.join_next().map(joined) => Done::Ran(outcomes),
            Some(ended) = self.ends.join_next().map(joined) => Done::Ended(ended),
            Some((seq, record)) = self.checks.join_next().map(joined) => Done::Checked(seq, record),
            else => std::future::pending().await,
        }
    }
}

/// What a task gave for each; `fault` for those it panicked over or forgot.
fn each<T, P>(seqs: Vec<Seq>, given: Result<Vec<T>, P>, fault: impl Fn() -> T) -> Vec<(Seq, T)> {
    let mut given = given.unwrap_or_else(|_| Vec::new()).into_iter();
    seqs.into_iter().map(|seq| (seq, given.next().unwrap_or_else(&fault))).collect()
}

/// What a task gave. Panics are caught inside the tasks, and they are only aborted when nobody asks any more.
fn joined<T>(joined: Option<Result<T, JoinError>>) -> Option<T> {
    joined.and_then(Result::ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use broker::{Message, Settle};
    use schemas::{ClientName, ModelName, UnixMillis};
    use std::sync::Mutex;

    /// Remembers how each delivery was settled.
    #[derive(Clone, Default)]
    struct Ledger(Arc<Mutex<Vec<(u32, Settlement)>>>);

    struct Entry(Ledger, u32);

    impl Settle for Entry {
        fn settle(self: Box<Self>, settlement: Settlement) {
            self.0.0.lock().unwrap().push((self.1, settlement));
        }
    }

    impl Ledger {
        fn delivery(&self, number: u32) -> Box<Delivery> {
            let settle = Box::new(Entry(self.clone(), number));
            Box::new(Delivery::new(Message::default(), number > 1, 0, None, settle))
        }

        fn take(&self) -> Vec<(u32, Settlement)> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    fn job() -> Arc<Job> {
        let (model, client) = (ModelName::new("m").unwrap(), ClientName::new("c").unwrap());
        let header = JobHeader::new(JobId::new(), model, client, UnixMillis(0));
        Arc::new(Job { header, message: Message::default(), suspect: false, redelivered: false })
    }

    #[test]
    fn a_copy_of_a_job_in_hand_is_settled_with_it_and_nothing_twice() {
        let (ledger, mut hand, job) = (Ledger::default(), Hand::default(), job());
        let seq = hand.hold(Arc::clone(&job), ledger.delivery(1));
        assert!(hand.keep_copy(&job.header, ledger.delivery(2)).is_none());
        let next_attempt = JobHeader { attempt: 2, ..job.header.clone() };
        let other = hand.keep_copy(&next_attempt, ledger.delivery(3)).expect("another attempt is no copy");
        assert_eq!(ledger.take(), []);
        hand.settle(seq, Settlement::Ack);
        hand.settle(seq, Settlement::GiveBack);
        assert_eq!(ledger.take(), [(1, Settlement::Ack), (2, Settlement::Ack)]);
        assert!(hand.is_empty());
        other.give_back();
    }

    #[tokio::test]
    async fn everything_goes_back_and_no_task_goes_on() {
        let (ledger, mut hand) = (Ledger::default(), Hand::default());
        let seq = hand.hold(job(), ledger.delivery(1));
        hand.hold_stray(ledger.delivery(1));
        hand.end(seq, async { Settlement::Ack });
        assert_eq!(hand.give_everything_back(), 2);
        assert_eq!(ledger.take(), [(1, Settlement::GiveBack); 2]);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_a_failure_of_its_job() {
        let mut hand = Hand::default();
        hand.run(vec![7, 6], async { panic!("a fault in the worker") });
        let Done::Ran(ran) = hand.done().await else { panic!("not what ran") };
        assert!(ran.iter().map(|(seq, _)| *seq).eq([7, 6]), "a failure of every job that it had");
        assert!(ran.iter().all(|(_, end)| end.as_ref().unwrap_err().kind == FailureKind::Internal));
        hand.end(8, async { panic!("a fault in the worker") });
        let Done::Ended(ended) = hand.done().await else { panic!("not what ended") };
        assert!(matches!(ended[..], [(8, End::Settled(Settlement::GiveBack))]));
        hand.check(9, async { panic!("a fault in the worker") });
        assert!(matches!(hand.done().await, Done::Checked(9, None)));
    }
}
