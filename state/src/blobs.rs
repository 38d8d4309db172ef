//! The blob store: inputs and outputs that are too large for a message rest here, and the message carries a claim
//! check ([`BlobRef`]).
//!
//! What is stored is the payload's MessagePack encoding. An id is the store's own: random, never a path, and checked
//! before it is used, so that no reference reaches outside the store. A blob is on disk, whole and under its name,
//! before [`Blobs::put`] returns; it never changes; only its age removes it ([`Blobs::sweep`]). Encoding, decoding and
//! files are worked on off the async runtime.
//!
//! A blob of id `…5c` rests at `5c/<id>` in the folder. A store of another kind (an object store by URL) has its place
//! behind the same interface.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use schemas::limits::PAYLOAD_BYTES_MAX;
use schemas::{BlobRef, JobId, Payload, UnixMillis, wire};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Length of an id: 16 bytes in hexadecimal.
const ID_LENGTH: usize = 32;
/// Blobs removed at the same time.
const REMOVALS_MAX: usize = 8;

/// Where blobs rest.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder; made if it is not there.
    pub dir: PathBuf,
    /// Whether every host that uses this store sees the same folder.
    pub shared: bool,
    /// Whether several hosts use this store. Nothing is stored then unless the folder is shared: others could not read it.
    pub several_hosts: bool,
    /// Largest blob, in bytes as stored; at most [`PAYLOAD_BYTES_MAX`].
    pub bytes_max: u64,
}

impl Config {
    /// The defaults: a folder of this host alone.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), shared: false, several_hosts: false, bytes_max: PAYLOAD_BYTES_MAX as u64 }
    }
}

/// Why a blob could not be stored or had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The folder cannot be used.
    #[error("blob store {dir} cannot be used: {reason}")]
    Unusable {
        /// The folder.
        dir: String,
        /// What the operating system said.
        reason: String,
    },
    /// No such blob.
    #[error("blob {id} is not in the store: it was removed for its age, or put into another store")]
    NotFound {
        /// Its id.
        id: String,
    },
    /// Not an id of this store's.
    #[error("blob id {id:?} is not one: send what the store returned, 32 of 0-9 and a-f")]
    InvalidId {
        /// What was sent, shortened.
        id: String,
    },
    /// Over a limit.
    #[error("blob has {bytes} bytes: at most {limit}; split the input into several jobs")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Not what was stored under this reference.
    #[error("blob {id} cannot be read: {reason}")]
    Corrupt {
        /// Its id.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A payload that cannot be stored.
    #[error("payload cannot be stored: {0}")]
    Invalid(String),
}

/// The blob store.
#[derive(Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    dir: PathBuf,
    shared: bool,
    several_hosts: bool,
    bytes_max: u64,
}

impl Blobs {
    /// Opens the store, or makes it; fails if nothing can be written to it.
    pub fn open(config: Config) -> BoxFuture<'static, Result<Self, BlobError>> {
        Box::pin(async move {
            let bytes_max = config.bytes_max.min(PAYLOAD_BYTES_MAX as u64);
            let Config { dir, shared, several_hosts, .. } = config;
            let at = dir.clone();
            let opened = off_runtime(move || {
                std::fs::create_dir_all(&at).and_then(|()| probe(&at)).map_err(|error| error.to_string())?;
                LocalFileSystem::new_with_prefix(&at).map_err(|error| error.to_string())
            });
            let unusable = |reason| BlobError::Unusable { dir: dir.display().to_string(), reason };
            let store = opened.await.map_err(unusable)?.with_fsync(true);
            Ok(Self { store: Arc::new(store), dir, shared, several_hosts, bytes_max })
        })
    }

    /// Whether every host that uses this store sees the same folder.
    pub fn shared(&self) -> bool {
        self.shared
    }

    /// Stores `payload` and returns its claim check once it is on disk.
    pub fn put<'a>(&'a self, payload: &'a Payload) -> BoxFuture<'a, Result<BlobRef, BlobError>> {
        Box::pin(async move {
            if matches!(payload, Payload::Blob(_)) {
                return Err(BlobError::Invalid("it is a claim check already".to_owned()));
            }
            if self.several_hosts && !self.shared {
                let reason = "other hosts cannot read it: give all of them one folder and set storage.blobs_shared = true, \
                          or keep inputs and outputs below limits.inline";
                return Err(BlobError::Unusable {
                    dir: self.dir.display().to_string(),
                    reason: reason.to_owned(),
                });
            }
            self.check_size(payload.data_bytes())?;
            payload.check().map_err(|error| BlobError::Invalid(error.to_string()))?;
            // Shares the data, which is the large part.
            let payload = payload.clone();
            let stored = off_runtime(move || wire::encode(&payload)).await;
            let size = stored.len() as u64;
            self.check_size(size)?;
            let id = fresh_id();
            self.store.put(&location(&id)?, stored.into()).await.map_err(|error| self.fault(&id, error))?;
            Ok(BlobRef { id, size })
        })
    }

    /// The payload behind a claim check.
    pub fn get<'a>(&'a self, blob: &'a BlobRef) -> BoxFuture<'a, Result<Payload, BlobError>> {
        Box::pin(async move {
            let location = location(&blob.id)?;
            let corrupt = |reason| BlobError::Corrupt { id: blob.id.clone(), reason };
            let found = self.store.get(&location).await.map_err(|error| self.fault(&blob.id, error))?;
            // The store's own word on the size comes before its bytes: nobody makes us read more than the limit.
            let size = found.meta.size;
            if size != blob.size {
                return Err(corrupt(format!("it has {size} bytes, its reference says {}", blob.size)));
            }
            self.check_size(size)?;
            let stored: Bytes = found.bytes().await.map_err(|error| self.fault(&blob.id, error))?;
            let read = off_runtime(move || -> Result<Payload, String> {
                let payload: Payload = wire::decode(&stored).map_err(|error| error.to_string())?;
                payload.check().map_err(|error| error.to_string())?;
                Ok(payload)
            });
            match read.await.map_err(corrupt)? {
                Payload::Blob(_) => Err(corrupt("it holds a reference to another blob".to_owned())),
                payload => Ok(payload),
            }
        })
    }

    /// Removes what was stored longer than `older_than` before `now`, and what a crash left half written; says how
    /// many blobs that were.
    pub fn sweep(&self, older_than: Duration, now: UnixMillis) -> BoxFuture<'_, Result<u64, BlobError>> {
        Box::pin(async move {
            let is_old = move |stored: UnixMillis| stored.plus(older_than) < now;
            let unusable = |error: object_store::Error| self.fault("", error);
            let removed = self.store.list(None).try_filter(|meta| {
                let old = is_ours(meta) && is_old(stored_at(meta));
                std::future::ready(old)
            });
            let removed = removed
                .map_ok(|meta| async move {
                    match self.store.delete(&meta.location).await {
                        Ok(()) => Ok(1),
                        // Another process sweeps too.
                        Err(object_store::Error::NotFound { .. }) => Ok(0),
                        Err(error) => Err(error),
                    }
                })
                .try_buffer_unordered(REMOVALS_MAX)
                .try_fold(0, |sum, one| std::future::ready(Ok(sum + one)))
                .await
                .map_err(unusable)?;
            let dir = self.dir.clone();
            off_runtime(move || remove_leftovers(&dir, is_old)).await.map_err(|error| {
                BlobError::Unusable { dir: self.dir.display().to_string(), reason: error.to_string() }
            })?;
            Ok(removed)
        })
    }

    fn check_size(&self, bytes: u64) -> Result<(), BlobError> {
        if bytes > self.bytes_max {
            return Err(BlobError::TooLarge { bytes, limit: self.bytes_max });
        }
        Ok(())
    }

    fn fault(&self, id: &str, error: object_store::Error) -> BlobError {
        match error {
            object_store::Error::NotFound { .. } => BlobError::NotFound { id: id.to_owned() },
            other => BlobError::Unusable { dir: self.dir.display().to_string(), reason: other.to_string() },
        }
    }
}

/// Does what takes the processor or the disk a while on a thread for that.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work neither panics nor is it ever aborted")
}

/// An id that nobody can guess. Job ids have enough of chance in them, and of time, so that they never meet.
fn fresh_id() -> String {
    let mut id = String::with_capacity(ID_LENGTH);
    for byte in JobId::new().as_bytes() {
        write!(id, "{byte:02x}").expect("text takes all that is written to it");
    }
    id
}

/// Where the blob of this id rests. The last digits of an id are chance, so the folders fill evenly.
fn location(id: &str) -> Result<Location, BlobError> {
    if id.len() != ID_LENGTH || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(BlobError::InvalidId { id: id.chars().take(80).collect() });
    }
    Ok(Location::from_iter([&id[ID_LENGTH - 2..], id]))
}

/// Whether this object is a blob, and not a stranger's file.
fn is_ours(meta: &ObjectMeta) -> bool {
    meta.location
        .filename()
        .and_then(|id| location(id).ok())
        .is_some_and(|location| location == meta.location)
}

fn stored_at(meta: &ObjectMeta) -> UnixMillis {
    UnixMillis(u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0))
}

/// Fails unless a file can be made in `dir`.
fn probe(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!("probe-{}", fresh_id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

/// Removes old files that a crash left half written: the store writes `<id>#<number>` before it gives it its name, and
/// never lists those.
fn remove_leftovers(dir: &Path, is_old: impl Fn(UnixMillis) -> bool) -> io::Result<()> {
    for folder in std::fs::read_dir(dir)? {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder.path())? {
            let file = file?;
            let name = file.file_name();
            let id = name.to_str().and_then(|name| name.split_once('#')).map(|(id, _)| id);
            if id.is_some_and(|id| location(id).is_ok()) {
                remove_if_old(&file.path(), &is_old)?;
            }
        }
    }
    Ok(())
}

fn remove_if_old(file: &Path, is_old: impl Fn(UnixMillis) -> bool) -> io::Result<()> {
    let removed = std::fs::metadata(file)
        .and_then(|meta| meta.modified())
        .and_then(|modified| if is_old(modified.into()) { std::fs::remove_file(file) } else { Ok(()) });
    match removed {
        // It got its name in between, or another process sweeps too.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
