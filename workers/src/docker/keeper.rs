//! The keeper: the one place where the pool's orders are carried out. Events come in one by one; each is applied to
//! the pool, and what the pool then orders is done: containers are started and removed by tasks of their own that
//! report back as events.
//!
//! Invariants: the pool is touched here only; a container is held from the moment it is ready until it is removed,
//! and a lease exists only for one that is held; every caller is answered, by a lease or a failure.

use super::client::{Client, End, Lease};
use super::engine::{Engine, EngineError, Found, Look};
use super::plan::Owner;
use super::pool::{Key, Order, Pool, Rules, Ticket};
use super::starter::{NotStarted, Started, Starter, cause};
use super::{Config, Container, Summary};
use crate::lane::Capacity;
use crate::remote::ModelServer;
use futures_util::future::join_all;
use schemas::{Failure, FailureKind, ModelName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

/// How long a model whose container would not start is left alone at first.
const REST: Duration = Duration::from_secs(1);
/// How long removing all containers may take at the end.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// First pause before a container that could not be removed is tried again; it doubles.
const REMOVE_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest such pause.
const REMOVE_PAUSE_MAX: Duration = Duration::from_secs(30);

type Answer = oneshot::Sender<Result<Lease, Failure>>;

/// What happens to the keeper.
pub(super) enum Event {
    /// A task wants a container.
    Ask { model: ModelName, answer: Answer },
    /// The image of a model is there, by this name, or cannot be had.
    Imaged { model: ModelName, outcome: Result<String, NotStarted> },
    /// A container is ready, or will never be.
    Began { key: Key, number: u64, took: Duration, outcome: Result<Started, NotStarted> },
    /// A lease ended.
    Done { key: Key, end: End },
    /// A container is gone.
    Removed { key: Key },
    /// The engine says that a container died.
    Died { id: String },
    /// How it was found then.
    Found { key: Key, look: Look },
    /// The engine is there, with these containers of ours.
    Up { version: String, found: Vec<Found> },
    /// The engine is away.
    Away(EngineError),
    /// All is to end.
    Stop { done: Option<oneshot::Sender<()>> },
}

pub(super) struct Keeper {
    config: Arc<Config>,
    owner: Owner,
    engine: Arc<dyn Engine>,
    starter: Arc<Starter>,
    pool: Pool,
    tickets: BTreeMap<Ticket, Answer>,
    asked: u64,
    begun: u64,
    held: BTreeMap<Key, Held>,
    /// Names of those that are being started.
    starting: BTreeSet<String>,
    client: Client,
    events: mpsc::UnboundedReceiver<Event>,
    tasks: JoinSet<()>,
    capacity: watch::Sender<Capacity>,
    summary: watch::Sender<Summary>,
}

/// A container that is ready.
struct Held {
    id: String,
    server: ModelServer,
    /// How it was found when it had died.
    died: watch::Sender<Option<Look>>,
}

/// Says what the metrics mean.
pub(super) fn describe() {
    use metrics::{Unit, describe_counter, describe_histogram};
    describe_counter!("straightline_container_starts_total", "containers that became ready, by model");
    describe_counter!(
        "straightline_container_start_failures_total",
        "containers that did not become ready, by model"
    );
    describe_histogram!(
        "straightline_container_start_seconds",
        Unit::Seconds,
        "from order to readiness, by model"
    );
    describe_counter!(
        "straightline_container_evictions_total",
        "idle containers removed for another model, by model"
    );
    describe_counter!(
        "straightline_container_deaths_total",
        "containers that died or were given up, by reason"
    );
    describe_counter!("straightline_container_orphans_total", "containers of dead workers that were removed");
    describe_counter!(
        "straightline_container_removal_failures_total",
        "attempts to remove a container that failed"
    );
}

impl Keeper {
    pub(super) fn new(
        config: Arc<Config>,
        owner: Owner,
        engine: Arc<dyn Engine>,
        starter: Starter,
    ) -> (Client, Self) {
        let (sender, events) = mpsc::unbounded_channel();
        let client = Client::new(Arc::clone(&config), Arc::clone(&engine), sender);
        let rules = Rules {
            containers_max: config.containers_max,
            slots_each: config.slots_per_container,
            patience: config.patience,
            wait_max: config.wait_max,
            rest: REST,
        };
        let away = Failure::new(
            FailureKind::LaneUnavailable,
            format!("docker engine at {} was not reached yet", config.host),
        );
        let summary = Summary { away: Some(away.message.clone()), ..Summary::default() };
        let keeper = Self {
            config,
            owner,
            engine,
            starter: Arc::new(starter),
            pool: Pool::new(rules, away),
            tickets: BTreeMap::new(),
            asked: 0,
            begun: 0,
            held: BTreeMap::new(),
            starting: BTreeSet::new(),
            client: client.clone(),
            events,
            tasks: JoinSet::new(),
            capacity: watch::Sender::new(Capacity::default()),
            summary: watch::Sender::new(summary),
        };
        (client, keeper)
    }

    pub(super) fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.subscribe()
    }

    pub(super) fn summary(&self) -> watch::Receiver<Summary> {
        self.summary.subscribe()
    }

    /// Lives until told to stop.
    pub(super) async fn run(mut self) {
        loop {
            let wake = self.pool.wake(Instant::now());
            let event = tokio::select! {
                event = self.events.recv() => event,
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => None,
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => continue,
            };
            match event {
                Some(Event::Stop { done }) => {
                    self.stop().await;
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                    return;
                }
                Some(event) => self.apply(event),
                None => {}
            }
            self.carry_out();
            self.publish();
        }
    }

    fn apply(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Ask { model, answer } => {
                let ticket = Ticket(self.asked);
                self.asked += 1;
                self.tickets.insert(ticket, answer);
                self.pool.ask(ticket, model, now);
            }
            Event::Imaged { model, outcome } => match outcome {
                Ok(image) => self.pool.found(model, image),
                Err(NotStarted { failure, own_fault, .. }) => {
                    tracing::warn!(%model, reason = failure.message, "image is not to be had");
                    self.pool.not_found(model, failure, own_fault, now);
                }
            },
            Event::Began { key, number, took, outcome } => {
                self.starting.remove(&self.owner.container(number));
                self.began(key, took, outcome, now);
            }
            Event::Done { key, end } => {
                self.pool.done(key);
                match end {
                    End::Fit => {}
                    End::Unfit(reason) => {
                        if self.pool.close(key) {
                            self.lost(key, reason);
                        }
                    }
                    End::Dead(reason) => self.bury(key, reason),
                }
            }
            Event::Removed { key } => {
                self.held.remove(&key);
                self.pool.removed(key);
            }
            Event::Died { id } => {
                let key = self.held.iter().find(|(_, held)| held.id == id).map(|(key, _)| *key);
                if let Some(key) = key {
                    self.look_into(key, id);
                }
            }
            Event::Found { key, look } => {
                let reason = cause(&look);
                // Told before it is removed: those who wait for its answer could not find out any more.
                if let Some(held) = self.held.get(&key) {
                    held.died.send_replace(Some(look));
                }
                self.bury(key, reason);
            }
            Event::Up { version, found } => self.up(version, &found),
            Event::Away(error) => self.away(&error),
            // Taken out by the loop.
            Event::Stop { .. } => {}
        }
    }

    fn began(&mut self, key: Key, took: Duration, outcome: Result<Started, NotStarted>, now: Instant) {
        let model = self.model_of(key);
        match outcome {
            Ok(Started { id, server }) => {
                tracing::info!(container.id = id, model, start_ms = took.as_millis(), "container is ready");
                metrics::counter!("straightline_container_starts_total", "model" => model.clone())
                    .increment(1);
                metrics::histogram!("straightline_container_start_seconds", "model" => model).record(took);
                self.held.insert(key, Held { id, server, died: watch::Sender::default() });
                self.pool.started(key, now);
            }
            Err(NotStarted { failure, own_fault, left }) => {
                tracing::warn!(model, reason = failure.message, "container did not become ready");
                metrics::counter!("straightline_container_start_failures_total", "model" => model)
                    .increment(1);
                self.pool.not_started(key, failure, own_fault, now);
                self.leave(key, left);
            }
        }
    }

    fn up(&mut self, version: String, found: &[Found]) {
        tracing::info!(host = self.config.host, version, containers = found.len(), "docker engine is there");
        self.pool.engine(None);
        let running = |id: &str| found.iter().any(|one| one.running && one.id == id);
        let dead: Vec<Key> =
            self.held.iter().filter(|(_, held)| !running(&held.id)).map(|(key, _)| *key).collect();
        for key in dead {
            self.bury(key, "engine");
        }
        // What could not be removed as the engine went away is nobody's; what is being started may yet do well.
        let ours = |one: &Found| {
            self.starting.contains(&one.name) || self.held.values().any(|held| held.id == one.id)
        };
        for one in found.iter().filter(|one| !ours(one)) {
            let (engine, id, lane) = (Arc::clone(&self.engine), one.id.clone(), self.summary());
            self.tasks.spawn(async move { remove(&*engine, &id, &lane).await });
        }
        let starter = Arc::clone(&self.starter);
        self.tasks.spawn(async move { starter.prepare().await });
        // Before the capacity, whose change has it reported.
        self.summary.send_modify(|summary| (summary.engine, summary.away) = (Some(version), None));
        let slots = self.config.slots();
        self.capacity.send_if_modified(|capacity| std::mem::replace(&mut capacity.slots, slots) != slots);
    }

    fn away(&mut self, error: &EngineError) {
        let failure = Failure::new(FailureKind::LaneUnavailable, error);
        self.pool.engine(Some(failure));
        self.capacity.send_if_modified(|capacity| std::mem::take(&mut capacity.slots) != 0);
        let reason = error.to_string();
        self.summary.send_if_modified(|summary| {
            let news = summary.away.as_ref() != Some(&reason);
            if news {
                tracing::warn!(reason, "docker lane takes no jobs until its engine is back");
                (summary.engine, summary.away) = (None, Some(reason));
            }
            news
        });
    }

    /// Finds out what an idle or busy container died of, and buries it.
    fn look_into(&mut self, key: Key, id: String) {
        let (engine, events) = (Arc::clone(&self.engine), self.client.events());
        self.tasks.spawn(async move {
            // Without an answer it is looked into when the engine is back.
            if let Ok(look) = engine.look(&id).await {
                let _ = events.send(Event::Found { key, look });
            }
        });
    }

    /// A container that is dead goes at once, whatever ran in it.
    fn bury(&mut self, key: Key, reason: &'static str) {
        if let Some(order) = self.pool.dead(key) {
            self.lost(key, reason);
            self.carry(order);
        }
    }

    fn lost(&self, key: Key, reason: &'static str) {
        tracing::warn!(model = self.model_of(key), reason, "container is given up");
        metrics::counter!("straightline_container_deaths_total", "reason" => reason).increment(1);
    }

    fn carry_out(&mut self) {
        let tickets = &mut self.tickets;
        tickets.retain(|_, answer| !answer.is_closed());
        self.pool.keep(|ticket| tickets.contains_key(&ticket));
        for order in self.pool.orders(Instant::now()) {
            self.carry(order);
        }
    }

    fn carry(&mut self, order: Order) {
        match order {
            Order::Seek { model } => {
                let (starter, events) = (Arc::clone(&self.starter), self.client.events());
                self.tasks.spawn(async move {
                    let outcome = starter.image(&model).await;
                    let _ = events.send(Event::Imaged { model, outcome });
                });
            }
            Order::Start { key, model, image } => {
                let (starter, events, number) = (Arc::clone(&self.starter), self.client.events(), self.begun);
                self.begun += 1;
                self.starting.insert(self.owner.container(number));
                self.tasks.spawn(async move {
                    let began = Instant::now();
                    let outcome = starter.start(&model, &image, number).await;
                    let _ = events.send(Event::Began { key, number, took: began.elapsed(), outcome });
                });
            }
            Order::Remove { key, evicted } => {
                let model = self.model_of(key);
                if evicted {
                    tracing::info!(model, "container makes room for another model's");
                    metrics::counter!("straightline_container_evictions_total", "model" => model)
                        .increment(1);
                }
                let id = self.held.remove(&key).map(|held| held.id);
                self.leave(key, id);
            }
            Order::Serve { ticket, key } => self.serve(ticket, key),
            Order::Fail { ticket, failure } => {
                if let Some(answer) = self.tickets.remove(&ticket) {
                    // One who left meanwhile needs no answer.
                    let _ = answer.send(Err(failure));
                }
            }
        }
    }

    /// Removes what is left of a container, which keeps its place until then.
    fn leave(&mut self, key: Key, id: Option<String>) {
        let Some(id) = id else { return self.pool.removed(key) };
        let (engine, lane, events) = (Arc::clone(&self.engine), self.summary(), self.client.events());
        self.tasks.spawn(async move {
            remove(&*engine, &id, &lane).await;
            let _ = events.send(Event::Removed { key });
        });
    }

    fn serve(&mut self, ticket: Ticket, key: Key) {
        let held = self.held.get(&key).expect("a container that serves is held");
        let (id, server, died) = (held.id.clone(), held.server.clone(), held.died.subscribe());
        let lease = Lease::new(key, id, server, died, self.client.events());
        let unwanted = match self.tickets.remove(&ticket) {
            Some(answer) => answer.send(Ok(lease)).err(),
            None => Some(Ok(lease)),
        };
        if let Some(Ok(lease)) = unwanted {
            // Nothing was asked of it.
            lease.settle(End::Fit);
        }
    }

    fn publish(&self) {
        let containers: Vec<Container> = self
            .pool
            .containers()
            .map(|(key, model, stage, running)| Container {
                id: self.held.get(&key).map(|held| held.id.clone()),
                model: model.clone(),
                stage,
                running,
            })
            .collect();
        let faults: Vec<_> =
            self.pool.faults().map(|(model, failure)| (model.clone(), failure.message.clone())).collect();
        let waiting = self.pool.waiting();
        self.summary.send_if_modified(|summary| {
            let news =
                (&summary.containers, &summary.faults, summary.waiting) != (&containers, &faults, waiting);
            (summary.containers, summary.faults, summary.waiting) = (containers, faults, waiting);
            news
        });
    }

    fn model_of(&self, key: Key) -> String {
        let model = self.pool.containers().find(|(other, ..)| *other == key);
        model.map(|(_, model, ..)| model.to_string()).unwrap_or_default()
    }

    /// Answers everybody, ends what is under way, and removes every container of ours.
    async fn stop(&mut self) {
        let failure = Failure::new(FailureKind::LaneUnavailable, "docker lane is stopping");
        self.pool.engine(Some(failure));
        self.capacity.send_replace(Capacity::default());
        for order in self.pool.orders(Instant::now()) {
            if let Order::Fail { .. } = order {
                self.carry(order);
            }
        }
        self.tasks.shutdown().await;
        if self.summary.borrow().away.is_some() {
            return;
        }
        let lane = self.summary();
        let sweep = async {
            let found = self.engine.list(&self.owner.label()).await?;
            join_all(found.iter().map(|one| remove(&*self.engine, &one.id, &lane))).await;
            Ok::<_, EngineError>(())
        };
        match timeout(STOP_GRACE, sweep).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "containers are left; the next worker removes them"),
            Err(_) => tracing::warn!("containers may be left; the next worker removes them"),
        }
    }
}

/// Removes a container, however long that takes: while it may still run, nothing else may have its place. Only while
/// the engine is known to be away is it given up, since whatever nobody holds is removed when the engine is back.
async fn remove(engine: &dyn Engine, id: &str, lane: &watch::Receiver<Summary>) {
    let mut pause = REMOVE_PAUSE_MIN;
    while let Err(error) = engine.remove(id).await {
        metrics::counter!("straightline_container_removal_failures_total").increment(1);
        if lane.borrow().away.is_some() {
            tracing::warn!(container.id = id, %error, "container is left until the engine is back");
            return;
        }
        let pause_ms = pause.as_millis();
        tracing::warn!(container.id = id, %error, pause_ms, "container cannot be removed; it is tried again");
        sleep(pause).await;
        pause = (pause * 2).min(REMOVE_PAUSE_MAX);
    }
}
