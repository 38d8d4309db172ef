//! How jobs ended.

use super::samples::{KEEP, SHORT, observe, record};
use super::{Fixture, open, until};
use crate::facts::Batch;
use crate::{Finish, Record};
use bytes::Bytes;
use schemas::JobId;
use std::sync::Arc;
use tokio::task::JoinSet;

/// The first record of a job stands, whatever comes later, in the same call or another.
pub async fn the_first_record_wins(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let (a, b) = (JobId::new(), JobId::new());
    let first = [record(a, "first", KEEP), record(b, "b", KEEP), record(a, "second", KEEP)];
    let lost = || Finish::Lost(Bytes::from_static(b"first"));
    assert_eq!(state.finish(&first).await.unwrap(), [Finish::Won, Finish::Won, lost()]);
    assert_eq!(state.finish(&[record(a, "third", KEEP)]).await.unwrap(), [lost()]);
    assert_eq!(state.finish(&[record(a, "first", KEEP)]).await.unwrap(), [lost()], "even the same again");
    assert_eq!(state.fetch(&[a]).await.unwrap(), [Some(Bytes::from_static(b"first"))]);
}

/// Of many tasks that finish the same jobs at the same time exactly one wins each, and all the others are told what
/// the winner wrote.
pub async fn many_tasks_that_finish_one_job_find_one_winner(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let ids: Vec<_> = (0..40).map(|_| JobId::new()).collect();
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let (state, mut ids) = (Arc::clone(&state), ids.clone());
        fastrand::shuffle(&mut ids);
        tasks.spawn(async move {
            let mine: Vec<_> = ids.iter().map(|id| record(*id, format!("{task} {id}"), KEEP)).collect();
            let mut found = Vec::new();
            for some in mine.chunks(5) {
                found.extend(state.finish(some).await.unwrap());
            }
            let own = mine.into_iter().map(|record: Record| (record.id, record.result));
            own.zip(found).map(|((id, own), finish)| (id, own, finish)).collect::<Vec<_>>()
        });
    }
    let found: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let standing = state.fetch(&ids).await.unwrap();
    for (id, standing) in ids.iter().zip(standing) {
        let standing = standing.expect("it was recorded");
        let of_this = || found.iter().filter(|(of, ..)| of == id);
        let winners: Vec<_> = of_this().filter(|(.., finish)| *finish == Finish::Won).collect();
        assert_eq!(winners.len(), 1, "{id}");
        assert_eq!(winners[0].1, standing, "what stands is what the winner wrote");
        let told = |finish: &Finish| *finish == Finish::Won || *finish == Finish::Lost(standing.clone());
        assert!(of_this().all(|(.., finish)| told(finish)), "{id}");
    }
}

/// A record is gone once its time is up, one by one, and then the job's next record is the first.
pub async fn a_record_expires(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let (short, long) = (JobId::new(), JobId::new());
    state.finish(&[record(short, "short", SHORT), record(long, "long", KEEP)]).await.unwrap();
    until("the short record is gone", || async { state.fetch(&[short]).await.unwrap() == [None] }).await;
    let batch = Batch { ids: vec![short, long], window: KEEP, ..Batch::default() };
    let ended = observe(&*state, &batch).await.ended;
    assert_eq!(ended, [None, Some(Bytes::from_static(b"long"))]);
    assert_eq!(state.finish(&[record(short, "again", KEEP)]).await.unwrap(), [Finish::Won]);
    assert_eq!(state.fetch(&[short]).await.unwrap(), [Some(Bytes::from_static(b"again"))]);
}

/// Records come back in the order asked, by a fetch and along with a batch, the unknown as nothing.
pub async fn ended_jobs_are_told_in_order(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let ids: Vec<_> = (0..20).map(|_| JobId::new()).collect();
    let odd: Vec<_> = ids.iter().skip(1).step_by(2).map(|id| record(*id, id.to_string(), KEEP)).collect();
    state.finish(&odd).await.unwrap();
    let mut asked: Vec<_> = ids.iter().copied().enumerate().collect();
    asked.push((1, ids[1]));
    fastrand::shuffle(&mut asked);
    let expected: Vec<_> =
        asked.iter().map(|(at, id)| (at % 2 == 1).then(|| Bytes::from(id.to_string()))).collect();
    let asked: Vec<_> = asked.into_iter().map(|(_, id)| id).collect();
    assert_eq!(state.fetch(&asked).await.unwrap(), expected);
    let batch = Batch { ids: asked, window: KEEP, ..Batch::default() };
    assert_eq!(observe(&*state, &batch).await.ended, expected);
}

/// A result is bytes: any bytes, none, and many.
pub async fn a_result_comes_back_byte_for_byte(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let results = [
        Bytes::from_iter(0..=255u8),
        Bytes::new(),
        Bytes::from_static(b"\r\n$-1\r\n"),
        Bytes::from((0..1_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()),
    ];
    let records: Vec<_> = results.iter().map(|result| record(JobId::new(), result.clone(), KEEP)).collect();
    let ids: Vec<_> = records.iter().map(|record| record.id).collect();
    assert!(state.finish(&records).await.unwrap().iter().all(|finish| *finish == Finish::Won));
    let again: Vec<_> = ids.iter().map(|id| record(*id, "other", KEEP)).collect();
    let standing = state.finish(&again).await.unwrap();
    assert_eq!(standing, results.clone().map(Finish::Lost));
    assert_eq!(state.fetch(&ids).await.unwrap(), results.map(Some));
}
