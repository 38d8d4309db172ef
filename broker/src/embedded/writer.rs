//! The storage thread: everything that touches the file happens here, one batch at a time.
//!
//! A batch is whatever has arrived while the last one was written. When one cannot be written, its publishers are
//! told, its settlements are kept, and the next is tried after a pause; while the file cannot even be opened,
//! publishers wait up to the publish time-out.

use super::clock::Clock;
use super::queues::Recovery;
use super::record::Content;
use super::shared::{Arrival, Batch, Ending, Shared, Work};
use super::store::{Failure, Opener, Store};
use crate::receipt::PublishError;
use crate::{BrokerError, Health, Limits};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Attempts to write what is left when the broker is closed. What they do not write comes again.
const ATTEMPTS_TO_END: u32 = 2;

/// What a started thread hands back. It ends when this is dropped.
pub(super) struct Started {
    pub(super) shared: Arc<Shared>,
    pub(super) health: watch::Receiver<Health>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.shared.end(Ending::Orderly);
    }
}

/// See the module.
struct Writer {
    store: Store,
    shared: Arc<Shared>,
    health: watch::Sender<Health>,
    publish_timeout: Duration,
    pause: Duration,
    /// A batch of which nobody knows whether it is in the file.
    uncertain: Option<Batch>,
    /// When the next attempt may be made; 0 if the last one was well.
    not_before: u64,
    /// Last, so that the file is free when everyone is told.
    _ends: EndsWith,
}

/// Opens the file in `dir` on a thread of its own, which serves it from then on.
///
/// After trouble it waits for `pause` before it tries again.
pub(super) async fn start(
    dir: PathBuf,
    limits: Limits,
    opener: Opener,
    pause: Duration,
) -> Result<Started, BrokerError> {
    let path = dir.join("broker.redb");
    let failed =
        |path: &Path, reason: String| BrokerError::Store { path: path.display().to_string(), reason };
    let (sender, started) = oneshot::channel();
    let thread = std::thread::Builder::new().name("broker-store".to_owned());
    let own = path.clone();
    let spawned = thread.spawn(move || match open(&dir, own, limits, opener, pause) {
        Ok((writer, started)) => {
            // If whoever asked has lost interest, this drops `started`, and the thread ends at once.
            drop(sender.send(Ok(started)));
            writer.run();
        }
        Err(reason) => drop(sender.send(Err(reason))),
    });
    spawned.map_err(|error| failed(&path, format!("no thread for it: {error}")))?;
    match started.await {
        Ok(started) => started.map_err(|reason| failed(&path, reason)),
        // The store's crate may panic over a file that was damaged in ways it did not expect.
        Err(_) => Err(failed(
            &path,
            "the file is damaged: restore it from a copy, or move it away to start empty".to_owned(),
        )),
    }
}

fn open(
    dir: &Path,
    path: PathBuf,
    limits: Limits,
    opener: Opener,
    pause: Duration,
) -> Result<(Writer, Started), String> {
    std::fs::create_dir_all(dir).map_err(|error| format!("its folder cannot be made: {error}"))?;
    let clock = Clock::start();
    let publish_timeout = limits.publish_timeout;
    let mut recovery = Recovery::new(limits, clock.now());
    let store = Store::open(path, opener, &mut recovery)?;
    let queues = recovery.finish();
    let shared = Shared::new(queues, clock);
    let (health, seen) = watch::channel(Health::Connected);
    let started = Started { shared: shared.clone(), health: seen };
    let _ends = EndsWith { shared: shared.clone(), health: health.clone() };
    Ok((
        Writer { store, shared, health, publish_timeout, pause, uncertain: None, not_before: 0, _ends },
        started,
    ))
}

impl Writer {
    fn run(mut self) {
        let mut attempts_to_end = 0;
        while let Some(work) = self.shared.next_work(self.not_before) {
            // Looked at before, so that whoever closes is given whole attempts.
            attempts_to_end += u32::from(self.shared.lock().ending.is_some());
            let started = Instant::now();
            match self.round(work) {
                Err(health) => self.pause(health, started.elapsed()),
                Ok(()) if self.not_before != 0 => self.all_is_well(),
                Ok(()) => {}
            }
            if attempts_to_end >= ATTEMPTS_TO_END && self.not_before != 0 {
                break;
            }
        }
        self.health.send_replace(Health::Disconnected(BrokerError::Closed.to_string()));
        self.store.close();
    }

    /// Does some work; on failure, how the store is now.
    fn round(&mut self, mut work: Work) -> Result<(), Health> {
        if let Err(health) = self.recover(&mut work) {
            self.shared.put_back(work);
            return Err(health);
        }
        self.load(&mut work)?;
        let mut batch = work.batch;
        if self.not_before != 0 && !batch.arrivals.is_empty() {
            // After trouble, settlements first: they need little room, and make some.
            let arrivals = std::mem::take(&mut batch.arrivals);
            if let Err(health) = self.commit(batch) {
                self.refuse(arrivals, &health);
                return Err(health);
            }
            batch = Batch { arrivals, ..Batch::default() };
        }
        self.commit(batch)
    }

    /// Opens the file again if it failed, which tells what became of the batch that failed with it. What must be tried
    /// again comes before everything else.
    fn recover(&mut self, work: &mut Work) -> Result<(), Health> {
        let Some(mut batch) = self.uncertain.take() else { return Ok(()) };
        match self.store.reopen() {
            Ok(true) => self.shared.written(batch),
            Ok(false) => {
                self.refuse(std::mem::take(&mut batch.arrivals), &self.health.borrow().clone());
                batch.writes.append(&mut work.batch.writes);
                batch.declared.append(&mut work.batch.declared);
                batch.arrivals = std::mem::take(&mut work.batch.arrivals);
                work.batch = batch;
            }
            Err(reason) => {
                self.uncertain = Some(batch);
                return Err(Health::Disconnected(reason));
            }
        }
        Ok(())
    }

    fn load(&mut self, work: &mut Work) -> Result<(), Health> {
        while let Some((queue, ids)) = work.loads.pop() {
            match self.store.load(&ids) {
                Ok(contents) => self.loaded(queue, ids, contents),
                Err(reason) => {
                    work.loads.push((queue, ids));
                    self.shared.put_back(std::mem::take(work));
                    self.uncertain = Some(Batch::default());
                    return Err(Health::Disconnected(reason));
                }
            }
        }
        Ok(())
    }

    fn loaded(&self, queue: u32, ids: Vec<u64>, contents: Vec<Result<Content, String>>) {
        let read = ids.into_iter().zip(contents).map(|(id, content)| {
            let content = content.inspect_err(|error| {
                metrics::counter!("straightline_broker_store_unreadable_total").increment(1);
                tracing::error!(id, error, "message cannot be read and is not delivered");
            });
            (id, content.ok())
        });
        let read = read.collect();
        self.shared.lock().queues.loaded(queue, read);
    }

    fn commit(&mut self, batch: Batch) -> Result<(), Health> {
        // After trouble an empty batch is written too, to see whether it is over.
        if batch.is_empty() && self.not_before == 0 {
            return Ok(());
        }
        let started = Instant::now();
        match self.store.commit(&batch.writes, batch.inserts()) {
            Ok(()) => {
                metrics::histogram!("straightline_broker_store_commit_seconds").record(started.elapsed());
                metrics::histogram!("straightline_broker_store_batch_messages")
                    .record(batch.arrivals.len() as f64);
                self.shared.written(batch);
                Ok(())
            }
            Err(Failure::NotWritten(reason)) => {
                let health = Health::Blocked(reason);
                self.not_written(batch, &health);
                Err(health)
            }
            Err(Failure::Unknown(reason)) => {
                self.uncertain = Some(batch);
                Err(Health::Disconnected(reason))
            }
        }
    }

    /// Publishers are told, and may try again; what was settled stays settled and is written with a later batch.
    fn not_written(&self, mut batch: Batch, why: &Health) {
        self.refuse(std::mem::take(&mut batch.arrivals), why);
        self.shared.put_back(Work { batch, ..Work::default() });
    }

    fn refuse(&self, arrivals: Vec<Arrival>, why: &Health) {
        self.shared.refused(arrivals, &PublishError::Unavailable(reason(why).to_owned()));
    }

    fn all_is_well(&mut self) {
        self.not_before = 0;
        self.health.send_replace(Health::Connected);
        tracing::info!("store can be written again");
    }

    /// After trouble: nothing is tried for a while, and whoever has waited too long is told.
    fn pause(&mut self, health: Health, attempt: Duration) {
        if *self.health.borrow() == Health::Connected {
            tracing::error!(reason = reason(&health), "store cannot be written: trying again until it can");
        }
        let now = self.shared.clock.now();
        // A large file takes long to open again; that must not be all that happens.
        self.not_before = now + millis(self.pause.max(attempt * 5));
        let overdue = now.saturating_sub(millis(self.publish_timeout));
        self.refuse(self.shared.overdue(overdue), &health);
        for arrival in self.uncertain.iter_mut().flat_map(|batch| &mut batch.arrivals) {
            if let Some(waiting) = arrival.waiting.take_if(|waiting| waiting.since <= overdue) {
                waiting.resolve(Err(PublishError::Lost));
            }
        }
        self.health.send_replace(health);
    }
}

/// Whatever ends the thread ends the broker, and is seen.
struct EndsWith {
    shared: Arc<Shared>,
    health: watch::Sender<Health>,
}

impl Drop for EndsWith {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "the thread that serves its store broke down: restart the process";
            self.health.send_replace(Health::Disconnected(reason.to_owned()));
        }
        self.shared.ended();
    }
}

fn reason(health: &Health) -> &str {
    match health {
        Health::Connected => "",
        Health::Blocked(reason) | Health::Disconnected(reason) => reason,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
