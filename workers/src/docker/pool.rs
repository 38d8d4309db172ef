//! Which container serves a task, when one is started and which one makes room. Pure: events in, orders out, an
//! explicit clock; the containers are others' to start and remove.
//!
//! A task goes to a container of its model that has a free slot, the most recently used first, so that the others
//! fall idle. If there is none, one is started while there are fewer than `containers_max`; else the least recently
//! used idle one is removed for it. Where its model has containers that are all full, a task first waits
//! `patience` for a slot of theirs; after the same time a task that no idle container can make room for has the
//! least recently used busy one *closed*: it takes no more tasks and is removed when its last run is over, so that
//! no model is kept out by another's steady load. None of this happens before the image of the model is known to be
//! there: a container that could not be started sends none away.
//!
//! Invariants: containers of every state, those on their way out included, are at most `containers_max`; no
//! container has more runs than `slots_each`; none with a run is removed unless it is dead; every ticket is served or
//! failed at most once, and forgotten then.

use schemas::{Failure, FailureKind, ModelName};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// A container, for as long as the pool knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(u64);

/// A task that waits for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// What bounds the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) containers_max: u32,
    pub(super) slots_each: u32,
    pub(super) patience: Duration,
    /// Longest wait for a slot.
    pub(super) wait_max: Duration,
    /// How long a model whose container would not start is left alone; doubles up to [`REST_MAX`].
    pub(super) rest: Duration,
}

/// Longest time a model is left alone.
const REST_MAX: Duration = Duration::from_secs(30);
/// So many failed starts in a row are no bad luck: from then on a task that is turned away has had its attempt.
const STARTS_FORGIVEN: u32 = 3;

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Being created, or not ready yet.
    Starting,
    /// Takes tasks.
    Serving,
    /// Takes no more tasks and is removed when its last run is over.
    Closing,
    /// Being removed.
    Leaving,
}

#[derive(Debug)]
struct Container {
    model: ModelName,
    stage: Stage,
    running: u32,
    /// When a task was last given to it, or it became ready.
    used: Instant,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    model: ModelName,
    since: Instant,
}

/// A model whose container would not start.
#[derive(Debug)]
struct Fault {
    failure: Failure,
    until: Instant,
    times: u32,
}

/// What is known of a model's image.
#[derive(Debug)]
enum Image {
    /// It is being looked for, fetched or made.
    Sought,
    /// It is there, by this name.
    There(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// See to it that the image of `model` is there.
    Seek {
        model: ModelName,
    },
    Start {
        key: Key,
        model: ModelName,
        image: String,
    },
    Remove {
        key: Key,
        evicted: bool,
    },
    Serve {
        ticket: Ticket,
        key: Key,
    },
    Fail {
        ticket: Ticket,
        failure: Failure,
    },
}

#[derive(Debug)]
pub(super) struct Pool {
    rules: Rules,
    containers: BTreeMap<Key, Container>,
    waiting: VecDeque<Waiting>,
    faults: BTreeMap<ModelName, Fault>,
    images: BTreeMap<ModelName, Image>,
    /// Why containers did not start since the last orders, for the tasks that wait for them.
    told: BTreeMap<ModelName, Failure>,
    /// Why nothing can be run, while that is so.
    away: Option<Failure>,
    named: u64,
}

impl Pool {
    /// A pool whose engine is `away` for now.
    pub(super) fn new(rules: Rules, away: Failure) -> Self {
        Self {
            rules,
            containers: BTreeMap::new(),
            waiting: VecDeque::new(),
            faults: BTreeMap::new(),
            images: BTreeMap::new(),
            told: BTreeMap::new(),
            away: Some(away),
            named: 0,
        }
    }

    /// The engine is there, or why it is not.
    pub(super) fn engine(&mut self, away: Option<Failure>) {
        self.away = away;
        // It may come back without them.
        self.images.retain(|_, image| matches!(image, Image::Sought));
    }

    /// The image of a model is there, by this name.
    pub(super) fn found(&mut self, model: ModelName, image: String) {
        self.images.insert(model, Image::There(image));
    }

    /// A task wants a container.
    pub(super) fn ask(&mut self, ticket: Ticket, model: ModelName, now: Instant) {
        self.waiting.push_back(Waiting { ticket, model, since: now });
    }

    /// Drops the tasks that are not `wanted` any more.
    pub(super) fn keep(&mut self, mut wanted: impl FnMut(Ticket) -> bool) {
        self.waiting.retain(|waiting| wanted(waiting.ticket));
    }

    /// A container is ready.
    pub(super) fn started(&mut self, key: Key, now: Instant) {
        if let Some(container) = self.containers.get_mut(&key)
            && container.stage == Stage::Starting
        {
            container.stage = Stage::Serving;
            container.used = now;
            self.faults.remove(&container.model);
        }
    }

    /// It is not to be had: tasks that wait for it are told why, and if that was its own fault the model is left alone
    /// for a while.
    pub(super) fn not_found(&mut self, model: ModelName, failure: Failure, own_fault: bool, now: Instant) {
        self.images.remove(&model);
        self.failed(model, failure, own_fault, now);
    }

    /// A container did not become ready; it keeps its place until it is [`Self::removed`]. Its model fares as in
    /// [`Self::not_found`].
    pub(super) fn not_started(&mut self, key: Key, failure: Failure, own_fault: bool, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.stage = Stage::Leaving;
        let model = container.model.clone();
        // It may have been what was wrong.
        self.doubt(&model);
        self.failed(model, failure, own_fault, now);
    }

    fn failed(&mut self, model: ModelName, failure: Failure, own_fault: bool, now: Instant) {
        // Starts that ran side by side failed once.
        if own_fault && self.faults.get(&model).is_none_or(|fault| fault.until <= now) {
            let times = self.faults.get(&model).map_or(0, |fault| fault.times);
            let rest = self.rules.rest.saturating_mul(1 << times.min(16)).min(REST_MAX);
            let fault = Fault { failure: failure.clone(), until: now + rest, times: times + 1 };
            self.faults.insert(model.clone(), fault);
        }
        self.told.insert(model, failure);
    }

    /// A run in it is over.
    pub(super) fn done(&mut self, key: Key) {
        if let Some(container) = self.containers.get_mut(&key) {
            container.running = container.running.saturating_sub(1);
        }
    }

    /// It must take no more tasks, and go when its runs are over. Says whether that is news.
    pub(super) fn close(&mut self, key: Key) -> bool {
        let Some(container) = self.containers.get_mut(&key) else { return false };
        let news = container.stage == Stage::Serving;
        if news {
            container.stage = Stage::Closing;
        }
        news
    }

    /// It is dead: what is left of it is to be removed now. Says whether that is news.
    pub(super) fn dead(&mut self, key: Key) -> Option<Order> {
        let container = self.containers.get_mut(&key)?;
        if container.stage == Stage::Leaving {
            return None;
        }
        container.stage = Stage::Leaving;
        Some(Order::Remove { key, evicted: false })
    }

    /// It is gone.
    pub(super) fn removed(&mut self, key: Key) {
        let Some(container) = self.containers.remove(&key) else { return };
        // An image that no container uses may be pruned.
        if self.containers.values().all(|other| other.model != container.model) {
            self.doubt(&container.model);
        }
    }

    /// The image is looked for again before it is used again.
    fn doubt(&mut self, model: &ModelName) {
        if let Some(Image::There(_)) = self.images.get(model) {
            self.images.remove(model);
        }
    }

    /// Every container, with its model, its stage and its runs.
    pub(super) fn containers(&self) -> impl Iterator<Item = (Key, &ModelName, Stage, u32)> {
        self.containers.iter().map(|(key, it)| (*key, &it.model, it.stage, it.running))
    }

    /// The models whose latest container would not start, and why.
    pub(super) fn faults(&self) -> impl Iterator<Item = (&ModelName, &Failure)> {
        self.faults.iter().map(|(model, fault)| (model, &fault.failure))
    }

    /// How many tasks wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When [`Self::orders`] may have something to say though nothing happens.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let times = self.waiting.iter().flat_map(|waiting| {
            let rested = self.faults.get(&waiting.model).map(|fault| fault.until);
            let since = [waiting.since + self.rules.patience, waiting.since + self.rules.wait_max];
            since.into_iter().chain(rested)
        });
        times.filter(|time| *time > now).min()
    }

    /// What is to be done now.
    pub(super) fn orders(&mut self, now: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        for (key, container) in &mut self.containers {
            if container.stage == Stage::Closing && container.running == 0 {
                container.stage = Stage::Leaving;
                orders.push(Order::Remove { key: *key, evicted: false });
            }
        }
        let mut claims = Claims::of(self);
        for waiting in std::mem::take(&mut self.waiting) {
            match self.place(&waiting, &mut claims, now) {
                Ok(key) => orders.push(Order::Serve { ticket: waiting.ticket, key }),
                Err(Wait::Fail(failure)) => orders.push(Order::Fail { ticket: waiting.ticket, failure }),
                Err(Wait::For(order)) => {
                    orders.extend(order);
                    self.waiting.push_back(waiting);
                }
            }
        }
        self.told.clear();
        orders
    }

    /// The container that takes the task now, or what it waits for.
    fn place(&mut self, waiting: &Waiting, claims: &mut Claims, now: Instant) -> Result<Key, Wait> {
        if let Some(away) = &self.away {
            return Err(Wait::Fail(away.clone()));
        }
        let model = &waiting.model;
        if let Some(key) = self.free_slot(model) {
            let container = self.containers.get_mut(&key).expect("a key that was just found");
            container.running += 1;
            container.used = now;
            return Ok(key);
        }
        let serves = |container: &Container| container.model == *model && container.stage == Stage::Serving;
        let served = self.containers.values().any(serves);
        let fault = self.faults.get(model).filter(|fault| fault.until > now);
        if served && (fault.is_some() || self.told.contains_key(model)) {
            // It only gets no further container for now.
            return Err(self.too_long(waiting, now).map_or(Wait::For(None), Wait::Fail));
        }
        if let Some(failure) = self.told.get(model) {
            return Err(Wait::Fail(failure.clone()));
        }
        if let Some(fault) = fault {
            // Nothing was tried for this task, so it costs no attempt, or a queue would be spent on one mishap; but what
            // never starts must not keep its tasks until their deadlines.
            let kind = match fault.times < STARTS_FORGIVEN {
                true => FailureKind::Busy,
                false => FailureKind::LaneUnavailable,
            };
            let failure = Failure::new(kind, &fault.failure.message).after(fault.until - now);
            return Err(Wait::Fail(failure));
        }
        if let Some(failure) = self.too_long(waiting, now) {
            return Err(Wait::Fail(failure));
        }
        let impatient = now.saturating_duration_since(waiting.since) >= self.rules.patience;
        if claims.promised(model) || (served && !impatient) {
            return Err(Wait::For(None));
        }
        let image = match self.images.get(model) {
            Some(Image::There(image)) => image.clone(),
            Some(Image::Sought) => return Err(Wait::For(None)),
            None => {
                self.images.insert(model.clone(), Image::Sought);
                return Err(Wait::For(Some(Order::Seek { model: model.clone() })));
            }
        };
        let order = self.make_room(model, claims, impatient, now);
        Err(Wait::For(order.map(|room| match room {
            Room::Here(key) => Order::Start { key, model: model.clone(), image },
            Room::Of(key) => Order::Remove { key, evicted: true },
        })))
    }

    /// What becomes of a task that has waited as long as any may.
    fn too_long(&self, waiting: &Waiting, now: Instant) -> Option<Failure> {
        let (model, limit) = (&waiting.model, self.rules.wait_max);
        if now.saturating_duration_since(waiting.since) < limit {
            return None;
        }
        let ms = limit.as_millis();
        let message = match (self.images.get(model), self.faults.get(model)) {
            (Some(Image::Sought), _) => {
                format!("image of {model} was not there within {ms} ms: it is still on its way")
            }
            (_, Some(fault)) => format!(
                "no container of {model} had a free slot within {ms} ms, and no further one starts: {}",
                fault.failure.message
            ),
            _ => format!(
                "no container of {model} had a free slot within {ms} ms: all {} containers are in use",
                self.rules.containers_max
            ),
        };
        Some(Failure::new(FailureKind::Busy, message))
    }

    fn free_slot(&self, model: &ModelName) -> Option<Key> {
        let free = self.containers.iter().filter(|(_, it)| {
            it.model == *model && it.stage == Stage::Serving && it.running < self.rules.slots_each
        });
        free.max_by_key(|(key, it)| (it.used, **key)).map(|(key, _)| *key)
    }

    /// Finds a place for a container of `model`, or sends another away for it.
    fn make_room(
        &mut self,
        model: &ModelName,
        claims: &mut Claims,
        impatient: bool,
        now: Instant,
    ) -> Option<Room> {
        if self.containers.len() < self.rules.containers_max as usize {
            let key = Key(self.named);
            self.named += 1;
            let container = Container { model: model.clone(), stage: Stage::Starting, running: 0, used: now };
            self.containers.insert(key, container);
            claims.expect(model, self.rules.slots_each);
            return Some(Room::Here(key));
        }
        if claims.vacancies > 0 {
            claims.vacancies -= 1;
            claims.expect(model, self.rules.slots_each);
            return None;
        }
        let serving = self.containers.iter_mut().filter(|(_, it)| it.stage == Stage::Serving);
        let victims = serving.filter(|(_, it)| it.running == 0 || (impatient && it.model != *model));
        let (key, victim) = victims.min_by_key(|(key, it)| (it.running > 0, it.used, **key))?;
        claims.expect(model, self.rules.slots_each);
        if victim.running > 0 {
            victim.stage = Stage::Closing;
            return None;
        }
        victim.stage = Stage::Leaving;
        Some(Room::Of(*key))
    }
}

enum Wait {
    Fail(Failure),
    For(Option<Order>),
}

/// Where the next container goes.
enum Room {
    /// Its place is free, and it is entered there.
    Here(Key),
    /// In the place of this one, which goes.
    Of(Key),
}

/// What is on its way, less what tasks earlier in the line count on: without it each would start a container of its
/// own.
struct Claims {
    /// Slots of containers that are being started, or will be.
    slots: BTreeMap<ModelName, u32>,
    /// Containers on their way out whose place nobody counts on.
    vacancies: usize,
}

impl Claims {
    fn of(pool: &Pool) -> Self {
        let mut slots: BTreeMap<ModelName, u32> = BTreeMap::new();
        let mut vacancies = 0;
        for container in pool.containers.values() {
            match container.stage {
                Stage::Starting => {
                    *slots.entry(container.model.clone()).or_default() += pool.rules.slots_each;
                }
                Stage::Closing | Stage::Leaving => vacancies += 1,
                Stage::Serving => {}
            }
        }
        Self { slots, vacancies }
    }

    /// Counts on a slot that is on its way, if one is left.
    fn promised(&mut self, model: &ModelName) -> bool {
        match self.slots.get_mut(model) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    /// A container for `model` is on its way, and its first slot is taken.
    fn expect(&mut self, model: &ModelName, slots_each: u32) {
        *self.slots.entry(model.clone()).or_default() += slots_each.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests;
