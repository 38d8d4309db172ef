//! What a dispatcher goes by while shared state is away: the lanes as last seen, the lanes' queues as it sees them
//! itself, and the jobs that it counted itself. Pure but for the clock it is handed.
//!
//! The figures are rougher, not wrong in kind: f_t counts this dispatcher's share only, and room is slots less what
//! waits in the lane's queue, so that a lane is kept fed and its queue short.

use schemas::{LaneSet, ModelName};
use state::facts::{Batch, Facts, LaneFacts, MODEL_MEMORY, ModelFacts};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// The stamp of facts that are guessed: none that shared state ever gives.
const STAMP: u64 = u64::MAX;
/// Most models counted; beyond it the ones asked for longest ago are forgotten.
const MODELS_MAX: usize = 10_000;

/// The last facts, and counts of our own.
#[derive(Debug)]
pub(crate) struct Estimate {
    window: Duration,
    lanes: [LaneFacts; 3],
    models: HashMap<ModelName, Counted>,
    /// The look that `claimed` counts from.
    look: u64,
    claimed: [u32; 3],
}

/// What this dispatcher last saw of the lanes' queues itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Tells two looks apart that saw the same.
    pub(crate) number: u64,
    /// Jobs that waited in each lane's queue.
    pub(crate) ready: [u64; 3],
}

/// Jobs of one model, in the running window and the one before.
#[derive(Clone, Copy, Debug)]
struct Counted {
    since: Instant,
    now: u32,
    before: u32,
    lanes: LaneSet,
    /// When shared state last said that some worker has it.
    known: Option<Instant>,
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
        Self { window, lanes: Default::default(), models: HashMap::new(), look: 0, claimed: [0; 3] }
    }

    /// Shared state answered: remember, for when it does not.
    pub(crate) fn learn(&mut self, batch: &Batch, facts: &Facts, now: Instant) {
        self.lanes = facts.lanes;
        // What was claimed there is not claimed here.
        self.claimed = [0; 3];
        self.count(batch, now);
        for ((model, _), seen) in batch.models.iter().zip(&facts.models) {
            if let Some(counted) = self.models.get_mut(model) {
                counted.lanes = seen.lanes;
                if seen.known {
                    counted.known = Some(now);
                }
            }
        }
    }

    /// Shared state did not answer: facts from what is known here.
    pub(crate) fn guess(&mut self, batch: &Batch, look: Look, now: Instant) -> Facts {
        self.count(batch, now);
        if look.number != self.look {
            self.look = look.number;
            self.claimed = [0; 3];
        } else if let Some(unused) = batch.unused.filter(|unused| unused.stamp == STAMP) {
            for (claimed, places) in self.claimed.iter_mut().zip(unused.places) {
                *claimed = claimed.saturating_sub(places);
            }
        }
        let mut lanes = self.lanes;
        for (at, lane) in lanes.iter_mut().enumerate() {
            let waiting = u32::try_from(look.ready[at]).unwrap_or(u32::MAX);
            let room = lane.slots.saturating_sub(waiting).saturating_sub(self.claimed[at]);
            lane.granted = room.min(batch.claim[at]);
            lane.left = room - lane.granted;
            self.claimed[at] = self.claimed[at].saturating_add(lane.granted);
        }
        let everywhere = schemas::Lane::ALL.into_iter().collect();
        let models = batch.models.iter().map(|(model, _)| match self.models.get(model) {
            Some(counted) if counted.known.is_some() => {
                let per_second = counted.per_second(now, self.window);
                ModelFacts { per_second, lanes: counted.lanes, known: true }
            }
            // Not seen before: a worker will say so if it does not know it.
            _ => ModelFacts { per_second: 0.0, lanes: everywhere, known: true },
        });
        Facts { models: models.collect(), ended: vec![None; batch.ids.len()], lanes, stamp: STAMP }
    }

    /// Whether some worker had `model` not long ago. Where shared state has lost its data, others are about to name it
    /// again.
    pub(crate) fn knew(&self, model: &ModelName, now: Instant) -> bool {
        let known = self.models.get(model).and_then(|counted| counted.known);
        known.is_some_and(|at| now.duration_since(at) < MODEL_MEMORY)
    }

    fn count(&mut self, batch: &Batch, now: Instant) {
        if self.models.len() + batch.models.len() > MODELS_MAX {
            let window = self.window;
            self.models.retain(|_, counted| now.duration_since(counted.since) < window);
            if self.models.len() + batch.models.len() > MODELS_MAX {
                self.models.clear();
            }
        }
        let fresh = Counted { since: now, now: 0, before: 0, lanes: LaneSet::EMPTY, known: None };
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
    use state::facts::Unused;

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
        let mut guess = |number, waiting, unused| {
            let look = Look { number, ready: [0, 0, waiting] };
            *estimate.guess(&Batch { unused, ..batch(1) }, look, now).lane(Lane::Local)
        };
        assert_eq!(guess(1, 1, None).granted, 3);
        assert_eq!(guess(1, 1, None).granted, 0, "claimed already");
        let unused = Some(Unused { stamp: STAMP, places: [0, 0, 2] });
        assert_eq!(guess(1, 1, unused).granted, 2, "given back");
        assert_eq!(guess(2, 1, None).granted, 3, "a new look voids claims, even one that sees the same");
        assert_eq!(guess(3, 0, None).granted, 4);
        assert_eq!(estimate.guess(&batch(1), Look::default(), now).lane(Lane::Docker).granted, 0);
        estimate.learn(&batch(1), &facts(), now);
        let again = estimate.guess(&batch(1), Look::default(), now);
        assert_eq!(again.lane(Lane::Local).granted, 4, "state was back in between");
    }

    #[test]
    fn a_model_is_known_for_a_while_after_state_forgot_it() {
        let (now, model) = (Instant::now(), ModelName::new("m").unwrap());
        let mut estimate = Estimate::new(WINDOW);
        estimate.learn(&batch(1), &facts(), now);
        let forgotten = Facts { models: vec![ModelFacts::default()], ..facts() };
        estimate.learn(&batch(1), &forgotten, now + WINDOW);
        assert!(estimate.knew(&model, now + MODEL_MEMORY - WINDOW));
        assert!(!estimate.knew(&model, now + MODEL_MEMORY));
        assert!(!estimate.knew(&ModelName::new("other").unwrap(), now));
    }

    #[test]
    fn frequency_slides_and_fades() {
        let now = Instant::now();
        let mut estimate = Estimate::new(WINDOW);
        estimate.learn(&batch(100), &facts(), now);
        let rate = |estimate: &mut Estimate, at: Instant| {
            estimate.guess(&batch(0), Look::default(), at).models[0].per_second
        };
        assert!((rate(&mut estimate, now) - 10.0).abs() < 1e-9);
        assert!((rate(&mut estimate, now + WINDOW) - 10.0).abs() < 1e-9);
        assert!((rate(&mut estimate, now + WINDOW + WINDOW / 2) - 5.0).abs() < 1e-9);
        assert!(rate(&mut estimate, now + WINDOW * 4) < 1e-9);
    }
}
