//! How fast an adapter is: `cargo run --release -p state --example throughput -- embedded DIR` or `-- redis URL`, and
//! then, if only some kinds of call are meant, a part of their name.
//!
//! Each line is one kind of call, from one task and from several at once: how many were made, how many of them failed,
//! calls per second, and how long one took.

#![expect(clippy::print_stdout, reason = "prints what it measures")]

use bytes::Bytes;
use schemas::heartbeat::{Resources, WorkerReport};
use schemas::{JobId, Lane, ModelName, UnixMillis};
use state::embedded::Embedded;
use state::redis::Redis;
use state::{Batch, Record, Sample, Start, State};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const WINDOW: Duration = Duration::from_secs(10);
const KEEP: Duration = Duration::from_secs(60);
const MEASURED: Duration = Duration::from_secs(3);
const BATCH: usize = 64;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (adapter, place) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    let state: Arc<dyn State> = match adapter.as_str() {
        "redis" => {
            let prefix = format!("sl-throughput-{:x}", fastrand::u64(..));
            let config = state::redis::Config { prefix, ..state::redis::Config::new(place) };
            Redis::open(config).await.expect("Redis opens")
        }
        "embedded" => {
            Embedded::open(state::embedded::Config::new(place)).await.expect("the embedded state opens")
        }
        _ => panic!("say `embedded DIR` or `redis URL`"),
    };
    state.sample(&Sample::default()).await.expect("a sample is stored");
    for n in 0..100 {
        state.report_worker(&report(n, 0), KEEP).await.expect("a report is stored");
    }
    println!(
        "{:<36}{:>6}{:>9}{:>8}{:>9}{:>9}{:>9}{:>9}",
        "call", "tasks", "calls", "failed", "calls/s", "p50 µs", "p99 µs", "max µs"
    );
    for tasks in [1, 16] {
        for models in [1, 4, 64] {
            let name = format!("observe {BATCH} jobs of {models} models");
            measure(&state, &name, tasks, move |state, _| async move { observe(&*state, models).await })
                .await;
        }
        measure(&state, "report_worker", tasks, |state, n| async move {
            state.report_worker(&report(n % 100, n), KEEP).await.is_ok()
        })
        .await;
        for records in [1, BATCH, 1000] {
            let name = format!("finish {records} records of 1 KiB");
            measure(&state, &name, tasks, move |state, _| async move { finish(&*state, records).await })
                .await;
        }
        measure(&state, "note_starts of 64", tasks, |state, _| async move {
            let starts: Vec<_> = (0..BATCH).map(|_| Start { id: JobId::new(), attempt: 1 }).collect();
            state.note_starts(&starts, KEEP).await.is_ok()
        })
        .await;
    }
    state.close().await;
}

fn model(n: usize) -> ModelName {
    ModelName::new(&format!("model-{n}")).expect("a valid name")
}

fn report(worker: usize, changing: usize) -> WorkerReport {
    WorkerReport {
        version: 1,
        worker: format!("worker-{worker}"),
        lane: Lane::ALL[worker % 3],
        queue: "lane".to_owned(),
        slots: 8,
        running: u32::try_from(changing % 8).expect("below 8"),
        prefetched: 0,
        completed_per_s: 100.0,
        models: (0..10).map(model).collect(),
        draining: false,
        abandoned: 0,
        last_failure: None,
        backend: None,
        resources: Resources::default(),
        started: UnixMillis(0),
        build: "bench".to_owned(),
    }
}

async fn observe(state: &dyn State, models: usize) -> bool {
    let jobs = u32::try_from(BATCH / models).expect("at most 64");
    let batch = Batch {
        models: (0..models).map(|n| (model(n), jobs)).collect(),
        ids: (0..BATCH).map(|_| JobId::new()).collect(),
        claim: [1; 3],
        unused: None,
        window: WINDOW,
    };
    state.observe(&batch).await.is_ok()
}

async fn finish(state: &dyn State, records: usize) -> bool {
    let result = Bytes::from(vec![7; 1024]);
    let records: Vec<_> =
        (0..records).map(|_| Record { id: JobId::new(), result: result.clone(), keep: KEEP }).collect();
    state.finish(&records).await.is_ok()
}

async fn measure<F: Future<Output = bool> + Send + 'static>(
    state: &Arc<dyn State>,
    name: &str,
    tasks: usize,
    call: impl Fn(Arc<dyn State>, usize) -> F + Send + Sync + 'static,
) {
    if !std::env::args().nth(3).is_none_or(|part| name.contains(&part)) {
        return;
    }
    let call = Arc::new(call);
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for task in 0..tasks {
        let (state, call) = (Arc::clone(state), Arc::clone(&call));
        callers.spawn(async move {
            let (mut took, mut failed) = (Vec::new(), 0);
            while started.elapsed() < MEASURED {
                let before = Instant::now();
                failed += usize::from(!call(Arc::clone(&state), task + took.len() * tasks).await);
                took.push(before.elapsed());
            }
            (took, failed)
        });
    }
    let (took, failed): (Vec<_>, Vec<_>) = callers.join_all().await.into_iter().unzip();
    let (mut took, failed) = (took.concat(), failed.into_iter().sum::<usize>());
    let elapsed = started.elapsed().as_secs_f64();
    took.sort();
    let at = |share: usize| took[(took.len() * share / 1000).min(took.len() - 1)].as_micros();
    #[expect(clippy::cast_precision_loss, reason = "a count of calls")]
    let rate = took.len() as f64 / elapsed;
    println!(
        "{name:<36}{tasks:>6}{:>9}{failed:>8}{rate:>9.0}{:>9}{:>9}{:>9}",
        took.len(),
        at(500),
        at(990),
        at(1000)
    );
}
