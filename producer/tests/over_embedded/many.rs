//! Thousands of jobs through the streams.

use crate::rig::{Act, PATIENCE, Station, bounded, job, sum, sum_of, summing};
use futures_util::{StreamExt, stream};
use producer::Config;
use schemas::JobId;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const JOBS: usize = 5_000;

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn number(n: usize) -> producer::Submission {
    job(&[n as f32, 0.0, 0.0, 0.0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_jobs_have_five_thousand_results() {
    let station = Station::open().await;
    let ran = Arc::new(AtomicUsize::new(0));
    let _responder = station.respond(summing(&ran)).await;
    let config = Config { pending_max: 1_000, in_flight_max: 200, ..station.config() };
    let client = station.client_of(config).await;
    let taken = AtomicUsize::new(0);
    let source = stream::iter(0..JOBS).map(|n| {
        taken.fetch_add(1, Ordering::Relaxed);
        number(n)
    });
    let mut results = std::pin::pin!(client.run_many(source));
    let mut sums = HashMap::new();
    let mut ended = 0;
    while let Some(done) = bounded(results.next()).await {
        ended += 1;
        assert!(taken.load(Ordering::Relaxed) <= ended + 1_000, "the source is not read ahead of the limits");
        let result = done.outcome.unwrap();
        assert_eq!(done.id, Some(result.id));
        assert!(sums.insert(done.index, sum_of(&result)).is_none(), "{} came twice", done.index);
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let right = (0..JOBS).all(|n| sums[&n] == n as f32);
    assert!(right, "every result is that of its own job");
    assert_eq!(ran.load(Ordering::Relaxed), JOBS);
    assert_eq!(client.pending(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_come_as_they_are_confirmed_and_ids_can_be_waited_for() {
    let station = Station::open().await;
    let client = station.client().await;
    let submitted = client.submit_many(stream::iter((0..50).map(number)));
    let tickets: HashMap<_, _> = bounded(submitted.map(|(n, ticket)| (n, ticket.unwrap())).collect()).await;
    assert_eq!((tickets.len(), client.pending()), (50, 50));
    let enqueued = client.enqueue_many(stream::iter((50..600).map(number)));
    let ids: Vec<JobId> = bounded(enqueued.map(|(_, id)| id.unwrap()).collect()).await;

    let _responder = station.respond(|_, body| Act::Answer(sum(body))).await;
    for (n, ticket) in tickets {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let expected = n as f32;
        assert_eq!(sum_of(&bounded(ticket).await.unwrap()), expected);
    }
    let waited: HashMap<_, _> = bounded(client.wait_many(ids.clone(), PATIENCE).collect()).await;
    assert!(ids.iter().all(|id| waited[id].as_ref().unwrap().id == *id));
}
