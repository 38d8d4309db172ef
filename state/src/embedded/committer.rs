//! The thread that writes the file.
//!
//! It takes all jobs that wait, applies them in order in one transaction, commits, and only then answers: while one
//! commit waits for the disk the next batch gathers, so the busier, the larger. A job sees what the jobs before it
//! wrote. Expired entries are swept along, a bounded step at a time.
//!
//! When the disk fails, every call fails with the reason, and the file is opened anew until it works again.
//! Invariant: a job's room in the budget is held until it is answered, so what waits for the disk is bounded.

use super::file::{StoreFile, damaged};
use super::store::Tables;
use crate::StateError;
use schemas::UnixMillis;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::OwnedSemaphorePermit;

/// Most jobs in one transaction.
const BATCH_JOBS_MAX: usize = 1024;
/// Most records, and most notes, that one transaction sweeps.
const SWEEP_STEP: usize = 2_000;
/// How often expired entries are looked for once all are gone.
const SWEEP_PAUSE: Duration = Duration::from_secs(10);
/// How soon a file that failed is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// What a job does in the transaction, how that went, and how its caller is told.
pub(super) type Apply = Box<dyn FnOnce(&mut Tables<'_>, UnixMillis) -> (redb::Result, Answer) + Send>;
/// Tells its caller how the commit went.
pub(super) type Answer = Box<dyn FnOnce(Result<(), StateError>) + Send>;

/// One caller's part of a transaction.
pub(super) struct Job {
    /// What it does. Dropped unused when the transaction fails before its turn: its caller then asks the file why.
    pub(super) apply: Apply,
    /// Whether it writes.
    pub(super) writes: bool,
    /// Its room in the budget.
    pub(super) room: OwnedSemaphorePermit,
}

/// The thread's own state.
pub(super) struct Committer {
    file: Arc<StoreFile>,
    sweep_at: Instant,
    reopen_at: Instant,
}

impl Committer {
    pub(super) fn new(file: Arc<StoreFile>) -> Self {
        Self { file, sweep_at: Instant::now(), reopen_at: Instant::now() }
    }

    /// Works until nobody can hand over jobs any more and all are done.
    pub(super) fn run(mut self, waiting: &Receiver<Job>) {
        loop {
            let pause = self.sweep_at.saturating_duration_since(Instant::now());
            let mut batch = match waiting.recv_timeout(pause) {
                Ok(first) => vec![first],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            batch.extend(waiting.try_iter().take(BATCH_JOBS_MAX - batch.len()));
            self.revive();
            self.commit(batch);
        }
        self.file.close();
    }

    /// Opens a file that failed again, now and then: the disk may have room once more.
    fn revive(&mut self) {
        if self.file.has_failed() && Instant::now() >= self.reopen_at {
            match self.file.open() {
                Ok(()) => tracing::info!("the state's store works again"),
                Err(unopened) => {
                    tracing::warn!(error = %unopened.error, "failed to open the state's store again")
                }
            }
            self.reopen_at = Instant::now() + REOPEN_PAUSE;
        }
    }

    fn commit(&mut self, batch: Vec<Job>) {
        let started = Instant::now();
        let now = UnixMillis::from(SystemTime::now());
        let jobs = batch.len();
        let sweeps = started >= self.sweep_at;
        let mut more_to_sweep = false;
        let (mut answers, mut rooms) = (Vec::with_capacity(jobs), Vec::with_capacity(jobs));
        // Those whose turn does not come must not be dropped before the file knows why.
        let mut waiting = batch.into_iter();
        let work = |tables: &mut Tables<'_>| {
            let mut writes = false;
            for job in waiting.by_ref() {
                rooms.push(job.room);
                writes |= job.writes;
                let (applied, answer) = (job.apply)(tables, now);
                answers.push(answer);
                applied?;
            }
            if sweeps {
                let swept = tables.sweep(now, SWEEP_STEP)?;
                more_to_sweep = swept == SWEEP_STEP;
                writes |= swept > 0;
            }
            Ok(writes)
        };
        // A damaged page may make the store panic; that must end a transaction, not this thread.
        let file = &self.file;
        let done = catch_unwind(AssertUnwindSafe(|| file.transact(work))).unwrap_or_else(|_| {
            let reason = damaged("it makes the store panic");
            file.fail(&reason);
            Err(file.error(&reason))
        });
        if let Err(error) = &done {
            tracing::error!(error = %error, jobs, "failed to commit to the state's store");
        }
        for answer in answers {
            answer(done.clone());
        }
        if sweeps {
            self.sweep_at = if more_to_sweep { started } else { started + SWEEP_PAUSE };
        }
        if jobs > 0 {
            metrics::histogram!("straightline_state_commit_seconds").record(started.elapsed());
        }
    }
}
