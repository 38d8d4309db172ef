//! The loop: take what has arrived, ask shared state once, decide for each job, publish, acknowledge on confirm.

use crate::config::Config;
use crate::desk::{InHand, LaneNow, Source, Step, View};
use crate::ending::{Ender, Ending, Fate};
use crate::estimate::{Estimate, Look};
use crate::feeds::{Arrival, Consumers, Feeds};
use crate::hop::{self, Move};
use crate::journal::{Entry, Journal};
use crate::pace::Pace;
use crate::policy::Policy;
use crate::stopping::{Stop, Stopping};
use crate::turns::Turns;
use crate::{beat, death, intake, sampler};
use broker::{Broker, Delivery, Health, Message, Properties, PublishError, Queue, Receipt, Route};
use schemas::header::{self, Placement};
use schemas::{Class, JobHeader, JobId, Lane, ModelName, Status, UnixMillis};
use state::facts::Unused;
use state::{Batch, Facts, ModelFacts, State};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Most jobs in one round trip to shared state.
const BATCH_MAX: usize = 128;
/// How often jobs in hand are looked at again for room.
const HELD_TICK: Duration = Duration::from_millis(20);
/// How often the lanes are looked at while nothing arrives.
const IDLE_TICK: Duration = Duration::from_millis(250);
/// How long a wait queue counts as holding jobs after one went in or came out.
const WAITING_SEEN: Duration = Duration::from_millis(300);

/// How often a broker that takes nothing is looked at again, should it not say that it is back.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A job in hand.
struct Taken {
    header: JobHeader,
    source: Source,
    delivery: Box<Delivery>,
    since: Instant,
    /// Whether it is to be counted for its model: once, on its first attempt.
    counts: bool,
    /// Whether it was asked if the job has ended. One that ends while it is held is found out by its worker.
    asked: bool,
}

pub(crate) struct Loop {
    config: Arc<Config>,
    policy: Box<dyn Policy>,
    broker: Arc<dyn Broker>,
    state: Arc<dyn State>,
    ender: Arc<Ender>,
    stop: Stopping,
    health: watch::Receiver<Health>,
    arrivals: mpsc::Receiver<Arrival>,
    consumers: Consumers,
    feeds: Feeds,
    turns: Turns<Taken>,
    held: VecDeque<Taken>,
    pace: Pace,
    /// When each wait queue was last known to hold a job.
    waiting: HashMap<(Lane, Class), Instant>,
    unused: Option<Unused>,
    estimate: Estimate,
    looks: watch::Receiver<Look>,
    sampler: JoinHandle<()>,
    /// Deliveries whose next hop is not yet confirmed, in tasks of their own.
    settling: JoinSet<()>,
    in_hand: Arc<AtomicU32>,
    placed: Arc<AtomicU64>,
    journal: Option<Journal>,
}

impl Loop {
    pub(crate) fn new(
        config: Config,
        broker: Arc<dyn Broker>,
        state: Arc<dyn State>,
        stop: watch::Receiver<Stop>,
        journal: Option<Journal>,
    ) -> Self {
        let config = Arc::new(config);
        let (arrived, arrivals) = mpsc::channel(BATCH_MAX);
        let (seen, looks) = watch::channel(Look::default());
        let sampler =
            tokio::spawn(sampler::run(Arc::clone(&config), Arc::clone(&broker), Arc::clone(&state), seen));
        let ender = Ender {
            broker: Arc::clone(&broker),
            state: Arc::clone(&state),
            record_keep: config.record_keep,
            name: config.name.clone(),
        };
        Self {
            policy: config.policy.build(config.frequency_threshold, config.size_threshold),
            consumers: Consumers::new(Arc::clone(&broker), arrived),
            feeds: Feeds::new(Instant::now(), config.hold_max, config.lane_gone_after),
            estimate: Estimate::new(config.window),
            ender: Arc::new(ender),
            config,
            health: broker.health(),
            broker,
            state,
            stop: Stopping(stop),
            arrivals,
            turns: Turns::default(),
            held: VecDeque::new(),
            pace: Pace::new(Instant::now()),
            waiting: HashMap::new(),
            unused: None,
            looks,
            sampler,
            settling: JoinSet::new(),
            in_hand: Arc::default(),
            placed: Arc::default(),
            journal,
        }
    }

    pub(crate) async fn run(mut self) {
        tracing::info!(dispatcher = %self.config.name, policy = self.policy.name(), "dispatching");
        let beat = tokio::spawn(beat::beat(
            Arc::clone(&self.config),
            self.policy.name(),
            Arc::clone(&self.state),
            Arc::clone(&self.in_hand),
            Arc::clone(&self.placed),
            self.stop.clone(),
        ));
        self.feed();
        while self.stop.now() == Stop::No {
            self.gather().await;
            if !self.passes() {
                self.wait_for_the_broker().await;
                continue;
            }
            let batch = self.take_batch();
            self.place(batch).await;
            self.feed();
            while self.settling.try_join_next().is_some() {}
        }
        self.finish().await;
        if let Err(error) = beat.await {
            tracing::error!(error = %error, "the dispatcher's heartbeat ended badly");
        }
        tracing::info!(dispatcher = %self.config.name, "drained");
    }

    /// Waits until there is something to do, then takes in what has arrived.
    async fn gather(&mut self) {
        if self.turns.is_empty() {
            let tick = if self.held.is_empty() { IDLE_TICK } else { HELD_TICK };
            tokio::select! {
                arrival = self.arrivals.recv() => {
                    if let Some(arrival) = arrival {
                        self.take_in(arrival);
                    }
                }
                () = tokio::time::sleep(tick) => {}
                () = self.stop.changed() => {}
            }
        }
        while self.turns.len() < BATCH_MAX
            && let Ok(arrival) = self.arrivals.try_recv()
        {
            self.take_in(arrival);
        }
    }

    /// Whether the broker takes messages. While it does not, a publish would wait for it, one after the other.
    fn passes(&self) -> bool {
        *self.health.borrow() == Health::Connected
    }

    /// What is in hand meanwhile is bounded by the prefetch; a broker that went away takes it back by itself.
    async fn wait_for_the_broker(&mut self) {
        let back = async {
            if self.health.wait_for(|health| *health == Health::Connected).await.is_err() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = back => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = self.stop.changed() => {}
        }
    }

    /// Reads one arrival. What is no job, and what the broker gave up on, ends in a task of its own.
    fn take_in(&mut self, (queue, delivery): Arrival) {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        let (source, class) = match &queue {
            Queue::Jobs(class) => (Source::Jobs(*class), *class),
            Queue::Wait(lane, class) => {
                self.waiting.insert((*lane, *class), Instant::now());
                (Source::Wait(*lane, *class), *class)
            }
            Queue::Lane(lane) => (Source::TakenBack(*lane), Class::default()),
            _ => (Source::Jobs(Class::default()), Class::default()),
        };
        match intake::read(&delivery.message, class, unix_now()) {
            Err(unreadable) => {
                let intake::Unreadable { claim, failure } = unreadable;
                self.end(Ending { delivery, queue, fate: Fate::Unreadable(claim, failure) });
            }
            Ok(header) if queue == Queue::DeadIntake && death::ends_here(delivery.death.as_ref()) => {
                self.end_given_up(header, delivery, queue);
            }
            Ok(mut header) => {
                // What came through the dead letters, was tried before or was handed out before has been counted.
                let counts = matches!(queue, Queue::Jobs(_))
                    && header.attempt == 1
                    && header.history.is_empty()
                    && !delivery.redelivered;
                // A message that this process makes of it would no longer say so.
                header.may_have_run |= matches!(source, Source::TakenBack(_)) && delivery.redelivered;
                let class = header.class;
                self.turns.push(
                    class,
                    Taken { header, source, delivery, since: Instant::now(), counts, asked: false },
                );
            }
        }
    }

    /// What the broker itself gave up on, and what placing it again cannot help: its client is told, and it rests with the
    /// other dead.
    fn end_given_up(&mut self, header: JobHeader, delivery: Box<Delivery>, queue: Queue) {
        let (header, failure) =
            death::explain(header, delivery.death.as_ref(), delivery.returns, &self.config.name, unix_now());
        self.end(Ending { delivery, queue, fate: Fate::Ended(header, Status::Failed, failure) });
    }

    fn end(&mut self, ending: Ending) {
        let ender = Arc::clone(&self.ender);
        let (in_hand, mut stop) = (Arc::clone(&self.in_hand), self.stop.clone());
        self.settling.spawn(async move {
            let _released = Released(in_hand, 1);
            ender.end(ending, unix_now(), stop.halted()).await;
        });
    }

    /// Those held and what has arrived, in turns of the classes; of a class those held longest first.
    fn take_batch(&mut self) -> Vec<Taken> {
        let most = self.held.len() + BATCH_MAX;
        while let Some(taken) = self.held.pop_back() {
            self.turns.put_back(taken.header.class, taken);
        }
        std::iter::from_fn(|| self.turns.pop()).take(most).collect()
    }

    /// Decides and acts for a batch. An empty one looks at the lanes.
    async fn place(&mut self, batch: Vec<Taken>) {
        let ids = batch.iter().filter(|taken| !taken.asked).map(|taken| taken.header.id).collect();
        let (models, model_of) = models(&batch);
        let facts = self.observe(ids, models, batch.len()).await;
        let mut lanes = self.lanes(&facts);
        let mut moves = Vec::new();
        let mut ended = facts.ended.iter();
        for (at, mut taken) in batch.into_iter().enumerate() {
            let asked = std::mem::replace(&mut taken.asked, true);
            let recorded = if asked { None } else { ended.next().and_then(Option::as_ref) };
            if let Some(recorded) = recorded {
                let Taken { header, source, delivery, .. } = taken;
                let fate = Fate::Recorded(header, recorded.clone());
                self.end(Ending { delivery, queue: queue_of(source), fate });
                continue;
            }
            let mut model = facts.models[model_of[at]];
            model.known = model.known || self.estimate.knew(&taken.header.model, Instant::now());
            let step = self.decide(&taken, model, &lanes);
            if let Err(illegal) = step.check(taken.source) {
                debug_assert!(false, "{illegal}");
                metrics::counter!("straightline_illegal_steps_total").increment(1);
            }
            match step {
                Step::Place(lane, _) => lanes[lane.index()].room = lanes[lane.index()].room.saturating_sub(1),
                Step::Hold(lane) => lanes[lane.index()].keeps = lanes[lane.index()].keeps.saturating_sub(1),
                Step::Park(..) | Step::End(..) => {}
            }
            moves.extend(self.act(taken, step).await);
        }
        self.unused = Some(Unused { stamp: facts.stamp, places: lanes.map(|lane| lane.room) });
        self.settle(moves);
    }

    fn decide(&self, taken: &Taken, model: ModelFacts, lanes: &[LaneNow; 3]) -> Step {
        let view = View {
            policy: self.policy.as_ref(),
            lanes,
            payload_max: &self.config.payload_max,
            now: unix_now(),
            hold_max: self.config.hold_max,
            reserved: self.config.wait_prefetch,
        };
        let job = InHand { header: &taken.header, source: taken.source, model, held: taken.since.elapsed() };
        let step = view.decide(job);
        if let (Some(journal), Step::Place(lane, reason)) = (&self.journal, &step) {
            let seen = view.seen(&job);
            journal.note(Entry::of(&self.config.name, &taken.header, &seen, (*lane, *reason), view.now));
        }
        step
    }

    /// One round trip: counts, looks up, claims. Without shared state, what this process knows has to do.
    async fn observe(&mut self, ids: Vec<JobId>, models: Vec<(ModelName, u32)>, places: usize) -> Facts {
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        let query =
            Batch { models, ids, claim: [places; 3], unused: self.unused.take(), window: self.config.window };
        let look = *self.looks.borrow_and_update();
        match self.state.observe(&query).await {
            Ok(facts) => {
                self.estimate.learn(&query, &facts, Instant::now());
                facts
            }
            Err(error) => {
                metrics::counter!("straightline_state_estimates_total").increment(1);
                tracing::debug!(error = %error, "placing on local estimates");
                self.estimate.guess(&query, look, Instant::now())
            }
        }
    }

    fn lanes(&mut self, facts: &Facts) -> [LaneNow; 3] {
        let now = Instant::now();
        self.waiting.retain(|_, seen| now.duration_since(*seen) < WAITING_SEEN);
        let keeps = self.pace.keeps(now);
        Lane::ALL.map(|lane| {
            let seen = facts.lane(lane);
            let live = seen.workers > 0;
            self.feeds.saw(lane, live, seen.granted + seen.left > 0, now);
            let waits = |class: &Class| self.waiting.contains_key(&(lane, *class));
            let waiting = Class::ALL.into_iter().find(waits);
            LaneNow { live, room: seen.granted, more: seen.left, waiting, keeps: keeps[lane.index()] }
        })
    }

    /// Does one step; what was published comes back to be settled with the rest of the batch.
    async fn act(&mut self, mut taken: Taken, step: Step) -> Option<Move> {
        taken.counts = false;
        match step {
            Step::Hold(_) => {
                self.held.push_back(taken);
                None
            }
            Step::End(status, failure) => {
                let Taken { header, source, delivery, .. } = taken;
                self.end(Ending {
                    delivery,
                    queue: queue_of(source),
                    fate: Fate::Ended(header, status, failure),
                });
                None
            }
            Step::Place(lane, reason) => {
                let reason = reason.to_string();
                metrics::counter!("straightline_placements_total", "lane" => lane.as_str(), "reason" => reason.clone())
                    .increment(1);
                if let Source::Wait(lane, class) = taken.source {
                    self.feeds.worthwhile(lane, class);
                }
                self.pace.placed(lane);
                self.placed.fetch_add(1, Ordering::Relaxed);
                taken.header.placement = Some(Placement { lane, reason });
                Some(self.publish(taken, Queue::Lane(lane)).await)
            }
            Step::Park(lane, reason) => {
                let class = taken.header.class;
                metrics::counter!("straightline_parked_total", "lane" => lane.as_str(), "reason" => reason.to_string())
                    .increment(1);
                let now = Instant::now();
                if taken.source == Source::Wait(lane, class) {
                    self.feeds.in_vain(lane, class, now);
                }
                self.waiting.insert((lane, class), now);
                taken.header.placement = None;
                Some(self.publish(taken, Queue::Wait(lane, class)).await)
            }
        }
    }

    /// Publishes a job into its next queue: our header, the sender's unknown headers, the body as it came.
    async fn publish(&mut self, mut taken: Taken, to: Queue) -> Move {
        let message = std::mem::take(&mut taken.delivery.message);
        let mut headers = message.headers;
        headers.retain(|(name, _)| !header::names::ALL.contains(&name.as_str()));
        let message = Message {
            packed: Some(taken.header.encode()),
            headers,
            properties: Properties::default(),
            body: message.body,
        };
        let refused = |why: &str| Receipt::refused(PublishError::Unavailable(why.to_owned()));
        let receipt = if self.passes() {
            tokio::select! {
                biased;
                receipt = self.broker.publish(Route::To(to), message) => receipt,
                () = self.stop.halted() => refused("this dispatcher lets go of everything"),
            }
        } else {
            refused("it takes no messages just now")
        };
        Move { receipt, delivery: taken.delivery, since: taken.since }
    }

    /// Settles what was published, off the loop.
    fn settle(&mut self, moves: Vec<Move>) {
        if moves.is_empty() {
            return;
        }
        let (in_hand, stop) = (Arc::clone(&self.in_hand), self.stop.clone());
        self.settling.spawn(async move {
            let _released = Released(in_hand, u32::try_from(moves.len()).unwrap_or(0));
            hop::settle(moves, stop).await;
        });
    }

    fn feed(&mut self) {
        let wanted = self.feeds.wanted(Instant::now());
        let (prefetch, wait_prefetch) = (self.config.prefetch, self.config.wait_prefetch);
        self.consumers
            .set(&wanted, |queue| if matches!(queue, Queue::Jobs(_)) { prefetch } else { wait_prefetch });
    }

    /// Stops intake, gives back what has no place yet, waits for what is on its way.
    async fn finish(&mut self) {
        self.consumers.stop();
        self.arrivals.close();
        while let Some((_, delivery)) = self.arrivals.recv().await {
            delivery.give_back();
        }
        while let Some(taken) = self.turns.pop() {
            taken.delivery.give_back();
        }
        for taken in self.held.drain(..) {
            taken.delivery.give_back();
        }
        self.sampler.abort();
        while self.settling.join_next().await.is_some() {}
    }
}

/// Counts deliveries out of hand when their settling is done, however it went.
struct Released(Arc<AtomicU32>, u32);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The models of a batch with the jobs to count for each, and for each job the index of its model.
fn models(batch: &[Taken]) -> (Vec<(ModelName, u32)>, Vec<usize>) {
    let mut models: Vec<(ModelName, u32)> = Vec::new();
    let mut index: HashMap<&ModelName, usize> = HashMap::new();
    let model_of = batch.iter().map(|taken| {
        let at = *index.entry(&taken.header.model).or_insert_with(|| {
            models.push((taken.header.model.clone(), 0));
            models.len() - 1
        });
        models[at].1 += u32::from(taken.counts);
        at
    });
    let model_of = model_of.collect();
    (models, model_of)
}

fn queue_of(source: Source) -> Queue {
    match source {
        Source::Jobs(class) => Queue::Jobs(class),
        Source::Wait(lane, class) => Queue::Wait(lane, class),
        Source::TakenBack(lane) => Queue::Lane(lane),
    }
}

fn unix_now() -> UnixMillis {
    SystemTime::now().into()
}
