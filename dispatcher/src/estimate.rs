//! What a dispatcher goes by while shared state is away: the lanes as last seen, the lanes' queues as it sees them
//! itself, and the jobs that it counted itself. Pure but for the clock it is handed.
//!
//! The figures are rougher, not wrong in kind: f_t counts this dispatcher's share only, and room is slots less what
//! waits in the lane's queue, so that a lane is kept fed and its queue short.

use schemas::{LaneSet, ModelName};
use state::facts::{Batch, Facts, LaneFacts, ModelFacts};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Most models counted; beyond it the ones asked for longest ago are forgotten.
const MODELS_MAX: usize = 10_000;

/// The last facts, and counts of our own.
#[derive(Debug)]
pub(crate) struct Estimate {
    window: Duration,
    lanes: [LaneFacts; 3],
    models: HashMap<ModelName, Counted>,
    /// The sample that `claimed` counts from.
    sampled: [u64; 3],
    claimed: [u32; 3],
}

/// Jobs of one model, in the running window and the one before.
#[derive(Clone, Copy, Debug)]
struct Counted {
    since: Instant,
    now: u32,
    before: u32,
    lanes: LaneSet,
    known: bool,
}

impl Counted {
    fn roll(&mut self, now: Instant, window: Duration) {
        let age = now.duration_since(self.since);
        if age >= window {
            self.before = if age < window * 2 { self.now } else { 0 };
            self.now = 0;
            self.since = now;
        }
    }

    /// The window slides over the two counts: as much of the old one counts as still lies in it.
    fn per_second(&self, now: Instant, window: Duration) -> f64 {
        let share = 1.0 - (now.duration_since(self.since).as_secs_f64() / window.as_secs_f64()).min(1.0);
        (f64::from(self.before) * share + f64::from(self.now)) / window.as_secs_f64()
    }
}

impl Estimate {
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, lanes: Default::default(), models: HashMap::new(), sampled: [0; 3], claimed: [0; 3] }
    }

    /// Shared state answered: remember, for when it does not.
    pub(crate) fn learn(&mut self, batch: &Batch, facts: &Facts, now: Instant) {
        self.lanes = facts.lanes;
        self.count(batch, now);
        for ((model, _), seen) in batch.models.iter().zip(&facts.models) {
            if let Some(counted) = self.models.get_mut(model) {
                counted.lanes = seen.lanes;
                counted.known = seen.known;
            }
        }
    }

    /// Shared state did not answer: facts from what is known here.
    pub(crate) fn guess(&mut self, batch: &Batch, sampled: [u64; 3], now: Instant) -> Facts {
        self.count(batch, now);
        if sampled != self.sampled {
            self.sampled = sampled;
            self.claimed = [0; 3];
        }
        let mut lanes = self.lanes;
        for (at, lane) in lanes.iter_mut().enumerate() {
            let waiting = u32::try_from(sampled[at]).unwrap_or(u32::MAX);
            let room = lane.slots.saturating_sub(waiting).saturating_sub(self.claimed[at]);
            lane.granted = room.min(batch.claim[at]);
            lane.left = room - lane.granted;
            self.claimed[at] = self.claimed[at].saturating_add(lane.granted);
        }
        let everywhere = schemas::Lane::ALL.into_iter().collect();
        let models = batch.models.iter().map(|(model, _)| match self.models.get(model) {
            Some(counted) if counted.known => {
                let per_second = counted.per_second(now, self.window);
                ModelFacts { per_second, lanes: counted.lanes, known: true }
            }
            // Not seen before: a worker will say so if it does not know it.
            _ => ModelFacts { per_second: 0.0, lanes: everywhere, known: true },
        });
        Facts { models: models.collect(), ended: vec![None; batch.ids.len()], lanes, stamp: 0 }
    }

    fn count(&mut self, batch: &Batch, now: Instant) {
        if self.models.len() + batch.models.len() > MODELS_MAX {
            let window = self.window;
            self.models.retain(|_, counted| now.duration_since(counted.since) < window);
            if self.models.len() + batch.models.len() > MODELS_MAX {
                self.models.clear();
            }
        }
        let fresh = Counted { since: now, now: 0, before: 0, lanes: LaneSet::EMPTY, known: false };
        for (model, jobs) in &batch.models {
            let counted = self.models.entry(model.clone()).or_insert(fresh);
            counted.roll(now, self.window);
            counted.now = counted.now.saturating_add(*jobs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Lane;

    const WINDOW: Duration = Duration::from_secs(10);

    fn batch(jobs: u32) -> Batch {
        Batch { models: vec![(ModelName::new("m").unwrap(), jobs)], claim: [100; 3], ..Batch::default() }
    }

    fn facts() -> Facts {
        let mut lanes = [LaneFacts::default(); 3];
        lanes[Lane::Local.index()] = LaneFacts { workers: 1, slots: 4, granted: 4, left: 0 };
        let models =
            vec![ModelFacts { per_second: 1.0, lanes: LaneSet::EMPTY.with(Lane::Local), known: true }];
        Facts { models, ended: vec![], lanes, stamp: 1 }
    }

    #[test]
    fn room_is_slots_less_what_waits_and_what_was_claimed() {
        let now = Instant::now();
        let mut estimate = Estimate::new(WINDOW);
        estimate.learn(&batch(1), &facts(), now);
        let local = |facts: Facts| *facts.lane(Lane::Local);
        assert_eq!(local(estimate.guess(&batch(1), [0, 0, 1], now)).granted, 3);
        assert_eq!(local(estimate.guess(&batch(1), [0, 0, 1], now)).granted, 0, "claimed already");
        assert_eq!(local(estimate.guess(&batch(1), [0, 0, 0], now)).granted, 4, "a new look voids claims");
        assert_eq!(estimate.guess(&batch(1), [0, 0, 0], now).lane(Lane::Docker).granted, 0);
    }

    #[test]
    fn frequency_slides_and_fades() {
        let now = Instant::now();
        let mut estimate = Estimate::new(WINDOW);
        estimate.learn(&batch(100), &facts(), now);
        let rate =
            |estimate: &mut Estimate, at: Instant| estimate.guess(&batch(0), [0; 3], at).models[0].per_second;
        assert!((rate(&mut estimate, now) - 10.0).abs() < 1e-9);
        assert!((rate(&mut estimate, now + WINDOW) - 10.0).abs() < 1e-9);
        assert!((rate(&mut estimate, now + WINDOW + WINDOW / 2) - 5.0).abs() < 1e-9);
        assert!(rate(&mut estimate, now + WINDOW * 4) < 1e-9);
    }
}
