//! The loop: select asynchronously, apply synchronously.
//!
//! It holds every delivery and settles each in one place ([`super::hand`]). What takes time (looking for records,
//! running, recording and publishing) happens in tasks that have a job but never its delivery; what decides is plain code
//! in [`super::line`], [`super::ending`] and [`super::pace`].
//!
//! A job's way: *checking* (redelivered, or cancelled: is there a record?), *waiting* for a slot, *running*, *ending*.
//! Its slot is free when its run is over; how many may be ending is bounded by the prefetch, since a delivery is
//! held until its job's end is confirmed.
//!
//! A connection that was lost and came back delivers again what we still hold. Such a copy of a job in hand is not a
//! second job, and no sign of a worker's death: it is kept beside the first delivery and settled with it.

use super::Phase;
use super::attempt;
use super::cancelled::Cancelled;
use super::ending::{self, Ending, Output};
use super::gather::Gather;
use super::hand::{Done, Hand};
use super::line::{Line, Seq};
use super::measure;
use super::pace::{self, Meter};
use super::report::Load;
use super::services::{Job, Services};
use super::settle::{self, End};
use crate::lane::Capacity;
use broker::{Delivery, Message, Settlement};
use bytes::Bytes;
use schemas::control::Control;
use schemas::header::InvalidHeader;
use schemas::lifecycle::Event as Step;
use schemas::{Failure, FailureKind, JobHeader, UnixMillis, wire};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// How often rates are averaged and the prefetch looked at.
const TICK: Duration = Duration::from_millis(100);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything in hand is settled.
    Drained,
    /// Everything in hand was given back.
    Halted,
    /// There is nothing to take jobs from any more: the broker is closed.
    BrokerClosed,
}

/// What the loop listens to, and whom it tells.
pub(crate) struct Wires {
    pub(crate) arrivals: mpsc::Receiver<Box<Delivery>>,
    pub(crate) broadcasts: mpsc::Receiver<Bytes>,
    pub(crate) capacity: watch::Receiver<Capacity>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) prefetch: watch::Sender<u32>,
    pub(crate) load: watch::Sender<Load>,
}

pub(crate) struct Loop {
    services: Arc<Services>,
    arrivals: mpsc::Receiver<Box<Delivery>>,
    broadcasts: Option<mpsc::Receiver<Bytes>>,
    capacity: watch::Receiver<Capacity>,
    phase: watch::Receiver<Phase>,
    /// Gone when no more jobs are taken; the intake then ends.
    prefetch: Option<watch::Sender<u32>>,
    prefetch_changed: Instant,
    load: watch::Sender<Load>,
    hand: Hand,
    line: Line,
    cancelled: Cancelled,
    meter: Meter,
    gather: Gather,
    tick: Interval,
    ticked: Instant,
    intake_ended: bool,
}

enum Event {
    Arrived(Box<Delivery>),
    IntakeEnded,
    Done(Done),
    Broadcast(Option<Bytes>),
    Capacity,
    Phase,
    Tick,
}

impl Loop {
    pub(crate) fn new(services: Arc<Services>, wires: Wires) -> Self {
        let Wires { arrivals, broadcasts, capacity, phase, prefetch, load } = wires;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            services,
            arrivals,
            broadcasts: Some(broadcasts),
            capacity,
            phase,
            prefetch: Some(prefetch),
            prefetch_changed: Instant::now(),
            load,
            hand: Hand::default(),
            line: Line::default(),
            cancelled: Cancelled::default(),
            meter: Meter::default(),
            gather: Gather::default(),
            tick,
            ticked: Instant::now(),
            intake_ended: false,
        }
    }

    pub(crate) async fn run(mut self) -> Ended {
        self.capacity_changed();
        loop {
            self.publish_load();
            if let Some(ended) = self.ended() {
                if ended == Ended::Halted {
                    self.give_everything_back();
                }
                return ended;
            }
            let event = self.select().await;
            self.apply(event);
            self.start_waiting();
        }
    }

    fn ended(&self) -> Option<Ended> {
        let phase = *self.phase.borrow();
        match phase {
            Phase::Halting => Some(Ended::Halted),
            _ if !self.intake_ended || !self.hand.is_empty() => None,
            Phase::Draining => Some(Ended::Drained),
            Phase::Working => Some(Ended::BrokerClosed),
        }
    }

    async fn select(&mut self) -> Event {
        let Self { arrivals, broadcasts, capacity, phase, hand, tick, intake_ended, .. } = self;
        tokio::select! {
            done = hand.done() => Event::Done(done),
            delivery = arrivals.recv(), if !*intake_ended => delivery.map_or(Event::IntakeEnded, Event::Arrived),
            Some(broadcast) = next(broadcasts) => Event::Broadcast(broadcast),
            Ok(()) = capacity.changed() => Event::Capacity,
            Ok(()) = phase.changed() => Event::Phase,
            _ = tick.tick() => Event::Tick,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Arrived(delivery) => {
                self.arrived(delivery);
                // What has come with it: together they may share a slot.
                while let Ok(delivery) = self.arrivals.try_recv() {
                    self.arrived(delivery);
                }
            }
            Event::IntakeEnded => self.intake_ended = true,
            Event::Done(Done::Checked(seq, record)) => self.checked(seq, record),
            Event::Done(Done::Ran(outcomes)) => self.ran(outcomes),
            Event::Done(Done::Ended(ended)) => {
                ended.into_iter().for_each(|(seq, end)| self.ended_as(seq, end));
            }
            Event::Broadcast(Some(broadcast)) => self.broadcast(&broadcast),
            Event::Broadcast(None) => self.broadcasts = None,
            Event::Capacity => self.capacity_changed(),
            Event::Phase => self.prefetch = None,
            Event::Tick => self.ticked(),
        }
    }

    fn arrived(&mut self, mut delivery: Box<Delivery>) {
        let message = std::mem::take(&mut delivery.message);
        let header = match read(&message) {
            Ok(header) => header,
            Err(failure) => return self.unreadable(delivery, message, failure),
        };
        // A dispatcher that takes a lane's queue back makes new messages, which say it in their header.
        let redelivered = delivery.redelivered || header.may_have_run;
        if redelivered {
            match self.hand.keep_copy(&header, delivery) {
                Some(no_copy) => delivery = no_copy,
                None => return,
            }
        }
        let killed = header.history.last().is_some_and(|last| last.failure.kind == FailureKind::WorkerLost);
        let job = Arc::new(Job { header, message, suspect: redelivered || killed, redelivered });
        let seq = self.hand.hold(Arc::clone(&job), delivery);
        if redelivered || self.cancelled.contains(&job.header.id) {
            self.check(seq, job);
        } else {
            self.enqueue(seq, &job);
        }
    }

    fn unreadable(&mut self, delivery: Box<Delivery>, message: Message, failure: Failure) {
        let (services, now) = (Arc::clone(&self.services), now());
        let seq = self.hand.hold_stray(delivery);
        self.hand.end(seq, async move { settle::settle_unreadable(&services, &message, failure, now).await });
    }

    /// Looks for a record before anything else is done with the job.
    fn check(&mut self, seq: Seq, job: Arc<Job>) {
        let services = Arc::clone(&self.services);
        self.hand.check(seq, async move { services.recorded(job.header.id).await });
    }

    fn checked(&mut self, seq: Seq, record: Option<Bytes>) {
        let Some(job) = self.hand.job(seq) else { return };
        match record {
            Some(record) => self.end(seq, &job, Ending::Recorded(record)),
            None => self.enqueue(seq, &job),
        }
    }

    fn enqueue(&mut self, seq: Seq, job: &Arc<Job>) {
        let limit = self.services.config.body_bytes_max();
        let bytes = job.message.body.len();
        if bytes > limit {
            let message = format!(
                "body has {bytes} bytes: at most {limit}; send a larger input through the blob store"
            );
            self.failed(seq, Failure::new(FailureKind::TooLarge, message));
        } else if self.line.slots() == 0 {
            self.give_back(seq, "no_slots");
        } else {
            self.line.push(seq, job.suspect);
        }
    }

    /// Starts what may start.
    fn start_waiting(&mut self) {
        while let Some(together) = self.next_to_start() {
            let now = now();
            let (mut seqs, mut jobs) =
                (Vec::with_capacity(together.len()), Vec::with_capacity(together.len()));
            for seq in together {
                let Some(held) = self.hand.get_mut(seq) else {
                    self.line.ran(seq);
                    continue;
                };
                let job = Arc::clone(&held.job);
                if job.header.expired(now) {
                    self.line.ran(seq);
                    let expired = ending::expired(&job.header, &self.services.place(), now);
                    self.end(seq, &job, expired);
                    continue;
                }
                held.step(Step::Started);
                seqs.push(seq);
                jobs.push(job);
            }
            if !seqs.is_empty() {
                let services = Arc::clone(&self.services);
                self.hand.run(seqs, async move { attempt::run(&services, &jobs).await });
            }
        }
    }

    /// Those that start together in one slot.
    fn next_to_start(&mut self) -> Option<Vec<Seq>> {
        let (hand, gathers) = (&self.hand, self.services.executor.gathers());
        let mut together = self.gather.together();
        self.line.next(|seq| gathers && hand.get(seq).is_some_and(|held| together.joins(&held.job)))
    }

    fn ran(&mut self, outcomes: Vec<(Seq, Result<Output, Failure>)>) {
        let (mut seqs, mut ended) = (Vec::with_capacity(outcomes.len()), Vec::with_capacity(outcomes.len()));
        for (seq, outcome) in outcomes {
            self.line.ran(seq);
            // Being turned away is no work done: a lane that says "busy" at once would look quick.
            if outcome.as_ref().err().is_none_or(|failure| failure.kind.costs_an_attempt()) {
                self.meter.completed();
            }
            let output = match outcome {
                Ok(output) => output,
                Err(failure) => {
                    self.failed(seq, failure);
                    continue;
                }
            };
            let Some(job) = self.hand.job(seq) else { continue };
            self.services.measures.ran(&job.header.model, output.run_time);
            self.gather.ran(&job.header.model, output.run_time);
            let result = ending::succeeded(&job.header, output, &self.services.place(), now());
            if let Some(held) = self.hand.get_mut(seq) {
                held.ending(Some(Step::Ended(result.status)));
            }
            seqs.push(seq);
            ended.push((job, result));
        }
        if !seqs.is_empty() {
            let services = Arc::clone(&self.services);
            self.hand.end_together(seqs, async move { settle::settle_results(&services, ended).await });
        }
    }

    /// The job's attempt failed, or could not even begin.
    fn failed(&mut self, seq: Seq, failure: Failure) {
        let Some(job) = self.hand.job(seq) else { return };
        measure::failed(self.services.lane, failure.kind);
        if failure.kind == FailureKind::Timeout {
            self.gather.hung(&job.header.model);
        }
        self.services.failures.note(&job.header.model, &failure, now());
        let (place, policy) = (self.services.place(), &self.services.config.retry);
        let ending =
            ending::after_failure(&job.header, failure.clone(), &place, policy, now(), fastrand::f64());
        let retry_ms = match &ending {
            Ending::Retried { delay, .. } => Some(delay.millis()),
            _ => None,
        };
        tracing::warn!(
            job.id = %job.header.id,
            job.model = %job.header.model,
            job.attempt = job.header.attempt,
            failure.kind = %failure.kind,
            retry_ms,
            error = %failure.message,
            "attempt failed"
        );
        self.end(seq, &job, ending);
    }

    /// Begins to bring the job to its end.
    fn end(&mut self, seq: Seq, job: &Arc<Job>, ending: Ending) {
        let Some(held) = self.hand.get_mut(seq) else { return };
        held.ending(ending.event());
        let cancelled = self.cancelled.contains(&job.header.id);
        let (services, job) = (Arc::clone(&self.services), Arc::clone(job));
        self.hand.end(seq, async move { settle::settle(&services, &job, ending, cancelled).await });
    }

    fn ended_as(&mut self, seq: Seq, end: End) {
        match end {
            End::Settled(settlement) => self.settle(seq, settlement),
            End::Unsent(job, recorded) => {
                let services = Arc::clone(&self.services);
                self.hand.end(seq, async move { settle::settle_later(&services, &job, recorded).await });
            }
        }
    }

    fn settle(&mut self, seq: Seq, settlement: Settlement) {
        self.line.settled(seq);
        let Some(spent) = self.hand.settle(seq, settlement) else { return };
        if let Some(ending) = spent.ending {
            self.meter.settled(ending);
        }
        if settlement == Settlement::Ack {
            self.services.measures.job(spent.in_hand);
        }
    }

    fn give_back(&mut self, seq: Seq, reason: &'static str) {
        measure::given_back(self.services.lane, reason, 1);
        self.settle(seq, Settlement::GiveBack);
    }

    fn broadcast(&mut self, broadcast: &[u8]) {
        // One that this build does not know is for others.
        let Ok(Control::Cancelled { id }) = wire::decode(broadcast) else { return };
        self.cancelled.insert(id);
        for (seq, job) in self.hand.with_id(id) {
            // One that runs is left to: the cancel's record was first, so its reply will say cancelled.
            if self.line.remove(seq) {
                self.check(seq, job);
            }
        }
    }

    fn capacity_changed(&mut self) {
        let slots = self.capacity.borrow_and_update().slots;
        self.line.set_slots(slots);
        if slots == 0 {
            for seq in self.line.clear() {
                self.give_back(seq, "no_slots");
            }
        }
        self.adjust_prefetch();
    }

    fn ticked(&mut self) {
        let now = Instant::now();
        self.meter.tick(now - self.ticked);
        self.ticked = now;
        measure::load(self.services.lane, &self.load.borrow());
        self.adjust_prefetch();
    }

    fn adjust_prefetch(&mut self) {
        let Some(prefetch) = &self.prefetch else { return };
        let (slots, current) = (self.line.slots(), *prefetch.borrow());
        let most = self.services.config.prefetch_most();
        let since = self.prefetch_changed.elapsed();
        let next = match slots {
            0 => (current > 0).then_some(0),
            _ => pace::prefetch(current, slots, &self.meter, most, since),
        };
        if let Some(next) = next {
            prefetch.send_replace(next);
            self.prefetch_changed = Instant::now();
        }
    }

    fn publish_load(&self) {
        let load = Load {
            slots: self.line.slots(),
            running: self.line.running(),
            prefetched: self.line.waiting() + self.hand.checks(),
            completed_per_s: self.meter.per_second(),
            draining: *self.phase.borrow() != Phase::Working,
            abandoned: self.capacity.borrow().abandoned,
        };
        self.load.send_if_modified(|current| std::mem::replace(current, load) != load);
    }

    /// Halted: nothing more is waited for. What was recorded is answered by whoever gets the job next.
    fn give_everything_back(&mut self) {
        let mut given_back = self.hand.give_everything_back();
        self.arrivals.close();
        while let Ok(delivery) = self.arrivals.try_recv() {
            delivery.give_back();
            given_back += 1;
        }
        measure::given_back(self.services.lane, "halted", given_back);
    }
}

/// The next broadcast; `Some(None)` once there are no more, and never anything after that.
async fn next(broadcasts: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Option<Bytes>> {
    match broadcasts {
        Some(broadcasts) => Some(broadcasts.recv().await),
        None => None,
    }
}

/// Reads the packed header, and nothing else.
fn read(message: &Message) -> Result<JobHeader, Failure> {
    let missing = "header sl is missing: dispatchers pack it, so this message did not come through one";
    let packed = message.packed.as_ref().ok_or_else(|| Failure::new(FailureKind::Undecodable, missing))?;
    JobHeader::decode(packed).map_err(|error| {
        let kind = match error {
            InvalidHeader::Version(_) => FailureKind::UnsupportedVersion,
            _ => FailureKind::Undecodable,
        };
        Failure::new(kind, format!("header sl: {error}"))
    })
}

fn now() -> UnixMillis {
    UnixMillis::from(SystemTime::now())
}
