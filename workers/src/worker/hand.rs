//! What a worker has in hand: every delivery it has not settled, and the tasks that work on their jobs.

use super::ending::Output;
use super::line::Seq;
use super::services::Job;
use broker::{Delivery, Settlement};
use bytes::Bytes;
use futures_util::FutureExt;
use schemas::lifecycle::{Event as Step, Stage, transition};
use schemas::{Failure, FailureKind, JobHeader, JobId};
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::task::{JoinError, JoinSet};

/// A job in hand.
pub(crate) struct Held {
    pub(crate) job: Arc<Job>,
    /// The delivery it came by, and copies of it that came later.
    deliveries: Vec<Box<Delivery>>,
    stage: Stage,
}

impl Held {
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
    runs: JoinSet<(Seq, Result<Output, Failure>)>,
    ends: JoinSet<(Seq, Settlement)>,
}

/// A task has done its work.
pub(crate) enum Done {
    Checked(Seq, Option<Bytes>),
    Ran(Seq, Result<Output, Failure>),
    Settled(Seq, Settlement),
}

impl Hand {
    pub(crate) fn hold(&mut self, job: Arc<Job>, delivery: Box<Delivery>) -> Seq {
        let seq = self.number();
        self.held.insert(seq, Held { job, deliveries: vec![delivery], stage: Stage::Placed });
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
                held.deliveries.push(delivery);
                None
            }
            None => Some(delivery),
        }
    }

    /// Settles what came by `seq`. The one place where deliveries are settled.
    pub(crate) fn settle(&mut self, seq: Seq, settlement: Settlement) {
        let held = self.held.remove(&seq).into_iter().flat_map(|held| held.deliveries);
        for delivery in held.chain(self.strays.remove(&seq)) {
            match settlement {
                Settlement::Ack => delivery.ack(),
                Settlement::GiveBack => delivery.give_back(),
            }
        }
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

    pub(crate) fn run(
        &mut self,
        seq: Seq,
        run: impl Future<Output = Result<Output, Failure>> + Send + 'static,
    ) {
        let fault = |_| Err(Failure::new(FailureKind::Internal, "the worker's own code panicked"));
        self.runs
            .spawn(async move { (seq, AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(fault)) });
    }

    pub(crate) fn end(&mut self, seq: Seq, end: impl Future<Output = Settlement> + Send + 'static) {
        let fault = |_| Settlement::GiveBack;
        self.ends
            .spawn(async move { (seq, AssertUnwindSafe(end).catch_unwind().await.unwrap_or_else(fault)) });
    }

    /// Waits until a task is done; for ever if there is none. Cancel-safe.
    pub(crate) async fn done(&mut self) -> Done {
        tokio::select! {
            Some((seq, outcome)) = self.runs.join_next().map(joined) => Done::Ran(seq, outcome),
            Some((seq, settlement)) = self.ends.join_next().map(joined) => Done::Settled(seq, settlement),
            Some((seq, record)) = self.checks.join_next().map(joined) => Done::Checked(seq, record),
            else => std::future::pending().await,
        }
    }
}

/// What a task gave. Panics are caught inside the tasks, and they are only aborted when nobody asks any more.
fn joined<T>(joined: Option<Result<T, JoinError>>) -> Option<T> {
    joined.and_then(Result::ok)
}
