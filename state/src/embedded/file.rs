//! The file itself: opened, failed, opened anew, let go; and every fault of it told in words.

use super::Config;
use super::store::{self, FORMAT, Snapshot, Tables};
use crate::StateError;
use redb::{Database, DatabaseError, ReadableDatabase, StorageError, WriteTransaction};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::RwLock;

/// Largest file that is read as a whole after a crash: a few seconds.
const REPAIR_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Its name in the folder.
const NAME: &str = "state.redb";

/// The file, shared by its thread and its readers.
pub(super) struct StoreFile {
    path: PathBuf,
    cache_bytes: usize,
    dead_max: u64,
    database: RwLock<Held>,
}

/// What is held of it.
enum Held {
    Open(Database),
    /// Not usable, for this reason.
    Failed(String),
    Closed,
}

impl StoreFile {
    /// The file in the configured folder, not opened yet.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            path: config.dir.join(NAME),
            cache_bytes: config.cache_bytes,
            dead_max: config.limits.dead_max,
            database: RwLock::new(Held::Failed("it has not been opened".to_owned())),
        }
    }

    /// Opens it, or makes it.
    pub(super) fn open(&self) -> Result<(), Unopened> {
        let opened = self.try_open();
        let result = opened
            .as_ref()
            .map(drop)
            .map_err(|unopened| Unopened { in_use: unopened.in_use, error: self.error(&unopened.reason) });
        self.hold(opened.map_or_else(|unopened| Held::Failed(unopened.reason), Held::Open));
        result
    }

    fn try_open(&self) -> Result<Database, Reason> {
        let dir = self.path.parent().unwrap_or(&self.path);
        fs::create_dir_all(dir)?;
        let new = !self.path.exists();
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes);
        let database = builder.create(&self.path).map_err(|error| unopened(&error))?;
        let told = |error: redb::Error| told(&error);
        let transaction = database.begin_write().map_err(|error| told(error.into()))?;
        let format = store::prepare(&transaction).map_err(|error| told(error.into()))?;
        if format > FORMAT {
            return Err(Reason::from(format!(
                "it has format {format}, this build reads up to {FORMAT}: use the newer build that wrote it, or \
                 another folder"
            )));
        }
        transaction.commit().map_err(|error| told(error.into()))?;
        if new {
            // The file's own name must survive a power cut as well.
            File::open(dir).and_then(|dir| dir.sync_all())?;
        }
        Ok(database)
    }

    /// Does `work` in one transaction and commits it, or leaves no trace of it if `work` says that it wrote nothing.
    /// After an error the file is let go of: nothing in it can be relied on until it is opened again.
    pub(super) fn transact(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> redb::Result<bool>,
    ) -> Result<(), StateError> {
        let done = match &*self.database.read().expect(LOCK) {
            Held::Open(database) => self.transact_in(database, work),
            Held::Failed(reason) => return Err(self.error(reason)),
            Held::Closed => return Err(self.closed()),
        };
        done.map_err(|error| {
            let reason = told(&error);
            self.fail(&reason);
            self.error(&reason)
        })
    }

    fn transact_in(
        &self,
        database: &Database,
        work: impl FnOnce(&mut Tables<'_>) -> redb::Result<bool>,
    ) -> Result<(), redb::Error> {
        let mut transaction: WriteTransaction = database.begin_write()?;
        // One sync per commit while the file is small enough to be checked quickly after a crash, two above that.
        let bytes = fs::metadata(&self.path).map_or(0, |meta| meta.len());
        transaction.set_quick_repair(bytes > REPAIR_BYTES_MAX);
        let mut tables = Tables::open(&transaction, self.dead_max)?;
        let wrote = work(&mut tables)?;
        drop(tables);
        if wrote { Ok(transaction.commit()?) } else { Ok(transaction.abort()?) }
    }

    /// What was committed last.
    pub(super) fn snapshot(&self) -> Result<Snapshot, StateError> {
        match &*self.database.read().expect(LOCK) {
            Held::Open(database) => {
                database.begin_read().map(Snapshot::of).map_err(|error| self.failed(&error.into()))
            }
            Held::Failed(reason) => Err(self.error(reason)),
            Held::Closed => Err(self.closed()),
        }
    }

    /// Lets go of it for good.
    pub(super) fn close(&self) {
        self.hold(Held::Closed);
    }

    /// Lets go of it until it is opened again.
    pub(super) fn fail(&self, reason: &str) {
        self.hold(Held::Failed(reason.to_owned()));
    }

    /// What was held goes once the lock is free again: letting go of a damaged file may panic.
    fn hold(&self, held: Held) {
        let before = std::mem::replace(&mut *self.database.write().expect(LOCK), held);
        drop(before);
    }

    /// Whether it must be opened again before it can be used.
    pub(super) fn has_failed(&self) -> bool {
        matches!(&*self.database.read().expect(LOCK), Held::Failed(_))
    }

    /// Why a call was not answered.
    pub(super) fn last_error(&self) -> StateError {
        match &*self.database.read().expect(LOCK) {
            Held::Open(_) => self.error("a call was broken off by a fault that the log tells of"),
            Held::Failed(reason) => self.error(reason),
            Held::Closed => self.closed(),
        }
    }

    pub(super) fn closed(&self) -> StateError {
        let address = self.path.parent().unwrap_or(&self.path).display().to_string();
        StateError::Unreachable { address, reason: "it is closed".to_owned() }
    }

    pub(super) fn failed(&self, error: &redb::Error) -> StateError {
        self.error(&told(error))
    }

    pub(super) fn error(&self, reason: &str) -> StateError {
        StateError::Store { path: self.path.display().to_string(), reason: reason.to_owned() }
    }
}

/// Nothing but a swap happens under the lock for writing, and readers that panic do not poison it.
const LOCK: &str = "the lock is never poisoned";

/// Why it could not be opened.
pub(super) struct Unopened {
    /// Whether another process has it, which may be about to end.
    pub(super) in_use: bool,
    /// All of it, for people.
    pub(super) error: StateError,
}

struct Reason {
    in_use: bool,
    reason: String,
}

impl From<String> for Reason {
    fn from(reason: String) -> Self {
        Self { in_use: false, reason }
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        error.to_string().into()
    }
}

/// What to do about a file that holds what no version of this build wrote.
pub(super) fn damaged(why: &str) -> String {
    format!(
        "it is damaged ({why}): move it away and start again; results recorded in it and the index of dead jobs are \
         lost, jobs are not"
    )
}

fn unopened(error: &DatabaseError) -> Reason {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            let reason = "another process has it open: stop that one, or use another folder".to_owned();
            Reason { in_use: true, reason }
        }
        DatabaseError::UpgradeRequired(version) => Reason::from(format!(
            "it is a store of version {version}, which this build cannot read: move it away and start again"
        )),
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            damaged(&error.to_string()).into()
        }
        DatabaseError::Storage(StorageError::Io(error)) => error.to_string().into(),
        other => damaged(&other.to_string()).into(),
    }
}

fn told(error: &redb::Error) -> String {
    match error {
        redb::Error::Io(error) => error.to_string(),
        redb::Error::PreviousIo => "the disk failed before".to_owned(),
        redb::Error::Corrupted(why) => damaged(why),
        other => damaged(&other.to_string()),
    }
}
