//! The file of the embedded state: its tables, and what one transaction does to them. Knows no thread and no clock.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `format` | [`FORMAT`] |
//! | `records` | job id | when it expires, then the encoded result |
//! | `records_by_expiry` | (when it expires, job id) | |
//! | `starts` | job id | when they expire, then (attempt, how often noted) again and again |
//! | `starts_by_expiry` | (when they expire, job id) | |
//! | `dead` | job id | when it died, then the encoded entry |
//! | `dead_by_death` | (when it died, job id) | |
//!
//! Points in time are milliseconds since the Unix epoch; numbers in values are little-endian. What has expired is
//! as good as gone for every reader and writer, whether it has been swept yet or not.
//! Invariant: a table and its index agree after every transaction.

#[cfg(test)]
mod tests;

use crate::{Finish, Record, Start};
use bytes::Bytes;
use redb::{
    ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, TableError,
    WriteTransaction,
};
use schemas::{JobId, UnixMillis};
use std::time::Duration;

/// Layout of the file. A reader refuses a newer one.
pub(super) const FORMAT: u64 = 1;
/// About what a noted start takes on its way to the disk.
pub(super) const START_BYTES: usize = 32;
/// About what a record takes on top of its result.
pub(super) const RECORD_BYTES: usize = 64;

type Id = &'static [u8; 16];
type ByTime = TableDefinition<'static, (u64, Id), ()>;
type ById = TableDefinition<'static, Id, &'static [u8]>;

const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const RECORDS: Stamped = Stamped::new("records", "records_by_expiry");
const STARTS: Stamped = Stamped::new("starts", "starts_by_expiry");
const DEAD: Stamped = Stamped::new("dead", "dead_by_death");

/// Two tables that are one: values by id, each beginning with a point in time, and the ids by that time.
struct Stamped {
    by_id: ById,
    by_time: ByTime,
}

impl Stamped {
    const fn new(by_id: &'static str, by_time: &'static str) -> Self {
        Self { by_id: TableDefinition::new(by_id), by_time: TableDefinition::new(by_time) }
    }

    fn open<'t>(&self, transaction: &'t WriteTransaction) -> Result<StampedTable<'t>, TableError> {
        Ok(StampedTable {
            by_id: transaction.open_table(self.by_id)?,
            by_time: transaction.open_table(self.by_time)?,
        })
    }
}

/// The two tables, open for writing.
struct StampedTable<'t> {
    by_id: Table<'t, Id, &'static [u8]>,
    by_time: Table<'t, (u64, Id), ()>,
}

impl StampedTable<'_> {
    fn put(&mut self, id: &JobId, time: u64, value: &[u8]) -> redb::Result {
        self.take(id)?;
        let mut place = self.by_id.insert_reserve(id.as_bytes(), 8 + value.len())?;
        let (stamp, rest) = place.as_mut().split_at_mut(8);
        stamp.copy_from_slice(&time.to_le_bytes());
        rest.copy_from_slice(value);
        drop(place);
        self.by_time.insert((time, id.as_bytes()), ())?;
        Ok(())
    }

    fn take(&mut self, id: &JobId) -> redb::Result {
        let time = self.by_id.remove(id.as_bytes())?.map(|value| split(value.value()).0);
        if let Some(time) = time {
            self.by_time.remove((time, id.as_bytes()))?;
        }
        Ok(())
    }

    /// The id whose time comes first.
    fn first(&self) -> redb::Result<Option<(u64, JobId)>> {
        Ok(self.by_time.first()?.map(|(key, _)| {
            let (time, id) = key.value();
            (time, JobId::from_bytes(*id))
        }))
    }

    /// Takes out at most `most` whose time has come by `now`; says how many.
    fn sweep(&mut self, now: u64, most: usize) -> redb::Result<usize> {
        for swept in 0..most {
            match self.first()? {
                Some((time, id)) if time <= now => self.take(&id)?,
                _ => return Ok(swept),
            }
        }
        Ok(most)
    }
}

/// A value's point in time, and the rest of it.
fn split(value: &[u8]) -> (u64, &[u8]) {
    value.split_first_chunk().map_or((0, value), |(time, rest)| (u64::from_le_bytes(*time), rest))
}

/// What is kept of `value` at `now`, if it has not expired.
fn unexpired(value: &[u8], now: u64) -> Option<&[u8]> {
    let (expires, rest) = split(value);
    (expires > now).then_some(rest)
}

fn fetch(
    records: &impl ReadableTable<Id, &'static [u8]>,
    ids: &[JobId],
    now: u64,
) -> redb::Result<Vec<Option<Bytes>>> {
    let copy = |id: &JobId| {
        let found = records.get(id.as_bytes())?;
        Ok(found.and_then(|value| unexpired(value.value(), now).map(Bytes::copy_from_slice)))
    };
    ids.iter().map(copy).collect()
}

/// Makes a new file ready, or says which format an old one has.
pub(super) fn prepare(transaction: &WriteTransaction) -> Result<u64, TableError> {
    let mut meta = transaction.open_table(META)?;
    let found = meta.get("format")?.map(|format| format.value());
    if let Some(found) = found {
        return Ok(found);
    }
    meta.insert("format", FORMAT)?;
    for table in [RECORDS, STARTS, DEAD] {
        table.open(transaction)?;
    }
    Ok(FORMAT)
}

/// Everything, open for writing.
pub(super) struct Tables<'t> {
    records: StampedTable<'t>,
    starts: StampedTable<'t>,
    dead: StampedTable<'t>,
    dead_max: u64,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction, dead_max: u64) -> Result<Self, TableError> {
        Ok(Self {
            records: RECORDS.open(transaction)?,
            starts: STARTS.open(transaction)?,
            dead: DEAD.open(transaction)?,
            dead_max,
        })
    }

    pub(super) fn finish(&mut self, records: &[Record], now: UnixMillis) -> redb::Result<Vec<Finish>> {
        let finish = |record: &Record| {
            self.starts.take(&record.id)?;
            let found = self.records.by_id.get(record.id.as_bytes())?;
            let standing =
                found.and_then(|value| unexpired(value.value(), now.0).map(Bytes::copy_from_slice));
            if let Some(standing) = standing {
                return Ok(Finish::Lost(standing));
            }
            self.records.put(&record.id, now.plus(record.keep).0, &record.result)?;
            Ok(Finish::Won)
        };
        records.iter().map(finish).collect()
    }

    pub(super) fn fetch(&self, ids: &[JobId], now: UnixMillis) -> redb::Result<Vec<Option<Bytes>>> {
        fetch(&self.records.by_id, ids, now.0)
    }

    pub(super) fn note_starts(
        &mut self,
        starts: &[Start],
        keep: Duration,
        now: UnixMillis,
    ) -> redb::Result<Vec<u32>> {
        let note = |start: &Start| {
            let found = self.starts.by_id.get(start.id.as_bytes())?;
            let mut notes =
                found.and_then(|value| unexpired(value.value(), now.0).map(Notes::read)).unwrap_or_default();
            let before = notes.add(start.attempt);
            self.starts.put(&start.id, now.plus(keep).0, &notes.write())?;
            Ok(before)
        };
        starts.iter().map(note).collect()
    }

    pub(super) fn bury(&mut self, entries: &[(JobId, UnixMillis, Bytes)]) -> redb::Result {
        for (id, died, entry) in entries {
            if self.dead.by_id.get(id.as_bytes())?.is_none() {
                self.dead.put(id, died.0, entry)?;
            }
        }
        while self.dead.by_id.len()? > self.dead_max {
            let Some((_, oldest)) = self.dead.first()? else { break };
            self.dead.take(&oldest)?;
        }
        Ok(())
    }

    pub(super) fn unbury(&mut self, ids: &[JobId]) -> redb::Result {
        ids.iter().try_for_each(|id| self.dead.take(id))
    }

    /// Removes at most `most` records and notes that have expired; says how many.
    pub(super) fn sweep(&mut self, now: UnixMillis, most: usize) -> redb::Result<usize> {
        let swept = self.records.sweep(now.0, most)?;
        Ok(swept + self.starts.sweep(now.0, most - swept)?)
    }
}

/// How often each attempt of a job was noted as started.
#[derive(Default)]
struct Notes(Vec<(u8, u32)>);

impl Notes {
    const BYTES: usize = 5;

    fn read(value: &[u8]) -> Self {
        let note = |note: &[u8; Self::BYTES]| {
            let [attempt, count @ ..] = *note;
            (attempt, u32::from_le_bytes(count))
        };
        Self(value.as_chunks().0.iter().map(note).collect())
    }

    fn write(&self) -> Vec<u8> {
        let note = |(attempt, count): &(u8, u32)| std::iter::once(*attempt).chain(count.to_le_bytes());
        self.0.iter().flat_map(note).collect()
    }

    /// Notes `attempt` once more; how often it was noted before.
    fn add(&mut self, attempt: u8) -> u32 {
        if let Some((_, count)) = self.0.iter_mut().find(|(noted, _)| *noted == attempt) {
            *count = count.saturating_add(1);
            return *count - 1;
        }
        self.0.push((attempt, 1));
        0
    }
}

/// What was committed last, to be read.
pub(super) struct Snapshot(ReadTransaction);

impl Snapshot {
    pub(super) fn of(transaction: ReadTransaction) -> Self {
        Self(transaction)
    }

    pub(super) fn fetch(&self, ids: &[JobId], now: UnixMillis) -> Result<Vec<Option<Bytes>>, redb::Error> {
        Ok(fetch(&self.0.open_table(RECORDS.by_id)?, ids, now.0)?)
    }

    /// A page of the dead, newest first, and how many there are.
    pub(super) fn dead(&self, offset: u64, limit: u64) -> Result<(Vec<Bytes>, u64), redb::Error> {
        let entries = self.0.open_table(DEAD.by_id)?;
        let newest_first = self.0.open_table(DEAD.by_time)?.range_owned::<(u64, Id)>(..)?.rev();
        let position = |number| usize::try_from(number).unwrap_or(usize::MAX);
        let mut page = Vec::new();
        for key in newest_first.skip(position(offset)).take(position(limit)) {
            if let Some(entry) = entries.get(key?.0.value().1)? {
                page.push(Bytes::copy_from_slice(split(entry.value()).1));
            }
        }
        Ok((page, entries.len()?))
    }

    pub(super) fn dead_entries(&self, ids: &[JobId]) -> Result<Vec<Option<Bytes>>, redb::Error> {
        let entries = self.0.open_table(DEAD.by_id)?;
        let copy = |id: &JobId| {
            let found = entries.get(id.as_bytes())?;
            Ok(found.map(|entry| Bytes::copy_from_slice(split(entry.value()).1)))
        };
        ids.iter().map(copy).collect()
    }
}
