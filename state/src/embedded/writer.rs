//! The way from the async runtime to the file: writes go to its thread ([`super::committer`]), reads to the runtime's
//! threads for blocking work.
//!
//! Readers see what is committed; one that asks for a record whose commit is under way waits for that commit, so
//! nobody is told of a result that a crash could still take back.

use super::Config;
use super::committer::{Apply, Committer, Job};
use super::file::{StoreFile, Unopened, damaged};
use super::store::{self, Snapshot, Tables};
use crate::{Finish, Record, StateError};
use backon::{ConstantBuilder, Retryable};
use bytes::Bytes;
use schemas::{JobId, UnixMillis};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, oneshot};

/// Unit of the budget for waiting writes, in bytes.
const BUDGET_UNIT: usize = 1024;
/// Between two tries to open a file that another process has.
const IN_USE_PAUSE: Duration = Duration::from_millis(50);
/// How often that is tried again: three seconds in all.
const IN_USE_TRIES: usize = 60;

/// The way to the file.
pub(super) struct Writer {
    file: Arc<StoreFile>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    budget: Arc<Semaphore>,
    budget_units: u32,
    pending: Arc<Pending>,
}

impl Writer {
    /// Opens the file in the configured folder, or makes it.
    pub(super) async fn open(config: Config) -> Result<Self, StateError> {
        let units = (config.pending_bytes_max / BUDGET_UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let budget_units = u32::try_from(units).unwrap_or(u32::MAX);
        let file = Arc::new(StoreFile::new(&config));
        open_file(&file).await?;
        let (jobs, waiting) = mpsc::channel();
        let committer = Committer::new(Arc::clone(&file));
        let thread = std::thread::Builder::new().name("state-store".to_owned());
        let thread = thread.spawn(move || committer.run(&waiting));
        let thread = thread.map_err(|error| file.error(&error.to_string()))?;
        Ok(Self {
            file,
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            budget: Arc::new(Semaphore::new(units)),
            budget_units,
            pending: Arc::default(),
        })
    }

    /// Records endings; resolves once they are on disk.
    pub(super) async fn finish(&self, records: Vec<Record>) -> Result<Vec<Finish>, StateError> {
        let bytes = records.iter().map(|record| record.result.len() + store::RECORD_BYTES).sum();
        let pending = Pending::hold(&self.pending, records.iter().map(|record| record.id).collect());
        let finished = self.write(bytes, move |tables, now| Ok((tables.finish(&records, now)?, pending)));
        finished.await.map(|(finished, _pending)| finished)
    }

    /// Reads records, those whose commit is under way included.
    pub(super) async fn fetch(&self, ids: Vec<JobId>) -> Result<Vec<Option<Bytes>>, StateError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        if self.pending.has_any(&ids) {
            return self.send(0, false, move |tables, now| tables.fetch(&ids, now)).await;
        }
        self.read(move |snapshot| snapshot.fetch(&ids, SystemTime::now().into())).await
    }

    /// Has `apply` done in a transaction of the thread's; resolves once that is on disk. `bytes` is about what it writes.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        bytes: usize,
        apply: impl FnOnce(&mut Tables<'_>, UnixMillis) -> redb::Result<T> + Send + 'static,
    ) -> Result<T, StateError> {
        self.send(bytes, true, apply).await
    }

    async fn send<T: Send + 'static>(
        &self,
        bytes: usize,
        writes: bool,
        apply: impl FnOnce(&mut Tables<'_>, UnixMillis) -> redb::Result<T> + Send + 'static,
    ) -> Result<T, StateError> {
        let units = u32::try_from(bytes / BUDGET_UNIT + 1).unwrap_or(u32::MAX).min(self.budget_units);
        let room = Arc::clone(&self.budget).acquire_many_owned(units).await;
        let room = room.map_err(|_| self.file.closed())?;
        let (reply, replied) = oneshot::channel();
        let apply: Apply = Box::new(move |tables, now| {
            let (applied, done) = match apply(tables, now) {
                Ok(done) => (Ok(()), Some(done)),
                Err(error) => (Err(error), None),
            };
            let answer = move |committed: Result<(), StateError>| {
                let answer = committed.map(|()| done.expect("what was not applied is not committed"));
                // A caller that went away needs no answer.
                drop(reply.send(answer));
            };
            (applied, Box::new(answer))
        });
        let sent = match &*self.jobs.lock().expect("nothing panics while it holds this lock") {
            Some(jobs) => jobs.send(Job { apply, writes, room }),
            None => return Err(self.file.closed()),
        };
        sent.map_err(|_| self.file.last_error())?;
        replied.await.unwrap_or_else(|_| Err(self.file.last_error()))
    }

    /// Reads what was committed last.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StateError> {
        let file = Arc::clone(&self.file);
        let done =
            tokio::task::spawn_blocking(move || read(&file.snapshot()?).map_err(|error| file.failed(&error)));
        done.await.unwrap_or_else(|_| Err(self.file.error(&damaged("reading it makes the store panic"))))
    }

    /// Commits what waits and lets go of the file.
    pub(super) async fn close(&self) {
        self.budget.close();
        drop(self.jobs.lock().expect("nothing panics while it holds this lock").take());
        let thread = self.thread.lock().expect("nothing panics while it holds this lock").take();
        if let Some(thread) = thread
            && tokio::task::spawn_blocking(move || thread.join()).await.is_ok_and(|joined| joined.is_err())
        {
            tracing::error!(error = %self.file.last_error(), "the store's thread panicked");
        }
    }
}

/// Opens the file. One that another process has is asked for again for a while: a process that was just killed lets
/// go of its files a moment later.
async fn open_file(file: &Arc<StoreFile>) -> Result<(), StateError> {
    let open = || async {
        let own = Arc::clone(file);
        // Opening a damaged file may panic.
        let panicked =
            |_| Err(Unopened { in_use: false, error: file.error(&damaged("it makes the store panic")) });
        tokio::task::spawn_blocking(move || own.open()).await.unwrap_or_else(panicked)
    };
    let again = ConstantBuilder::new().with_delay(IN_USE_PAUSE).with_max_times(IN_USE_TRIES);
    open.retry(again).when(|unopened| unopened.in_use).await.map_err(|unopened| unopened.error)
}

/// Records whose commit is under way.
#[derive(Default)]
struct Pending(Mutex<HashMap<JobId, usize>>);

impl Pending {
    fn hold(pending: &Arc<Self>, ids: Vec<JobId>) -> PendingIds {
        let mut held = pending.0.lock().expect("nothing panics while it holds this lock");
        for id in &ids {
            *held.entry(*id).or_default() += 1;
        }
        PendingIds { pending: Arc::clone(pending), ids }
    }

    fn has_any(&self, ids: &[JobId]) -> bool {
        let held = self.0.lock().expect("nothing panics while it holds this lock");
        !held.is_empty() && ids.iter().any(|id| held.contains_key(id))
    }
}

/// Some of them; no longer once this is dropped.
struct PendingIds {
    pending: Arc<Pending>,
    ids: Vec<JobId>,
}

impl Drop for PendingIds {
    fn drop(&mut self) {
        let mut held = self.pending.0.lock().expect("nothing panics while it holds this lock");
        for id in &self.ids {
            if let Some(count) = held.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    held.remove(id);
                }
            }
        }
    }
}
