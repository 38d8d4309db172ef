//! Who runs what: the host's bookkeeping of its instances, pure and with the clock handed in. Processes and sockets are the
//! host's.
//!
//! An instance is starting, idle or busy, and belongs to one function for life. What must hold:
//! - There are never more than [`Limits::all`] instances, nor more than [`Limits::per_function`] of one function.
//! - A busy instance is never ended to make room; an idle one of another function is, the longest idle first.
//! - Of several idle ones the most recently used is taken, so that the others grow old and end.
//! - One that is told to end is forgotten at once: it is killed, not asked.

use schemas::ModelName;
use std::collections::BTreeMap;
use std::time::Instant;

/// An instance's number; none is used twice.
pub(super) type Id = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) all: usize,
    pub(super) per_function: usize,
}

/// Where an invocation goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// To this instance, which was idle.
    Warm(Id),
    /// To a new one of this number; another may have to end for it.
    Cold { id: Id, instead_of: Option<Id> },
    /// Nowhere: so many run, which is the limit.
    Full { running: usize, of_one_function: bool },
    /// Nowhere: the host ends.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    /// Not yet asked for an event, whoever waits for it.
    Starting,
    Idle {
        since: Instant,
    },
    Busy,
}

#[derive(Debug)]
struct Instance {
    function: ModelName,
    condition: Condition,
}

/// How many instances of a function are in which condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) starting: u32,
    pub(super) idle: u32,
    pub(super) busy: u32,
}

#[derive(Debug)]
pub(super) struct Pool {
    limits: Limits,
    instances: BTreeMap<Id, Instance>,
    named: Id,
    stopped: bool,
}

impl Pool {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, instances: BTreeMap::new(), named: 0, stopped: false }
    }

    /// An instance for an invocation of `function`.
    pub(super) fn take(&mut self, function: &ModelName) -> Taken {
        if self.stopped {
            return Taken::Stopped;
        }
        if let Some(id) = self.warmest(function) {
            self.set(id, Condition::Busy);
            return Taken::Warm(id);
        }
        let of_one = self.instances.values().filter(|instance| instance.function == *function).count();
        if of_one >= self.limits.per_function {
            return Taken::Full { running: of_one, of_one_function: true };
        }
        let mut instead_of = None;
        if self.instances.len() >= self.limits.all {
            instead_of = self.longest_idle();
            match instead_of {
                Some(victim) => self.instances.remove(&victim),
                None => return Taken::Full { running: self.instances.len(), of_one_function: false },
            };
        }
        let id = self.named;
        self.named += 1;
        let instance = Instance { function: function.clone(), condition: Condition::Starting };
        self.instances.insert(id, instance);
        Taken::Cold { id, instead_of }
    }

    /// An instance has asked for an event and was given one.
    pub(super) fn busy(&mut self, id: Id) {
        self.set(id, Condition::Busy);
    }

    /// An instance has asked for an event, and there is none.
    pub(super) fn idle(&mut self, id: Id, now: Instant) {
        self.set(id, Condition::Idle { since: now });
    }

    /// Takes an instance out if it is idle; it then must end. If not, an invocation is on its way to it.
    pub(super) fn retire(&mut self, id: Id) -> bool {
        let idle =
            self.instances.get(&id).is_none_or(|found| matches!(found.condition, Condition::Idle { .. }));
        if idle {
            self.instances.remove(&id);
        }
        idle
    }

    /// An instance has ended, for whatever reason.
    pub(super) fn gone(&mut self, id: Id) {
        self.instances.remove(&id);
    }

    /// Nothing is taken from now on.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn counts(&self, function: &ModelName) -> Counts {
        let mut counts = Counts::default();
        for instance in self.instances.values().filter(|instance| instance.function == *function) {
            match instance.condition {
                Condition::Starting => counts.starting += 1,
                Condition::Idle { .. } => counts.idle += 1,
                Condition::Busy => counts.busy += 1,
            }
        }
        counts
    }

    fn set(&mut self, id: Id, condition: Condition) {
        // One that was told to end may still report.
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.condition = condition;
        }
    }

    fn warmest(&self, function: &ModelName) -> Option<Id> {
        let idle = self.idle_ones().filter(|(_, found, _)| *found == function);
        idle.max_by_key(|(id, _, since)| (*since, *id)).map(|(id, ..)| id)
    }

    fn longest_idle(&self) -> Option<Id> {
        self.idle_ones().min_by_key(|(id, _, since)| (*since, *id)).map(|(id, ..)| id)
    }

    fn idle_ones(&self) -> impl Iterator<Item = (Id, &ModelName, Instant)> {
        self.instances.iter().filter_map(|(id, instance)| match instance.condition {
            Condition::Idle { since } => Some((*id, &instance.function, since)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn name(name: &str) -> ModelName {
        ModelName::new(name).unwrap()
    }

    fn cold(taken: Taken) -> Id {
        match taken {
            Taken::Cold { id, instead_of: None } => id,
            other => panic!("{other:?}"),
        }
    }

    fn pool(all: usize, per_function: usize) -> Pool {
        Pool::new(Limits { all, per_function })
    }

    #[test]
    fn the_most_recently_used_is_taken_and_the_longest_idle_makes_room() {
        let (mut pool, now) = (pool(2, 2), Instant::now());
        let (a, b) = (name("a"), name("b"));
        let (first, second) = (cold(pool.take(&a)), cold(pool.take(&a)));
        pool.idle(second, now);
        pool.idle(first, now + Duration::from_secs(1));
        assert_eq!(pool.take(&a), Taken::Warm(first));
        pool.idle(first, now + Duration::from_secs(2));
        assert_eq!(pool.take(&b), Taken::Cold { id: 2, instead_of: Some(second) });
        assert_eq!(pool.counts(&a), Counts { idle: 1, ..Counts::default() });
        assert_eq!(pool.counts(&b), Counts { starting: 1, ..Counts::default() });
        pool.idle(second, now);
        assert_eq!(pool.counts(&a).idle, 1, "one that was told to end does not come back");
    }

    #[test]
    fn the_limits_are_told_apart() {
        let (mut pool, a, b) = (pool(2, 1), name("a"), name("b"));
        cold(pool.take(&a));
        assert_eq!(pool.take(&a), Taken::Full { running: 1, of_one_function: true });
        cold(pool.take(&b));
        assert_eq!(pool.take(&name("c")), Taken::Full { running: 2, of_one_function: false });
        pool.gone(0);
        cold(pool.take(&name("c")));
        pool.stop();
        assert_eq!(pool.take(&b), Taken::Stopped);
    }

    #[test]
    fn what_an_invocation_is_on_its_way_to_is_not_retired() {
        let (mut pool, a) = (pool(1, 1), name("a"));
        let id = cold(pool.take(&a));
        assert!(!pool.retire(id));
        pool.idle(id, Instant::now());
        assert_eq!(pool.take(&a), Taken::Warm(id));
        assert!(!pool.retire(id));
        pool.idle(id, Instant::now());
        assert!(pool.retire(id));
        assert!(pool.retire(id), "one that made room for another must end as well");
        cold(pool.take(&a));
    }

    proptest! {
        /// Whatever happens in whatever order, the limits hold and no busy instance is ended for room.
        #[test]
        fn limits_hold(steps in prop::collection::vec((0u8..5, 0u64..12), 1..200)) {
            let (mut pool, start) = (pool(4, 2), Instant::now());
            let functions = [name("a"), name("b"), name("c")];
            for (at, (step, which)) in steps.into_iter().enumerate() {
                let busy_before: Vec<Id> = pool.instances.iter()
                    .filter(|(_, i)| !matches!(i.condition, Condition::Idle { .. })).map(|(id, _)| *id).collect();
                match step {
                    0 | 1 => {
                        if let Taken::Cold { instead_of: Some(victim), .. } = pool.take(&functions[which as usize % 3]) {
                            prop_assert!(!busy_before.contains(&victim));
                        }
                    }
                    2 => pool.idle(which, start + Duration::from_millis(at as u64)),
                    3 => { pool.retire(which); }
                    _ => pool.gone(which),
                }
                prop_assert!(pool.instances.len() <= 4);
                for function in &functions {
                    let Counts { starting, idle, busy } = pool.counts(function);
                    prop_assert!(starting + idle + busy <= 2);
                }
            }
        }
    }
}
