//! Opening, closing, time, and batches of every size.

use super::samples::{KEEP, WINDOW, claiming, counting, dead_entry, model, observe, record, worker};
use super::{Fixture, fresh_name, open, until};
use crate::facts::Batch;
use crate::{Finish, Limits, Start, StateError};
use bytes::Bytes;
use schemas::{JobId, Lane, UnixMillis};

/// A thousand of everything goes in one call.
pub async fn a_thousand_go_in_one_call(fixture: &dyn Fixture) {
    const MANY: usize = 1000;
    let state = open(fixture).await;
    let ids: Vec<_> = (0..MANY).map(|_| JobId::new()).collect();
    let starts: Vec<_> = ids.iter().map(|id| Start { id: *id, attempt: 1 }).collect();
    assert_eq!(state.note_starts(&starts, KEEP).await.unwrap(), [0; MANY]);
    let records: Vec<_> = ids.iter().map(|id| record(*id, id.to_string(), KEEP)).collect();
    assert!(state.finish(&records).await.unwrap().iter().all(|finish| *finish == Finish::Won));
    let results: Vec<_> = ids.iter().map(|id| Some(Bytes::from(id.to_string()))).collect();
    assert_eq!(state.fetch(&ids).await.unwrap(), results);
    assert_eq!(state.note_starts(&starts, KEEP).await.unwrap(), [0; MANY], "dropped with the records");
    let models = (0..MANY).map(|n| (model(&format!("m{n}")), 600)).collect();
    let batch = Batch { models, ids, window: WINDOW, ..Batch::default() };
    let seen = observe(&*state, &batch).await;
    assert_eq!(seen.ended, results);
    assert_eq!(seen.models.iter().filter(|model| model.per_second == 1.0).count(), MANY);
    let entries: Vec<_> = (0..MANY as u64).map(dead_entry).collect();
    state.bury(&entries).await.unwrap();
    let dead: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(state.dead_entries(&dead).await.unwrap().into_iter().flatten().count(), MANY);
    let (newest_first, total) = state.dead(0, MANY as u64).await.unwrap();
    assert_eq!((newest_first.into_iter().rev().collect::<Vec<_>>(), total), (entries, MANY as u64));
    state.unbury(&dead).await.unwrap();
    assert_eq!(state.dead(0, 1).await.unwrap(), (vec![], 0));
    let names: Vec<_> = (0..MANY).map(|n| format!("m{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    state.report_worker(&worker("w", Lane::Local, 1, &names), KEEP).await.unwrap();
    let batch = Batch { models: batch.models.into_iter().map(|(model, _)| (model, 0)).collect(), ..batch };
    assert!(observe(&*state, &batch).await.models.iter().all(|model| model.known && !model.lanes.is_empty()));
}

/// A call about nothing is answered with nothing.
pub async fn empty_calls_have_empty_answers(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let seen = observe(&*state, &Batch::default()).await;
    assert!(seen.models.is_empty() && seen.ended.is_empty());
    assert_eq!(state.finish(&[]).await.unwrap(), []);
    assert_eq!(state.fetch(&[]).await.unwrap(), Vec::<Option<Bytes>>::new());
    assert_eq!(state.note_starts(&[], KEEP).await.unwrap(), Vec::<u32>::new());
    assert_eq!(state.dead_entries(&[]).await.unwrap(), []);
    state.bury(&[]).await.unwrap();
    state.unbury(&[]).await.unwrap();
    assert_eq!(state.workers().await.unwrap(), []);
    assert_eq!(state.dispatchers().await.unwrap(), []);
}

/// Records, noted starts and the dead are there again after the process that wrote them is gone.
pub async fn what_must_last_outlives_a_restart(fixture: &dyn Fixture) {
    let name = fresh_name();
    let mut state = fixture.open(&name, Limits::default()).await;
    let (done, begun, entry) = (JobId::new(), Start { id: JobId::new(), attempt: 2 }, dead_entry(5));
    state.finish(&[record(done, "done", KEEP)]).await.unwrap();
    state.note_starts(&[begun], KEEP).await.unwrap();
    state.bury(std::slice::from_ref(&entry)).await.unwrap();
    for restarts in 1..=2 {
        state.close().await;
        state = fixture.open(&name, Limits::default()).await;
        let lost = Finish::Lost(Bytes::from_static(b"done"));
        assert_eq!(state.finish(&[record(done, "again", KEEP)]).await.unwrap(), [lost]);
        assert_eq!(state.note_starts(&[begun], KEEP).await.unwrap(), [restarts]);
        assert_eq!(state.dead(0, 10).await.unwrap(), (vec![entry.clone()], 1));
    }
}

/// Two states of different names know nothing of each other.
pub async fn names_are_apart(fixture: &dyn Fixture) {
    let (one, other) = (open(fixture).await, open(fixture).await);
    let id = JobId::new();
    one.finish(&[record(id, "one", KEEP)]).await.unwrap();
    one.note_starts(&[Start { id, attempt: 1 }], KEEP).await.unwrap();
    one.bury(&[dead_entry(1)]).await.unwrap();
    one.report_worker(&worker("w", Lane::Local, 1, &["m"]), KEEP).await.unwrap();
    one.lead("role", "one", KEEP).await.unwrap();
    observe(&*one, &counting(&[("m", 5)], WINDOW)).await;
    assert_eq!(other.fetch(&[id]).await.unwrap(), [None]);
    assert_eq!(other.note_starts(&[Start { id, attempt: 1 }], KEEP).await.unwrap(), [0]);
    assert_eq!(other.dead(0, 10).await.unwrap(), (vec![], 0));
    assert_eq!(other.workers().await.unwrap(), []);
    assert!(other.lead("role", "other", KEEP).await.unwrap());
    let seen = observe(&*other, &counting(&[("m", 0)], WINDOW)).await;
    assert_eq!(seen.models, [crate::ModelFacts::default()]);
    assert_eq!(observe(&*other, &claiming([9; 3])).await.lanes, [crate::LaneFacts::default(); 3]);
}

/// The clock tells real time and goes on.
pub async fn the_clock_goes_forward(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let first = state.now().await.unwrap();
    assert!(first > UnixMillis(1_700_000_000_000), "{first:?} is long ago");
    until("the clock has moved on", || async {
        let now = state.now().await.unwrap();
        assert!(now >= first, "{now:?} after {first:?}");
        now > first
    })
    .await;
}

/// After closing every call fails as unavailable, and closing again does no harm.
pub async fn a_closed_state_says_so(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    state.close().await;
    let id = JobId::new();
    let errors = [
        state.observe(&Batch::default()).await.err(),
        state.sample(&crate::Sample::default()).await.err(),
        state.lead("role", "holder", KEEP).await.err(),
        state.report_worker(&worker("w", Lane::Local, 1, &[]), KEEP).await.err(),
        state.workers().await.err(),
        state.finish(&[record(id, "done", KEEP)]).await.err(),
        state.fetch(&[id]).await.err(),
        state.note_starts(&[Start { id, attempt: 1 }], KEEP).await.err(),
        state.bury(&[dead_entry(1)]).await.err(),
        state.dead(0, 1).await.err(),
        state.dead_entries(&[id]).await.err(),
        state.unbury(&[id]).await.err(),
        state.now().await.err(),
    ];
    for (call, error) in errors.into_iter().enumerate() {
        assert!(matches!(error, Some(StateError::Unreachable { .. })), "call {call}: {error:?}");
    }
    state.close().await;
}
