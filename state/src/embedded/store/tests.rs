//! The tables against a model, in memory.

use super::*;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase};
use std::collections::BTreeMap;

const DEAD_MAX: u64 = 5;

fn database() -> Database {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    let transaction = database.begin_write().unwrap();
    assert_eq!(prepare(&transaction).unwrap(), FORMAT);
    transaction.commit().unwrap();
    database
}

fn change<T>(database: &Database, change: impl FnOnce(&mut Tables<'_>) -> redb::Result<T>) -> T {
    let transaction = database.begin_write().unwrap();
    let mut tables = Tables::open(&transaction, DEAD_MAX).unwrap();
    let done = change(&mut tables).unwrap();
    drop(tables);
    transaction.commit().unwrap();
    done
}

/// What a table and its index hold, which must be the same.
fn held(database: &Database, table: &Stamped) -> Vec<(u64, JobId)> {
    let read = database.begin_read().unwrap();
    let by_time = read.open_table(table.by_time).unwrap();
    let by_id = read.open_table(table.by_id).unwrap();
    let key = |entry: redb::Result<_>| {
        let (key, _): (redb::AccessGuard<'_, (u64, Id)>, redb::AccessGuard<'_, ()>) = entry.unwrap();
        (key.value().0, JobId::from_bytes(*key.value().1))
    };
    let indexed: Vec<_> = by_time.range::<(u64, Id)>(..).unwrap().map(key).collect();
    assert_eq!(indexed.len() as u64, by_id.len().unwrap());
    for (time, id) in &indexed {
        let value = by_id.get(id.as_bytes()).unwrap().expect("what is indexed is there");
        assert_eq!(split(value.value()).0, *time);
    }
    indexed
}

#[test]
fn tables_and_indexes_agree_through_any_sequence() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let database = database();
    let ids: Vec<_> = (0..12).map(|_| JobId::new()).collect();
    let mut records: BTreeMap<JobId, (u64, Bytes)> = BTreeMap::new();
    let mut clock = 1_000;
    for step in 0..600u32 {
        clock += random.u64(..40);
        let now = UnixMillis(clock);
        let id = ids[random.usize(..ids.len())];
        let keep = Duration::from_millis(random.u64(1..300));
        match random.u8(..6) {
            0 | 1 => {
                let result = Bytes::from(vec![7; random.usize(..200)]);
                let record = Record { id, result: result.clone(), keep };
                let finished = change(&database, |tables| tables.finish(&[record], now));
                let standing = records.get(&id).filter(|(expires, _)| *expires > clock).cloned();
                let expected = standing.map_or(Finish::Won, |(_, result)| Finish::Lost(result));
                assert_eq!(finished[0], expected, "seed {seed}, step {step}");
                if expected == Finish::Won {
                    records.insert(id, (now.plus(keep).0, result));
                }
            }
            2 => {
                let start = Start { id, attempt: random.u8(1..3) };
                change(&database, |tables| tables.note_starts(&[start, start], keep, now));
            }
            3 => change(&database, |tables| {
                tables.bury(&[(id, UnixMillis(random.u64(..9)), Bytes::from_static(b"entry"))])
            }),
            4 => change(&database, |tables| tables.unbury(&[id])),
            _ => {
                let most = random.usize(..4);
                let gone = change(&database, |tables| tables.sweep(now, most));
                assert!(gone <= most, "a step is bounded");
            }
        }
        let found = Snapshot::of(database.begin_read().unwrap()).fetch(&ids, now).unwrap();
        for (id, found) in ids.iter().zip(found) {
            let expected = records.get(id).filter(|(expires, _)| *expires > clock);
            assert_eq!(found.as_ref(), expected.map(|(_, result)| result), "seed {seed}, step {step}");
        }
        held(&database, &RECORDS);
        held(&database, &STARTS);
        assert!(held(&database, &DEAD).len() as u64 <= DEAD_MAX);
    }
    let end = UnixMillis(clock + 1_000);
    while change(&database, |tables| tables.sweep(end, 3)) == 3 {}
    assert!(held(&database, &RECORDS).is_empty() && held(&database, &STARTS).is_empty(), "all are swept");
}

#[test]
fn a_sweep_takes_what_has_expired_oldest_first_and_nothing_else() {
    let database = database();
    let ids: Vec<_> = (0..10).map(|_| JobId::new()).collect();
    let record = |(n, id): (u64, &JobId)| Record {
        id: *id,
        result: Bytes::new(),
        keep: Duration::from_millis(10 * (n + 1)),
    };
    let records: Vec<_> = (0..).zip(&ids).map(record).collect();
    change(&database, |tables| tables.finish(&records, UnixMillis(0)));
    assert_eq!(change(&database, |tables| tables.sweep(UnixMillis(50), 3)), 3);
    assert_eq!(held(&database, &RECORDS)[0], (40, ids[3]));
    assert_eq!(change(&database, |tables| tables.sweep(UnixMillis(50), 30)), 2);
    assert_eq!(change(&database, |tables| tables.sweep(UnixMillis(50), 30)), 0);
    assert_eq!(held(&database, &RECORDS).len(), 5);
}
