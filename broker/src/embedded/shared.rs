//! What the tasks and the storage thread share: the queues, and the work that waits for the thread.
//!
//! One lock guards both. It is held for single decisions, never while anything is read, written or awaited, so that
//! tasks may take it. Whoever must be woken is woken after it is released.

use super::clock::Clock;
use super::queues::{Place, Queues};
use super::record::Content;
use super::store::{Insert, Write};
use crate::receipt::PublishError;
use bytes::Bytes;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

/// Settlements alone wait this long for something that is waited for, so that a commit serves both. A crash before
/// that repeats a delivery, as a crash in mid-commit would.
const SETTLEMENTS_LINGER_MS: u64 = 20;
/// Unless there are so many of them.
const SETTLEMENTS_MAX: usize = 4_096;

/// See the module.
pub(super) struct Shared {
    pub(super) clock: Clock,
    state: Mutex<State>,
    /// Wakes the storage thread.
    work: Condvar,
    /// Whether the storage thread has ended and let go of the file.
    pub(super) ended: watch::Sender<bool>,
}

pub(super) struct State {
    pub(super) queues: Queues,
    pub(super) ending: Option<Ending>,
    arrivals: Vec<Arrival>,
    /// Who waits for a queue to be declared.
    declared: Vec<oneshot::Sender<()>>,
    /// Whether the storage thread waits.
    idle: bool,
    /// Whether what is in [`Queues::writes`] must not linger.
    urgent: bool,
    /// When the oldest settlement was left, if any waits.
    lingering_since: Option<u64>,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// What is under way is written first.
    Orderly,
    /// As if the process had been killed: nothing more is written.
    Abrupt,
}

/// A message to be written, and who waits for that.
pub(super) struct Arrival {
    pub(super) place: Place,
    pub(super) content: Box<Content>,
    pub(super) record: Vec<u8>,
    /// The body, where it is stored apart.
    pub(super) apart: Option<Bytes>,
    /// `None` once its publisher has been told.
    pub(super) waiting: Option<Waiting>,
}

/// A publisher that waits for its receipt.
pub(super) struct Waiting {
    pub(super) receipt: oneshot::Sender<Result<(), PublishError>>,
    /// Since when, in milliseconds since the Unix epoch.
    pub(super) since: u64,
    /// Its share of what may be in flight.
    pub(super) in_flight: [OwnedSemaphorePermit; 2],
}

/// What is written in one transaction.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<Write>,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) declared: Vec<oneshot::Sender<()>>,
}

/// What the storage thread does next.
#[derive(Default)]
pub(super) struct Work {
    /// Queue numbers, and messages to read.
    pub(super) loads: Vec<(u32, Vec<u64>)>,
    pub(super) batch: Batch,
}

/// The state, locked. When it is let go, the storage thread is woken if there is work for it, then everyone else.
pub(super) struct Locked<'a> {
    shared: &'a Shared,
    /// `None` only while it is being dropped.
    state: Option<MutexGuard<'a, State>>,
}

impl Shared {
    pub(super) fn new(queues: Queues, clock: Clock) -> Arc<Self> {
        let state = State {
            queues,
            ending: None,
            arrivals: Vec::new(),
            declared: Vec::new(),
            idle: false,
            // The queues that are new to the file.
            urgent: true,
            lingering_since: None,
        };
        Arc::new(Self {
            clock,
            state: Mutex::new(state),
            work: Condvar::new(),
            ended: watch::Sender::new(false),
        })
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        // A panic elsewhere leaves the queues as they were before or after one decision.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { shared: self, state: Some(state) }
    }

    /// Ends: no further call is accepted, and everyone who waits for a delivery is told.
    pub(super) fn end(&self, ending: Ending) {
        let mut state = self.lock();
        if state.ending.is_none() || ending == Ending::Abrupt {
            state.ending = Some(ending);
        }
        for waiter in state.queues.everyone() {
            // `notify_waiters` is for those who wait already, `notify_one` for who is just about to.
            waiter.notify_waiters();
            waiter.notify_one();
        }
        drop(state);
        self.work.notify_one();
    }

    /// Waits for work. After trouble it waits until `not_before`, whatever there is to do, unless it ends; 0 is no
    /// trouble. `None` once it has ended and nothing is left to do.
    pub(super) fn next_work(&self, not_before: u64) -> Option<Work> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = self.clock.now();
            // What falls due once it ends is for whoever opens the file next.
            if state.ending.is_none() {
                state.urgent |= state.queues.tick(now);
            }
            let rested = now >= not_before || state.ending.is_some();
            match state.ending {
                Some(Ending::Abrupt) => return None,
                Some(Ending::Orderly) if state.nothing_left() && not_before == 0 => return None,
                // After trouble there is always something to do: to find out whether it is over.
                _ if rested && not_before != 0 => return Some(state.take_work(now).unwrap_or_default()),
                _ if rested => {
                    if let Some(work) = state.take_work(now) {
                        return Some(work);
                    }
                }
                _ => {}
            }
            let until = if rested { state.next_round(now) } else { Some(not_before) };
            state.idle = rested;
            state = match until {
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let wait = Duration::from_millis(until.saturating_sub(now).max(1));
                    self.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.idle = false;
        }
    }

    /// Takes back work that was not done, to be done before what was left since.
    pub(super) fn put_back(&self, mut work: Work) {
        let mut state = self.lock();
        work.loads.append(&mut state.queues.loads);
        work.batch.writes.append(&mut state.queues.writes);
        work.batch.declared.append(&mut state.declared);
        work.batch.arrivals.append(&mut state.arrivals);
        state.queues.loads = work.loads;
        state.queues.writes = work.batch.writes;
        state.declared = work.batch.declared;
        state.arrivals = work.batch.arrivals;
        state.urgent = true;
    }

    /// The batch is on disk: its messages can be handed out, and everyone who waited for it is told.
    pub(super) fn written(&self, batch: Batch) {
        let mut state = self.lock();
        for write in &batch.writes {
            if let Write::Move { to, .. } = write {
                state.queues.moved(*to);
            }
        }
        let mut waiting = Vec::with_capacity(batch.arrivals.len());
        for arrival in batch.arrivals {
            state.queues.arrived(&arrival.place, arrival.content);
            waiting.extend(arrival.waiting);
        }
        drop(state);
        for waiting in waiting {
            waiting.resolve(Ok(()));
        }
        for waiter in batch.declared {
            let _ = waiter.send(());
        }
    }

    /// These messages are not on disk and will not be.
    pub(super) fn refused(&self, arrivals: Vec<Arrival>, error: &PublishError) {
        let mut state = self.lock();
        for arrival in &arrivals {
            state.queues.refused(&arrival.place);
        }
        drop(state);
        for waiting in arrivals.into_iter().filter_map(|arrival| arrival.waiting) {
            waiting.resolve(Err(error.clone()));
        }
    }

    /// Takes out the messages that have waited since `before` or longer.
    pub(super) fn overdue(&self, before: u64) -> Vec<Arrival> {
        let mut state = self.lock();
        let overdue =
            |arrival: &mut Arrival| arrival.waiting.as_ref().is_some_and(|waiting| waiting.since <= before);
        state.arrivals.extract_if(.., overdue).collect()
    }

    /// The storage thread has ended: nobody waits for it any more.
    pub(super) fn ended(&self) {
        self.end(Ending::Abrupt);
        let mut state = self.lock();
        let left = (std::mem::take(&mut state.arrivals), std::mem::take(&mut state.declared));
        drop(state);
        drop(left);
        self.ended.send_replace(true);
    }
}

impl Waiting {
    /// Tells the publisher, and makes room for another message in flight.
    pub(super) fn resolve(self, result: Result<(), PublishError>) {
        drop(self.in_flight);
        // Whoever dropped the receipt does not want to know.
        let _ = self.receipt.send(result);
    }
}

impl State {
    /// Leaves a message to be written.
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        self.arrivals.push(arrival);
    }

    /// Waits for the writes left so far.
    pub(super) fn when_declared(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.declared.push(sender);
        receiver
    }

    fn nothing_left(&self) -> bool {
        self.arrivals.is_empty() && self.declared.is_empty() && self.queues.writes.is_empty()
    }

    /// What there is to do now, if anything: what must be read is read at once, settlements linger.
    fn take_work(&mut self, now: u64) -> Option<Work> {
        let writes = !self.queues.writes.is_empty();
        if writes && self.lingering_since.is_none() {
            self.lingering_since = Some(now);
        }
        let lingered = self.lingering_since.is_some_and(|since| now >= since + SETTLEMENTS_LINGER_MS);
        let batch = if self.commits_at_once() || (writes && lingered) {
            self.urgent = false;
            self.lingering_since = None;
            Batch {
                writes: std::mem::take(&mut self.queues.writes),
                arrivals: std::mem::take(&mut self.arrivals),
                declared: std::mem::take(&mut self.declared),
            }
        } else {
            Batch::default()
        };
        let work = Work { loads: std::mem::take(&mut self.queues.loads), batch };
        (!work.loads.is_empty() || !work.batch.is_empty()).then_some(work)
    }

    /// Whether something must be committed that does not linger.
    fn commits_at_once(&self) -> bool {
        let writes = self.queues.writes.len();
        let asked = !self.arrivals.is_empty() || !self.declared.is_empty();
        asked || writes >= SETTLEMENTS_MAX || (writes > 0 && (self.urgent || self.ending.is_some()))
    }

    fn next_round(&self, now: u64) -> Option<u64> {
        let linger = self.lingering_since.map(|since| since + SETTLEMENTS_LINGER_MS);
        linger.into_iter().chain(self.queues.next_due(now)).min()
    }

    /// Whether the storage thread, waiting, must look again.
    fn concerns_thread(&self) -> bool {
        // The first settlement does: it begins to linger.
        let first = self.lingering_since.is_none() && !self.queues.writes.is_empty();
        first || !self.queues.loads.is_empty() || self.commits_at_once()
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.arrivals.is_empty() && self.declared.is_empty()
    }

    pub(super) fn inserts(&self) -> impl Iterator<Item = Insert<'_>> {
        self.arrivals.iter().map(|arrival| Insert {
            id: arrival.place.id,
            record: &arrival.record,
            body: arrival.apart.as_deref(),
        })
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        self.state.as_ref().expect("it is only empty while it is being dropped")
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("it is only empty while it is being dropped")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else { return };
        let wakes = std::mem::take(&mut state.queues.wakes);
        let thread = state.idle && state.concerns_thread();
        drop(state);
        if thread {
            self.shared.work.notify_one();
        }
        for (whom, count) in wakes {
            for _ in 0..count {
                whom.notify_one();
            }
        }
    }
}
