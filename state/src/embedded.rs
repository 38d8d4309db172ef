//! State in this process: for one machine, with nothing to install.
//!
//! What must outlive the process rests in `state.redb` (module `store`): records, noted starts and the dead index. A
//! call that writes resolves once its write is on disk; writes of many callers share one commit (module `committer`). What
//! is a fact about live processes (frequency, heartbeats, claims, leases) is kept in memory only: after
//! a restart there are none.
//!
//! Invariant: no call touches the disk on the async runtime. Writes happen on the store's own thread, reads on
//! the runtime's threads for blocking work.

mod committer;
mod file;
mod store;
mod writer;

use crate::facts::{Batch, Facts, ModelFacts, Sample};
use crate::registry::Registry;
use crate::window::{Frequencies, Span};
use crate::{Finish, Limits, Record, Start, State, StateError, decode};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemas::dead::DeadEntry;
use schemas::heartbeat::{DispatcherReport, WorkerReport};
use schemas::{JobId, UnixMillis, wire};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use writer::Writer;

/// Where the embedded state rests and what it may use.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of its file `state.redb`; made if it is not there.
    pub dir: PathBuf,
    /// Memory for pages of the file, in bytes.
    pub cache_bytes: usize,
    /// Bytes of writes that may wait for the disk; whoever writes more waits with them.
    pub pending_bytes_max: usize,
    /// What it holds at most.
    pub limits: Limits,
}

impl Config {
    /// The defaults, in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            cache_bytes: 64 * 1024 * 1024,
            pending_bytes_max: 64 * 1024 * 1024,
            limits: Limits::default(),
        }
    }
}

/// The adapter. One process at a time can open a folder.
pub struct Embedded {
    dir: String,
    started: Instant,
    live: Mutex<Live>,
    writer: Writer,
    closed: AtomicBool,
}

/// What is kept in memory.
struct Live {
    registry: Registry,
    frequencies: Frequencies,
    /// Who leads each role, and until when.
    leases: HashMap<String, (String, Duration)>,
}

impl Embedded {
    /// Opens the state in `config.dir`, or makes it. After a crash this may read the whole file, if it is not a large
    /// one; a file that another process has is waited for up to three seconds.
    pub fn open(config: Config) -> BoxFuture<'static, Result<Arc<Self>, StateError>> {
        Box::pin(async move {
            let live = Live {
                registry: Registry::new(config.limits.model_memory),
                frequencies: Frequencies::default(),
                leases: HashMap::new(),
            };
            Ok(Arc::new(Self {
                dir: config.dir.display().to_string(),
                started: Instant::now(),
                live: Mutex::new(live),
                writer: Writer::open(config).await?,
                closed: AtomicBool::new(false),
            }))
        })
    }

    /// Time since opening: what lives only in memory needs no other clock, and this one never jumps.
    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn live(&self) -> Result<MutexGuard<'_, Live>, StateError> {
        self.check_open()?;
        Ok(self.live.lock().expect("nothing panics while it holds this lock"))
    }

    fn check_open(&self) -> Result<(), StateError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StateError::Unreachable {
                address: self.dir.clone(),
                reason: "it is closed".to_owned(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl State for Embedded {
    async fn observe(&self, batch: &Batch) -> Result<Facts, StateError> {
        let ended = self.fetch(&batch.ids).await?;
        let (span, now) = (Span::of(batch.window), self.elapsed());
        let mut live = self.live()?;
        let mut models = Vec::with_capacity(batch.models.len());
        for (model, jobs) in &batch.models {
            let per_second = live.frequencies.count(model, *jobs, span, now);
            models.push(ModelFacts { per_second, ..live.registry.model(model, now) });
        }
        let (lanes, stamp) = live.registry.place(batch.claim, batch.unused, now);
        Ok(Facts { models, ended, lanes, stamp })
    }

    async fn sample(&self, sample: &Sample) -> Result<(), StateError> {
        self.live()?.registry.sample(sample);
        Ok(())
    }

    async fn lead(&self, role: &str, holder: &str, lease: Duration) -> Result<bool, StateError> {
        let now = self.elapsed();
        let mut live = self.live()?;
        let taken = live.leases.get(role).is_some_and(|(leader, until)| leader != holder && *until > now);
        if !taken {
            live.leases.insert(role.to_owned(), (holder.to_owned(), now.saturating_add(lease)));
        }
        Ok(!taken)
    }

    async fn report_worker(&self, report: &WorkerReport, keep: Duration) -> Result<(), StateError> {
        self.live()?.registry.report_worker(report, keep, self.elapsed());
        Ok(())
    }

    async fn forget_worker(&self, worker: &str) -> Result<(), StateError> {
        self.live()?.registry.forget_worker(worker);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>, StateError> {
        Ok(self.live()?.registry.workers(self.elapsed()))
    }

    async fn report_dispatcher(&self, report: &DispatcherReport, keep: Duration) -> Result<(), StateError> {
        self.live()?.registry.report_dispatcher(report, keep, self.elapsed());
        Ok(())
    }

    async fn forget_dispatcher(&self, dispatcher: &str) -> Result<(), StateError> {
        self.live()?.registry.forget_dispatcher(dispatcher);
        Ok(())
    }

    async fn dispatchers(&self) -> Result<Vec<DispatcherReport>, StateError> {
        Ok(self.live()?.registry.dispatchers(self.elapsed()))
    }

    async fn finish(&self, records: &[Record]) -> Result<Vec<Finish>, StateError> {
        self.check_open()?;
        self.writer.finish(records.to_vec()).await
    }

    async fn fetch(&self, ids: &[JobId]) -> Result<Vec<Option<Bytes>>, StateError> {
        self.check_open()?;
        self.writer.fetch(ids.to_vec()).await
    }

    async fn note_starts(&self, starts: &[Start], keep: Duration) -> Result<Vec<u32>, StateError> {
        self.check_open()?;
        let starts = starts.to_vec();
        let bytes = starts.len() * store::START_BYTES;
        self.writer.write(bytes, move |tables, now| tables.note_starts(&starts, keep, now)).await
    }

    async fn bury(&self, entries: &[DeadEntry]) -> Result<(), StateError> {
        self.check_open()?;
        let entries: Vec<_> =
            entries.iter().map(|entry| (entry.id, entry.died, wire::encode(entry))).collect();
        let bytes = entries.iter().map(|(_, _, entry)| entry.len()).sum();
        self.writer.write(bytes, move |tables, _| tables.bury(&entries)).await
    }

    async fn dead(&self, offset: u64, limit: u64) -> Result<(Vec<DeadEntry>, u64), StateError> {
        self.check_open()?;
        let (entries, total) = self.writer.read(move |store| store.dead(offset, limit)).await?;
        Ok((entries.iter().filter_map(|entry| decode::or_skip("dead", entry)).collect(), total))
    }

    async fn dead_entries(&self, ids: &[JobId]) -> Result<Vec<Option<DeadEntry>>, StateError> {
        self.check_open()?;
        let ids = ids.to_vec();
        let entries = self.writer.read(move |store| store.dead_entries(&ids)).await?;
        entries
            .iter()
            .map(|entry| entry.as_deref().map(|entry| decode::exactly("dead", entry)).transpose())
            .collect()
    }

    async fn unbury(&self, ids: &[JobId]) -> Result<(), StateError> {
        self.check_open()?;
        let ids = ids.to_vec();
        self.writer.write(0, move |tables, _| tables.unbury(&ids)).await
    }

    async fn now(&self) -> Result<UnixMillis, StateError> {
        self.check_open()?;
        Ok(SystemTime::now().into())
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.writer.close().await;
    }
}
