//! Who lives, what room the lanes have, and which lanes run a model. Plain data with an explicit clock: the embedded
//! adapter is this registry behind a lock, and the Redis adapter's scripts compute the same.
//!
//! `now` is the time since any fixed point, the same for every call.

use crate::facts::{LaneFacts, ModelFacts, Sample, Unused};
use crate::room::{Observed, room};
use schemas::ModelName;
use schemas::heartbeat::{DispatcherReport, WorkerReport};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// What room takes to know of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Jobs it can run at once.
    pub(crate) slots: u32,
    /// Jobs it runs or has taken.
    pub(crate) busy: u32,
    /// Jobs completed per thousand seconds: whole numbers, so that sums of any order agree to the last bit.
    pub(crate) completed_milli: u64,
}

impl Load {
    /// Rates above this are not believed.
    const COMPLETED_PER_S_MAX: f64 = 1e9;

    /// The load that `report` tells of.
    pub(crate) fn of(report: &WorkerReport) -> Self {
        let rate = report.completed_per_s.clamp(0.0, Self::COMPLETED_PER_S_MAX);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded, and no number is 0"
        )]
        let completed_milli = (rate * 1000.0).round() as u64;
        Self { slots: report.slots, busy: report.running.saturating_add(report.prefetched), completed_milli }
    }
}

/// Something that was said, and until when it holds.
#[derive(Clone, Debug)]
struct Said<T> {
    what: T,
    at: Duration,
    expires: Duration,
}

/// The registry.
#[derive(Debug)]
pub(crate) struct Registry {
    workers: HashMap<String, Said<WorkerReport>>,
    dispatchers: BTreeMap<String, Said<DispatcherReport>>,
    /// When a worker that has left since last said that it runs this model.
    remembered: HashMap<ModelName, Duration>,
    model_memory: Duration,
    sample: Sample,
    stamp: u64,
    claimed: [u32; 3],
}

impl Registry {
    /// A registry of nobody, which knows a model for `model_memory` after it was last named.
    pub(crate) fn new(model_memory: Duration) -> Self {
        Self {
            workers: HashMap::new(),
            dispatchers: BTreeMap::new(),
            remembered: HashMap::new(),
            model_memory,
            sample: Sample::default(),
            stamp: 0,
            claimed: [0; 3],
        }
    }

    /// A worker lives.
    pub(crate) fn report_worker(&mut self, report: &WorkerReport, keep: Duration, now: Duration) {
        let said = Said { what: report.clone(), at: now, expires: now.saturating_add(keep) };
        if let Some(before) = self.workers.insert(report.worker.clone(), said)
            && before.what.models != report.models
        {
            self.remember(&before);
        }
        self.drop_stale(now);
    }

    /// A worker has left.
    pub(crate) fn forget_worker(&mut self, worker: &str) {
        if let Some(gone) = self.workers.remove(worker) {
            self.remember(&gone);
        }
    }

    /// The workers alive, by lane and name.
    pub(crate) fn workers(&self, now: Duration) -> Vec<WorkerReport> {
        let mut alive: Vec<_> = self.alive(now).cloned().collect();
        alive.sort_by(|one, other| (one.lane, &one.worker).cmp(&(other.lane, &other.worker)));
        alive
    }

    /// A dispatcher lives.
    pub(crate) fn report_dispatcher(&mut self, report: &DispatcherReport, keep: Duration, now: Duration) {
        self.dispatchers.retain(|_, said| said.expires > now);
        let said = Said { what: report.clone(), at: now, expires: now.saturating_add(keep) };
        self.dispatchers.insert(report.dispatcher.clone(), said);
    }

    /// A dispatcher has left.
    pub(crate) fn forget_dispatcher(&mut self, dispatcher: &str) {
        self.dispatchers.remove(dispatcher);
    }

    /// The dispatchers alive, by name.
    pub(crate) fn dispatchers(&self, now: Duration) -> Vec<DispatcherReport> {
        self.dispatchers.values().filter(|said| said.expires > now).map(|said| said.what.clone()).collect()
    }

    /// The lanes' queues were looked at: all claims are void.
    pub(crate) fn sample(&mut self, sample: &Sample) {
        self.sample = *sample;
        self.stamp += 1;
        self.claimed = [0; 3];
    }

    /// Takes back `unused` places, claims up to `claim` in each lane, and says what each lane has then, and under
    /// which stamp.
    pub(crate) fn place(
        &mut self,
        claim: [u32; 3],
        unused: Option<Unused>,
        now: Duration,
    ) -> ([LaneFacts; 3], u64) {
        if let Some(unused) = unused
            && unused.stamp == self.stamp
        {
            for (claimed, places) in self.claimed.iter_mut().zip(unused.places) {
                *claimed = claimed.saturating_sub(places);
            }
        }
        let mut lanes = self.count(now);
        for (index, (facts, observed)) in lanes.iter_mut().enumerate() {
            let room = room(observed, self.sample.interval, self.sample.target_max);
            facts.granted = room.min(claim[index]);
            facts.left = room - facts.granted;
            self.claimed[index] = self.claimed[index].saturating_add(facts.granted);
        }
        (lanes.map(|(facts, _)| facts), self.stamp)
    }

    /// What is known of `model`, but for its frequency.
    pub(crate) fn model(&self, model: &ModelName, now: Duration) -> ModelFacts {
        let mut facts = ModelFacts::default();
        for said in self.workers.values().filter(|said| said.what.models.contains(model)) {
            if said.expires > now {
                facts.known = true;
                if takes_jobs(&said.what) {
                    facts.lanes = facts.lanes.with(said.what.lane);
                }
            }
            facts.known |= said.at.saturating_add(self.model_memory) > now;
        }
        facts.known |=
            self.remembered.get(model).is_some_and(|at| at.saturating_add(self.model_memory) > now);
        facts
    }

    fn alive(&self, now: Duration) -> impl Iterator<Item = &WorkerReport> {
        self.workers.values().filter(move |said| said.expires > now).map(|said| &said.what)
    }

    /// Sums over the workers that live and take jobs.
    fn count(&self, now: Duration) -> [(LaneFacts, Observed); 3] {
        let mut lanes = [(LaneFacts::default(), Observed::default()); 3];
        let mut completed_milli = [0u64; 3];
        for report in self.alive(now).filter(|report| takes_jobs(report)) {
            let (load, lane) = (Load::of(report), report.lane.index());
            let (facts, observed) = &mut lanes[lane];
            facts.workers += 1;
            observed.slots = observed.slots.saturating_add(load.slots);
            observed.busy = observed.busy.saturating_add(load.busy);
            completed_milli[lane] = completed_milli[lane].saturating_add(load.completed_milli);
        }
        for (lane, (facts, observed)) in lanes.iter_mut().enumerate() {
            facts.slots = observed.slots;
            #[expect(clippy::cast_precision_loss, reason = "sums of bounded rates are below 2^53")]
            let completed_milli = completed_milli[lane] as f64;
            observed.completed_per_s = completed_milli / 1000.0;
            observed.ready = self.sample.ready[lane];
            observed.claimed = self.claimed[lane];
        }
        lanes
    }

    fn remember(&mut self, gone: &Said<WorkerReport>) {
        for model in &gone.what.models {
            let at = self.remembered.entry(model.clone()).or_default();
            *at = (*at).max(gone.at);
        }
    }

    /// Drops what holds no more, so that names that come and go do not pile up.
    fn drop_stale(&mut self, now: Duration) {
        let silent: Vec<_> = self.workers.extract_if(|_, said| said.expires <= now).collect();
        for (_, said) in &silent {
            self.remember(said);
        }
        let memory = self.model_memory;
        self.remembered.retain(|_, at| at.saturating_add(memory) > now);
    }
}

/// Whether a lane can count on it: one that drains, or whose every slot is held by a run that does not end, lives and
/// serves nothing.
pub(crate) fn takes_jobs(report: &WorkerReport) -> bool {
    !report.draining && report.slots > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::heartbeat::Resources;
    use schemas::wire::WIRE_VERSION;
    use schemas::{Lane, LaneSet, UnixMillis};

    const KEEP: Duration = Duration::from_secs(2);
    const MEMORY: Duration = Duration::from_secs(600);
    const LOCAL: usize = Lane::Local.index();

    fn at(s: u64) -> Duration {
        Duration::from_secs(1_000 + s)
    }

    fn model(name: &str) -> ModelName {
        ModelName::new(name).unwrap()
    }

    fn worker(name: &str, slots: u32, models: &[&str]) -> WorkerReport {
        WorkerReport {
            version: WIRE_VERSION,
            worker: name.to_owned(),
            lane: Lane::Local,
            queue: "lane.local".to_owned(),
            slots,
            running: 0,
            prefetched: 0,
            completed_per_s: 0.0,
            models: models.iter().map(|name| model(name)).collect(),
            draining: false,
            abandoned: 0,
            last_failure: None,
            backend: None,
            resources: Resources::default(),
            started: UnixMillis(0),
            build: "test".to_owned(),
        }
    }

    fn registry() -> Registry {
        Registry::new(MEMORY)
    }

    #[test]
    fn room_is_claimed_given_back_and_freed_by_a_sample() {
        let mut registry = registry();
        registry.report_worker(&worker("a", 4, &["m"]), KEEP, at(0));
        let (lanes, stamp) = registry.place([0, 0, 3], None, at(0));
        assert_eq!(lanes[LOCAL], LaneFacts { workers: 1, slots: 4, granted: 3, left: 1 });
        let unused = Some(Unused { stamp, places: [0, 0, 2] });
        let (lanes, _) = registry.place([0, 0, 9], unused, at(0));
        assert_eq!(lanes[LOCAL], LaneFacts { workers: 1, slots: 4, granted: 3, left: 0 });
        registry.sample(&Sample { ready: [0, 0, 1], ..Sample::default() });
        let (lanes, newer) = registry.place([0, 0, 0], unused, at(0));
        assert_eq!(lanes[LOCAL].left, 3, "the sample had voided what is given back");
        assert_ne!(stamp, newer);
    }

    #[test]
    fn a_silent_or_draining_worker_gives_no_room_and_no_lane_but_its_model_is_known() {
        let mut registry = registry();
        registry.report_worker(&worker("a", 4, &["m"]), KEEP, at(0));
        let local = LaneSet::EMPTY.with(Lane::Local);
        assert_eq!(
            registry.model(&model("m"), at(1)),
            ModelFacts { per_second: 0.0, lanes: local, known: true }
        );
        let silent = ModelFacts { per_second: 0.0, lanes: LaneSet::EMPTY, known: true };
        assert_eq!(registry.model(&model("m"), at(2)), silent);
        assert_eq!(registry.place([0; 3], None, at(2)).0[LOCAL], LaneFacts::default());
        registry.report_worker(&WorkerReport { draining: true, ..worker("a", 4, &["m"]) }, KEEP, at(3));
        assert_eq!(registry.model(&model("m"), at(3)), silent);
        assert_eq!(registry.place([0; 3], None, at(3)).0[LOCAL], LaneFacts::default());
        assert_eq!(registry.workers(at(3)).len(), 1, "it still lives");
    }

    #[test]
    fn a_model_is_known_for_a_while_however_its_worker_left() {
        let leaves: [fn(&mut Registry); 3] = [
            |registry| registry.forget_worker("a"),
            |registry| registry.report_worker(&worker("a", 1, &["other"]), KEEP, at(1)),
            |registry| registry.report_worker(&worker("b", 1, &[]), KEEP, at(5)),
        ];
        for leave in leaves {
            let mut registry = registry();
            registry.report_worker(&worker("a", 1, &["m"]), KEEP, at(0));
            leave(&mut registry);
            assert!(registry.model(&model("m"), at(599)).known);
            assert!(!registry.model(&model("m"), at(600)).known);
            registry.report_worker(&worker("c", 1, &[]), KEEP, at(700));
            assert!(!registry.remembered.contains_key(&model("m")), "not kept for ever");
        }
    }

    #[test]
    fn a_name_is_one_worker_wherever_it_serves() {
        let mut registry = registry();
        registry.report_worker(&worker("a", 4, &["m"]), KEEP, at(0));
        registry.report_worker(&WorkerReport { lane: Lane::Docker, ..worker("a", 2, &["m"]) }, KEEP, at(0));
        let (lanes, _) = registry.place([0; 3], None, at(0));
        assert_eq!((lanes[LOCAL].slots, lanes[Lane::Docker.index()].slots), (0, 2));
        assert_eq!(registry.workers(at(0)).len(), 1);
    }

    #[test]
    fn odd_rates_are_bounded() {
        for (rate, milli) in
            [(f64::NAN, 0), (-1.0, 0), (0.0004, 0), (12.5, 12_500), (f64::INFINITY, 1_000_000_000_000)]
        {
            assert_eq!(
                Load::of(&WorkerReport { completed_per_s: rate, ..worker("a", 1, &[]) }).completed_milli,
                milli
            );
        }
    }
}
