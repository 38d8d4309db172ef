//! Runs about to begin.

use super::samples::{KEEP, SHORT, record};
use super::{Fixture, open, until};
use crate::Start;
use schemas::JobId;

/// Each note tells how many came before it for the same job and attempt, in one call or many.
pub async fn starts_are_counted_per_job_and_attempt(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let (a, b) = (JobId::new(), JobId::new());
    let start = |id, attempt| Start { id, attempt };
    let first = [start(a, 1), start(b, 1), start(a, 2), start(a, 1)];
    assert_eq!(state.note_starts(&first, KEEP).await.unwrap(), [0, 0, 0, 1]);
    assert_eq!(state.note_starts(&first, KEEP).await.unwrap(), [2, 1, 1, 3]);
    assert_eq!(state.note_starts(&[start(b, 255)], KEEP).await.unwrap(), [0]);
}

/// Once a job has ended nobody asks how often it began, whoever won the record.
pub async fn starts_are_dropped_with_the_record(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let (ended, other) = (Start { id: JobId::new(), attempt: 1 }, Start { id: JobId::new(), attempt: 1 });
    for _ in 0..2 {
        state.note_starts(&[ended, other], KEEP).await.unwrap();
        state.finish(&[record(ended.id, "done", KEEP)]).await.unwrap();
    }
    assert_eq!(state.note_starts(&[ended, other], KEEP).await.unwrap(), [0, 2]);
}

/// Notes are forgotten after their time, which each new note of the job begins anew.
pub async fn starts_expire(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let (short, long) = (Start { id: JobId::new(), attempt: 1 }, Start { id: JobId::new(), attempt: 1 });
    state.note_starts(&[long], SHORT).await.unwrap();
    let renewed = state.note_starts(&[long], KEEP).await.unwrap();
    // Asking for a note would renew it: a record as short-lived tells when the time is up.
    state.note_starts(&[short], SHORT).await.unwrap();
    let witness = JobId::new();
    state.finish(&[record(witness, "witness", SHORT)]).await.unwrap();
    until("as much time has passed", || async { state.fetch(&[witness]).await.unwrap() == [None] }).await;
    assert_eq!(state.note_starts(&[short, long], KEEP).await.unwrap(), [0, renewed[0] + 1]);
}
