//! The file: its tables, one transaction per batch, and what to do when one fails. The format is described in
//! [`super`].
//!
//! Runs on the storage thread only. It decides nothing: it does what a batch says, whole or not at all, and says
//! which of the two it was.

use super::record::{self, Content, Head};
use crate::delivery::Death;
use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition,
    TableError,
};
use std::path::{Path, PathBuf};

/// Facts about the file itself: [`FORMAT`], [`BATCH`].
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Queue number → its name, and when it expires unless it is consumed (milliseconds since the Unix epoch; 0: never).
const QUEUES: TableDefinition<u32, (&str, u64)> = TableDefinition::new("queues");
/// Message id → its record.
const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("messages");
/// Body id → a body that is stored apart.
const BODIES: TableDefinition<u64, &[u8]> = TableDefinition::new("bodies");

/// The key of the format's version.
const FORMAT: &str = "format";
/// The version this code reads and writes.
const FORMAT_KNOWN: u64 = 1;
/// The key of the number of the last batch written: after a failed commit it tells whether the batch is in the file.
const BATCH: &str = "batch";

/// Memory for pages of the file. Small: what is hot is kept as messages, and the rest is read once.
const CACHE_BYTES: usize = 32 << 20;

/// Opens the file; for tests, one that fails on demand.
pub(super) type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send>;

/// A change to what rests in the file. All but arrivals: those bring their own bytes, see [`Insert`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// A message is settled.
    Remove {
        /// The message.
        id: u64,
    },
    /// A message goes to the end of another queue, under a new id.
    Move {
        /// The message.
        id: u64,
        /// Its new id.
        to: u64,
        /// The number of its new queue.
        queue: u32,
        /// Why it died, if it did.
        death: Option<Death>,
        /// Without its body, and with as much of its description as can be read.
        bare: bool,
    },
    /// A queue exists, and expires then (0: never).
    Declare {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// In milliseconds since the Unix epoch.
        expires: u64,
    },
    /// A queue is gone, with what it held.
    Delete {
        /// Its number.
        number: u32,
        /// Its messages.
        ids: Vec<u64>,
    },
}

/// A message to store.
pub(super) struct Insert<'a> {
    /// Its id.
    pub(super) id: u64,
    /// Its record.
    pub(super) record: &'a [u8],
    /// Its body, where that is stored apart, under the same id.
    pub(super) body: Option<&'a [u8]>,
}

/// A batch was not written, or may not have been.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not: nothing of it is in the file, and the file takes batches again.
    NotWritten(String),
    /// Nobody knows yet: the file cannot be used until [`Store::reopen`] succeeds, which then tells.
    Unknown(String),
}

/// What a file holds, told to its reader piece by piece: there may be millions of pieces.
pub(super) trait Index {
    /// A queue. All of them come before the first message.
    fn queue(&mut self, number: u32, name: &str, expires: u64);
    /// A message; ids rise.
    fn message(&mut self, id: u64, head: &Head);
}

pub(super) struct Store {
    path: PathBuf,
    open: Opener,
    /// `None` after a failure, until the file is opened again.
    file: Option<Database>,
    /// The number of the last batch known to be in the file.
    batch: u64,
}

impl Store {
    /// Opens or creates the file and tells `index` what it holds. The error says what to do.
    pub(super) fn open(path: PathBuf, open: Opener, index: &mut dyn Index) -> Result<Self, String> {
        let file = open(&path).map_err(explain)?;
        let mut store = Self { path, open, file: None, batch: 0 };
        store.batch = initialise(&file)?;
        read_index(&file, index)?;
        store.file = Some(file);
        Ok(store)
    }

    /// Opens a file of this system's own.
    pub(super) fn opener() -> Opener {
        Box::new(|path| {
            let mut builder = Database::builder();
            // A file that was damaged from outside is found here, with a clear error, in place of a panic later on.
            builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)
        })
    }

    /// Writes a batch in one transaction and has it on disk before it returns `Ok`.
    pub(super) fn commit<'a>(
        &mut self,
        writes: &[Write],
        inserts: impl Iterator<Item = Insert<'a>>,
    ) -> Result<(), Failure> {
        let Some(file) = &self.file else { return Err(Failure::Unknown("it is not open".to_owned())) };
        let Err(reason) = write(file, self.batch + 1, writes, inserts) else {
            self.batch += 1;
            return Ok(());
        };
        // The store refuses all work after an I/O error, and the commit may have come through in spite of it.
        match self.reopen() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::NotWritten(reason.to_string())),
            Err(again) => Err(Failure::Unknown(format!("{reason}; opening it again: {again}"))),
        }
    }

    /// Opens the file again after a failure: whether the batch that failed is in it after all.
    pub(super) fn reopen(&mut self) -> Result<bool, String> {
        drop(self.file.take());
        let file = (self.open)(&self.path).map_err(explain)?;
        let found = initialise(&file)?;
        let written = found > self.batch;
        self.batch = found;
        self.file = Some(file);
        Ok(written)
    }

    /// Reads these messages, in this order. One that cannot be made sense of is `Err` in its place.
    pub(super) fn load(&self, ids: &[u64]) -> Result<Vec<Result<Content, String>>, String> {
        let Some(file) = &self.file else { return Err("it is not open".to_owned()) };
        read(file, ids).map_err(|error| error.to_string())
    }

    /// Lets go of the file.
    pub(super) fn close(mut self) {
        if let Some(Err(error)) = self.file.take().map(Database::close) {
            tracing::warn!(path = %self.path.display(), %error, "store was not closed in order; it is repaired when next opened");
        }
    }
}

/// What to tell whoever runs this about a file that does not open.
fn explain(error: DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            "another StraightLine process uses this data directory: stop it, or choose another directory"
                .to_owned()
        }
        DatabaseError::Storage(StorageError::Corrupted(what)) => {
            format!("the file is damaged ({what}): restore it from a copy, or move it away to start empty")
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == std::io::ErrorKind::InvalidData =>
        {
            format!("it is not a StraightLine store, or it is damaged ({error}): move it away to start empty")
        }
        DatabaseError::Storage(StorageError::Io(error)) => error.to_string(),
        DatabaseError::UpgradeRequired(version) => {
            format!("its file format ({version}) is too old: drain it with the version that wrote it")
        }
        other => other.to_string(),
    }
}

/// Checks the file's format, or makes a new file ready; the number of the last batch in it.
fn initialise(file: &Database) -> Result<u64, String> {
    let failed = |error: redb::Error| format!("reading its format: {error}");
    let format = (|| {
        let transaction = file.begin_read()?;
        match transaction.open_table(META) {
            Ok(meta) => Ok((meta.get(FORMAT)?.map(|v| v.value()), meta.get(BATCH)?.map_or(0, |v| v.value()))),
            Err(TableError::TableDoesNotExist(_)) if transaction.list_tables()?.next().is_none() => {
                drop(transaction);
                create_tables(file)?;
                Ok((Some(FORMAT_KNOWN), 0))
            }
            Err(TableError::TableDoesNotExist(_)) => Ok((None, 0)),
            Err(error) => Err(error.into()),
        }
    })();
    match format.map_err(failed)? {
        (Some(FORMAT_KNOWN), batch) => Ok(batch),
        (Some(other), _) => Err(format!(
            "it has format {other}, and this version knows {FORMAT_KNOWN} only: use the version that wrote it"
        )),
        (None, _) => Err("it is not a StraightLine store: move it away to start empty".to_owned()),
    }
}

fn create_tables(file: &Database) -> Result<(), redb::Error> {
    let transaction = file.begin_write()?;
    transaction.open_table(META)?.insert(FORMAT, FORMAT_KNOWN)?;
    transaction.open_table(QUEUES)?;
    transaction.open_table(MESSAGES)?;
    transaction.open_table(BODIES)?;
    Ok(transaction.commit()?)
}

fn read_index(file: &Database, index: &mut dyn Index) -> Result<(), String> {
    let failed = |error: redb::Error| format!("reading its index: {error}");
    let transaction = file.begin_read().map_err(|error| failed(error.into()))?;
    let queues = transaction.open_table(QUEUES).map_err(|error| failed(error.into()))?;
    for row in queues.iter().map_err(|error| failed(error.into()))? {
        let (number, queue) = row.map_err(|error| failed(error.into()))?;
        let (name, expires) = queue.value();
        index.queue(number.value(), name, expires);
    }
    let messages = transaction.open_table(MESSAGES).map_err(|error| failed(error.into()))?;
    for row in messages.iter().map_err(|error| failed(error.into()))? {
        let (id, record) = row.map_err(|error| failed(error.into()))?;
        let (head, ..) =
            Head::split(record.value()).map_err(|error| format!("message {}: {error}", id.value()))?;
        index.message(id.value(), &head);
    }
    Ok(())
}

fn write<'a>(
    file: &Database,
    batch: u64,
    writes: &[Write],
    inserts: impl Iterator<Item = Insert<'a>>,
) -> Result<(), redb::Error> {
    let transaction = file.begin_write()?;
    {
        let mut queues = transaction.open_table(QUEUES)?;
        let mut messages = transaction.open_table(MESSAGES)?;
        let mut bodies = transaction.open_table(BODIES)?;
        for write in writes {
            match write {
                Write::Remove { id } => remove(&mut messages, &mut bodies, *id)?,
                Write::Move { id, to, queue, death, bare: false } => {
                    relocate(&mut messages, *id, *to, *queue, death.as_ref())?;
                }
                Write::Move { id, to, queue, death, bare: true } => {
                    bury(&mut messages, &mut bodies, *id, *to, *queue, death.as_ref())?;
                }
                Write::Declare { number, name, expires } => {
                    queues.insert(number, (name.as_str(), *expires))?;
                }
                Write::Delete { number, ids } => {
                    for id in ids {
                        remove(&mut messages, &mut bodies, *id)?;
                    }
                    queues.remove(number)?;
                }
            }
        }
        for Insert { id, record, body } in inserts {
            messages.insert(id, record)?;
            if let Some(body) = body {
                bodies.insert(id, body)?;
            }
        }
        transaction.open_table(META)?.insert(BATCH, batch)?;
    }
    Ok(transaction.commit()?)
}

fn remove(
    messages: &mut Table<'_, u64, &'static [u8]>,
    bodies: &mut Table<'_, u64, &'static [u8]>,
    id: u64,
) -> Result<(), redb::Error> {
    let body_id = messages.remove(id)?.and_then(|record| Some(Head::split(record.value()).ok()?.0.body_id));
    if let Some(body_id @ 1..) = body_id {
        bodies.remove(body_id)?;
    }
    Ok(())
}

fn relocate(
    messages: &mut Table<'_, u64, &'static [u8]>,
    id: u64,
    to: u64,
    queue: u32,
    death: Option<&Death>,
) -> Result<(), redb::Error> {
    let moved = match messages.remove(id)? {
        Some(record) => moved_record(record.value(), queue, death)
            .map_err(|error| StorageError::Corrupted(format!("message {id}: {error}")))?,
        None => return Ok(()),
    };
    messages.insert(to, moved.as_slice())?;
    Ok(())
}

/// Moves what can be saved of a message that cannot be read.
fn bury(
    messages: &mut Table<'_, u64, &'static [u8]>,
    bodies: &mut Table<'_, u64, &'static [u8]>,
    id: u64,
    to: u64,
    queue: u32,
    death: Option<&Death>,
) -> Result<(), redb::Error> {
    let about = {
        let record = messages.get(id)?;
        let about = record.as_ref().and_then(|record| Some(Head::split(record.value()).ok()?.1));
        let saved = about.and_then(|about| Content::new(about, Bytes::new()).ok()).unwrap_or_default();
        record::describe(&saved.message, death)
    };
    remove(messages, bodies, id)?;
    let about_bytes = u32::try_from(about.len()).unwrap_or(u32::MAX);
    messages.insert(to, Head { queue, about_bytes, ..Head::default() }.record(&about, &[]).as_slice())?;
    Ok(())
}

fn moved_record(record: &[u8], queue: u32, death: Option<&Death>) -> Result<Vec<u8>, record::Malformed> {
    let (head, about, body) = Head::split(record)?;
    let died = match death {
        Some(death) => Some(record::describe(&Content::new(about, Bytes::new())?.message, Some(death))),
        None => None,
    };
    let about = died.as_deref().unwrap_or(about);
    let about_bytes = u32::try_from(about.len()).unwrap_or(u32::MAX);
    Ok(Head { queue, next: 0, due: 0, about_bytes, ..head }.record(about, body))
}

fn read(file: &Database, ids: &[u64]) -> Result<Vec<Result<Content, String>>, redb::Error> {
    let transaction = file.begin_read()?;
    let messages = transaction.open_table(MESSAGES)?;
    let bodies = transaction.open_table(BODIES)?;
    let mut contents = Vec::with_capacity(ids.len());
    for &id in ids {
        let Some(record) = messages.get(id)? else {
            contents.push(Err("it is not there".to_owned()));
            continue;
        };
        let content = match Head::split(record.value()) {
            Err(error) => Err(error.to_string()),
            Ok((Head { body_id: 0, .. }, about, body)) => {
                Content::new(about, Bytes::copy_from_slice(body)).map_err(|error| error.to_string())
            }
            Ok((head, about, _)) => match bodies.get(head.body_id)? {
                Some(body) => Content::new(about, Bytes::copy_from_slice(body.value()))
                    .map_err(|error| error.to_string()),
                None => Err("its body is not there".to_owned()),
            },
        };
        contents.push(content);
    }
    Ok(contents)
}
