//! Room in the lanes, and claims on it.

use super::samples::{KEEP, WINDOW, claiming, observe, worker};
use super::{Fixture, open};
use crate::State;
use crate::facts::{Batch, LaneFacts, Sample, Unused};
use crate::room::{Observed, room};
use schemas::Lane;
use schemas::heartbeat::WorkerReport;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const LOCAL: usize = Lane::Local.index();

/// The same facts, kept by the crate's own formula.
#[derive(Default)]
struct Model {
    workers: HashMap<String, WorkerReport>,
    sample: Sample,
    stamp: u64,
    claimed: [u32; 3],
}

impl Model {
    fn place(&mut self, claim: [u32; 3], unused: Option<Unused>) -> [LaneFacts; 3] {
        if let Some(unused) = unused.filter(|unused| unused.stamp == self.stamp) {
            for (claimed, places) in self.claimed.iter_mut().zip(unused.places) {
                *claimed = claimed.saturating_sub(places);
            }
        }
        Lane::ALL.map(|lane| {
            let index = lane.index();
            let serving: Vec<_> = self
                .workers
                .values()
                .filter(|report| report.lane == lane && crate::registry::takes_jobs(report))
                .collect();
            let observed = Observed {
                slots: serving.iter().map(|report| report.slots).sum(),
                busy: serving.iter().map(|report| report.running + report.prefetched).sum(),
                completed_per_s: serving.iter().map(|report| report.completed_per_s).sum(),
                ready: self.sample.ready[index],
                claimed: self.claimed[index],
            };
            let room = room(&observed, self.sample.interval, self.sample.target_max);
            let granted = room.min(claim[index]);
            self.claimed[index] += granted;
            let workers = u32::try_from(serving.len()).expect("few workers");
            LaneFacts { workers, slots: observed.slots, granted, left: room - granted }
        })
    }
}

fn random_report(random: &mut fastrand::Rng) -> WorkerReport {
    let lane = Lane::ALL[random.usize(..3)];
    WorkerReport {
        running: random.u32(..6),
        prefetched: random.u32(..6),
        // Eighths are the same in binary and in thousandths, so that sums in any order agree.
        completed_per_s: f64::from(random.u32(..4000)) / 8.0,
        draining: random.u8(..5) == 0,
        ..worker(&format!("w{}", random.u8(..12)), lane, random.u32(..12), &["m"])
    }
}

/// Through any sequence of reports, departures, samples, claims and returns, the numbers are those of
/// [`crate::room`], to the last place.
pub async fn room_is_what_the_formula_says(fixture: &dyn Fixture) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..8 {
        let state = open(fixture).await;
        let mut model = Model::default();
        let mut unused = None;
        for step in 0..150 {
            match random.u8(..10) {
                0..4 => {
                    let report = random_report(&mut random);
                    state.report_worker(&report, KEEP).await.unwrap();
                    model.workers.insert(report.worker.clone(), report);
                }
                4 => {
                    let gone = format!("w{}", random.u8(..12));
                    state.forget_worker(&gone).await.unwrap();
                    model.workers.remove(&gone);
                }
                5 => {
                    model.sample = Sample {
                        ready: [random.u64(..8), random.u64(..8), random.u64(..8)],
                        interval: Duration::from_micros(random.u64(..300_000)),
                        target_max: random.u32(..300),
                    };
                    state.sample(&model.sample).await.unwrap();
                    model.claimed = [0; 3];
                    model.stamp = observe(&*state, &claiming([0; 3])).await.stamp;
                }
                _ => {
                    let claim = [random.u32(..9), random.u32(..40), random.u32(..9)];
                    let batch = Batch { claim, unused, window: WINDOW, ..Batch::default() };
                    let seen = observe(&*state, &batch).await;
                    assert_eq!(seen.lanes, model.place(claim, unused), "seed {seed}, step {step}");
                    let places = seen.lanes.map(|lane| random.u32(..=lane.granted));
                    unused = random.bool().then_some(Unused { stamp: seen.stamp, places });
                }
            }
        }
    }
}

/// Observers that claim at the same time get, together, what there is room for, and all of it.
pub async fn observers_never_claim_more_than_the_room(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    let quick = WorkerReport { completed_per_s: 100.0, ..worker("w", Lane::Local, 100, &[]) };
    state.report_worker(&quick, KEEP).await.unwrap();
    state.report_worker(&worker("d", Lane::Docker, 7, &[]), KEEP).await.unwrap();
    let sample = Sample { ready: [0; 3], interval: Duration::from_secs(1), target_max: 50 };
    state.sample(&sample).await.unwrap();
    let mut observers = JoinSet::new();
    for _ in 0..8 {
        let state = Arc::clone(&state);
        observers.spawn(async move {
            let mut granted = [0; 3];
            for _ in 0..10 {
                let seen = observe(&*state, &claiming([1, 1, 3])).await;
                for (sum, lane) in granted.iter_mut().zip(seen.lanes) {
                    *sum += lane.granted;
                }
            }
            granted
        });
    }
    let granted =
        observers.join_all().await.into_iter().reduce(|a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]]);
    assert_eq!(granted, Some([0, 7, 150]));
    assert_eq!(observe(&*state, &claiming([9; 3])).await.lanes.map(|lane| lane.granted), [0; 3]);
}

async fn give_back(state: &dyn State, stamp: u64, places: [u32; 3]) -> LaneFacts {
    let unused = Some(Unused { stamp, places });
    observe(state, &Batch { unused, window: WINDOW, ..Batch::default() }).await.lanes[LOCAL]
}

/// Places given back are there again, for the same call already; those of a claim that a sample has voided are not
/// given back a second time, and nobody gives back more than was claimed.
pub async fn unused_places_come_back_once(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    state.report_worker(&worker("w", Lane::Local, 10, &[]), KEEP).await.unwrap();
    state.sample(&Sample::default()).await.unwrap();
    let claimed = observe(&*state, &claiming([0, 0, 8])).await;
    assert_eq!(claimed.lanes[LOCAL], LaneFacts { workers: 1, slots: 10, granted: 8, left: 2 });
    let unused = Some(Unused { stamp: claimed.stamp, places: [0, 0, 5] });
    let again = Batch { claim: [0, 0, 9], unused, window: WINDOW, ..Batch::default() };
    assert_eq!(observe(&*state, &again).await.lanes[LOCAL].granted, 7);
    state.sample(&Sample::default()).await.unwrap();
    let fresh = observe(&*state, &claiming([0, 0, 4])).await;
    assert_eq!(fresh.lanes[LOCAL].left, 6);
    assert_eq!(give_back(&*state, claimed.stamp, [0, 0, 3]).await.left, 6, "voided by the sample");
    assert_eq!(give_back(&*state, fresh.stamp, [0, 0, 1]).await.left, 7);
    assert_eq!(give_back(&*state, fresh.stamp, [0, 0, 100]).await.left, 10, "never more than there is");
}

/// After a sample all that counts against room is what the sample saw; its stamp is new.
pub async fn a_sample_voids_all_claims(fixture: &dyn Fixture) {
    let state = open(fixture).await;
    state.report_worker(&worker("w", Lane::Local, 10, &[]), KEEP).await.unwrap();
    let first = observe(&*state, &claiming([0, 0, 10])).await;
    assert_eq!(first.lanes[LOCAL].granted, 10, "room is known before the first sample");
    let mut stamps = vec![first.stamp];
    for ready in [4, 0, 12] {
        state.sample(&Sample { ready: [0, 0, ready], ..Sample::default() }).await.unwrap();
        let seen = observe(&*state, &claiming([0, 0, 100])).await;
        assert_eq!(u64::from(seen.lanes[LOCAL].granted), 10u64.saturating_sub(ready));
        assert_eq!(seen.lanes[LOCAL].left, 0);
        assert!(!stamps.contains(&seen.stamp), "{} is not new", seen.stamp);
        stamps.push(seen.stamp);
    }
}
