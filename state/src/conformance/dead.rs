//! The index of dead jobs.

use super::samples::dead_entry;
use super::{Fixture, fresh_name, open};
use crate::{Limits, State};
use schemas::JobId;
use schemas::dead::DeadEntry;

async fn page(state: &dyn State, offset: u64, limit: u64) -> (Vec<u64>, u64) {
    let (entries, total) = state.dead(offset, limit).await.unwrap();
    (entries.iter().map(|entry| entry.died.0).collect(), total)
}

/// Pages are cut from one list, newest death first, whatever the order of burying; each says how many there are.
pub async fn the_dead_are_listed_newest_first(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    assert_eq!(page(&*state, 0, 10).await, (vec![], 0));
    let mut entries: Vec<_> = (1..=25).map(|died| dead_entry(died * 1000)).collect();
    fastrand::shuffle(&mut entries);
    for some in entries.chunks(7) {
        state.bury(some).await.unwrap();
    }
    assert_eq!(page(&*state, 0, 3).await, (vec![25_000, 24_000, 23_000], 25));
    assert_eq!(page(&*state, 3, 2).await, (vec![22_000, 21_000], 25));
    assert_eq!(page(&*state, 23, 10).await, (vec![2_000, 1_000], 25));
    assert_eq!(page(&*state, 25, 10).await, (vec![], 25));
    assert_eq!(page(&*state, u64::MAX, u64::MAX).await, (vec![], 25));
    assert_eq!(page(&*state, 0, 0).await, (vec![], 25));
    assert_eq!(page(&*state, 0, u64::MAX).await.0.len(), 25);
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.died));
    assert_eq!(state.dead(0, 25).await.unwrap().0, entries, "whole entries, as they were buried");
}

/// An entry that is there already stays as it is.
pub async fn burying_twice_changes_nothing(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let entries = [dead_entry(1), dead_entry(2)];
    state.bury(&entries).await.unwrap();
    state.bury(&entries).await.unwrap();
    let later = DeadEntry { died: schemas::UnixMillis(3), attempts: 9, ..entries[0].clone() };
    state.bury(&[later.clone(), later]).await.unwrap();
    let [one, two] = entries;
    assert_eq!(state.dead(0, 10).await.unwrap(), (vec![two, one], 2));
}

/// Entries are found by id in the order asked, and those taken out are gone.
pub async fn the_dead_are_found_by_id_and_taken_out(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let entries: Vec<_> = (0..5).map(dead_entry).collect();
    state.bury(&entries).await.unwrap();
    let asked = [entries[3].id, JobId::new(), entries[0].id, entries[3].id];
    let [three, zero] = [Some(entries[3].clone()), Some(entries[0].clone())];
    assert_eq!(state.dead_entries(&asked).await.unwrap(), [three.clone(), None, zero, three]);
    state.unbury(&[entries[3].id, JobId::new(), entries[4].id]).await.unwrap();
    assert_eq!(page(&*state, 0, 10).await, (vec![2, 1, 0], 3));
    assert_eq!(state.dead_entries(&[entries[3].id]).await.unwrap(), [None]);
    state.bury(&entries[3..4]).await.unwrap();
    assert_eq!(page(&*state, 0, 1).await, (vec![3], 4), "it can come back");
}

/// There are never more entries than the limit: the oldest make room.
pub async fn the_index_of_the_dead_is_bounded(fixture: &dyn Fixture) {
    let limits = Limits { dead_max: 10, ..Limits::default() };
    let state = fixture.open(&fresh_name(), limits).await;
    let entries: Vec<_> = (0..36).map(dead_entry).collect();
    for some in entries.chunks(6) {
        state.bury(some).await.unwrap();
        assert!(page(&*state, 0, 0).await.1 <= 10);
    }
    assert_eq!(page(&*state, 0, 100).await, ((26..36).rev().collect(), 10));
    state.bury(&entries[..1]).await.unwrap();
    assert_eq!(page(&*state, 0, 100).await, ((26..36).rev().collect(), 10), "too old to get in");
    assert_eq!(state.dead_entries(&[entries[25].id]).await.unwrap(), [None], "gone altogether");
    state.unbury(&[entries[35].id]).await.unwrap();
    state.bury(&entries[25..26]).await.unwrap();
    assert_eq!(page(&*state, 0, 100).await, ((25..35).rev().collect(), 10));
}
