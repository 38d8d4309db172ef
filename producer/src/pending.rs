//! Who waits for which job, and when to look for its record. Plain state with an explicit clock: no I/O here.
//!
//! Invariants: a waiter is answered at most once; an id with no waiter has no entry; every entry has exactly one
//! place in the schedule, never later than the moment its next waiter gives up.

use crate::client::WaitError;
use schemas::{JobId, JobResult, ModelName, UnixMillis};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// What a waiter gets.
pub(crate) type Answer = Result<JobResult, WaitError>;

/// How a record is looked for while its job is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Until the first look.
    pub(crate) first: Duration,
    /// Between looks at first; doubles each time.
    pub(crate) step: Duration,
    /// Between looks at most.
    pub(crate) step_max: Duration,
}

/// What is known of a job that this process submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Submitted {
    pub(crate) model: ModelName,
    pub(crate) at: UnixMillis,
}

/// Someone about to wait.
pub(crate) struct Wait {
    pub(crate) id: JobId,
    pub(crate) pace: Pace,
    /// When to give up if no record is found by then; none for a waiter that leaves by itself.
    pub(crate) give_up: Option<Instant>,
    pub(crate) submitted: Option<Submitted>,
    /// A place among those that may wait at once.
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Pending {
    entries: HashMap<JobId, Entry>,
    schedule: BTreeSet<(Instant, JobId)>,
    next_token: u64,
}

struct Entry {
    waiters: Vec<Waiter>,
    due: Instant,
    step: Duration,
    step_max: Duration,
    submitted: Option<Submitted>,
}

struct Waiter {
    token: u64,
    give_up: Option<Instant>,
    answer: oneshot::Sender<Answer>,
    /// Given back when the waiter is answered or leaves.
    _place: Option<OwnedSemaphorePermit>,
}

impl Pending {
    /// Adds a waiter; the token tells it from others that wait for the same job.
    pub(crate) fn add(&mut self, wait: Wait, now: Instant) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let token = self.next_token;
        self.next_token += 1;
        let due = earliest(now + wait.pace.first, wait.give_up);
        let entry = self.entries.entry(wait.id).or_insert_with(|| {
            self.schedule.insert((due, wait.id));
            Entry {
                waiters: Vec::new(),
                due,
                step: wait.pace.step,
                step_max: wait.pace.step_max,
                submitted: None,
            }
        });
        entry.step = entry.step.min(wait.pace.step);
        entry.step_max = entry.step_max.min(wait.pace.step_max);
        entry.submitted = entry.submitted.take().or(wait.submitted);
        entry.waiters.push(Waiter { token, give_up: wait.give_up, answer, _place: wait.place });
        if due < entry.due {
            entry.reschedule(&mut self.schedule, wait.id, due);
        }
        (token, receiver)
    }

    /// Whether anyone waits for `id`.
    pub(crate) fn contains(&self, id: JobId) -> bool {
        self.entries.contains_key(&id)
    }

    /// How many jobs are waited for.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What is known of a pending job.
    pub(crate) fn submitted(&self, id: JobId) -> Option<Submitted> {
        self.entries.get(&id)?.submitted.clone()
    }

    /// Answers everyone who waits for the job of `result`; says whether anyone did.
    pub(crate) fn resolve(&mut self, result: JobResult) -> bool {
        let Some(mut entry) = self.entries.remove(&result.id) else { return false };
        self.schedule.remove(&(entry.due, result.id));
        let last = entry.waiters.pop();
        for waiter in entry.waiters {
            // One that has just left is no loss: the record stays.
            let _ = waiter.answer.send(Ok(result.clone()));
        }
        if let Some(waiter) = last {
            let _ = waiter.answer.send(Ok(result));
        }
        true
    }

    /// A waiter left.
    pub(crate) fn leave(&mut self, id: JobId, token: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.waiters.retain(|waiter| waiter.token != token);
        if entry.waiters.is_empty() {
            self.schedule.remove(&(entry.due, id));
            self.entries.remove(&id);
        }
    }

    /// When the next look is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// Up to `max` jobs whose record is to be looked for now, each already scheduled for its look after this one.
    pub(crate) fn take_due(&mut self, now: Instant, max: usize) -> Vec<JobId> {
        let due: Vec<_> =
            self.schedule.iter().take_while(|(due, _)| *due <= now).take(max).copied().collect();
        for (_, id) in &due {
            let Some(entry) = self.entries.get_mut(id) else { continue };
            // One whose time to give up has come is looked for once more and then dropped by `missed`.
            let give_up =
                entry.waiters.iter().filter_map(|waiter| waiter.give_up).filter(|at| *at > now).min();
            let next = earliest(now + entry.step, give_up);
            entry.step = (entry.step * 2).min(entry.step_max);
            entry.reschedule(&mut self.schedule, *id, next);
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Makes every entry due now: replies may have been missed.
    pub(crate) fn look_for_all(&mut self, now: Instant) {
        self.schedule.clear();
        for (id, entry) in &mut self.entries {
            entry.due = now;
            self.schedule.insert((now, *id));
        }
    }

    /// There was no record for `id`, or none could be read (`why`): those whose time is up get the error.
    pub(crate) fn missed(&mut self, id: JobId, now: Instant, why: Option<&str>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let up = |waiter: &mut Waiter| waiter.give_up.is_some_and(|at| at <= now);
        for waiter in entry.waiters.extract_if(.., up) {
            let _ = waiter.answer.send(Err(WaitError::NoRecord { id, state: why.map(str::to_owned) }));
        }
        if entry.waiters.is_empty() {
            self.schedule.remove(&(entry.due, id));
            self.entries.remove(&id);
        }
    }

    /// Nothing will come any more.
    pub(crate) fn close(&mut self) {
        self.schedule.clear();
        for (id, entry) in self.entries.drain() {
            for waiter in entry.waiters {
                let _ = waiter.answer.send(Err(WaitError::Closed { id }));
            }
        }
    }
}

impl Entry {
    fn reschedule(&mut self, schedule: &mut BTreeSet<(Instant, JobId)>, id: JobId, due: Instant) {
        schedule.remove(&(self.due, id));
        self.due = due;
        schedule.insert((due, id));
    }
}

fn earliest(due: Instant, give_up: Option<Instant>) -> Instant {
    give_up.map_or(due, |at| at.min(due))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::{ClientName, JobHeader, Status};

    const SECOND: Duration = Duration::from_secs(1);

    fn wait(id: JobId, give_up: Option<Instant>) -> Wait {
        let pace = Pace { first: SECOND, step: SECOND, step_max: 4 * SECOND };
        Wait { id, pace, give_up, submitted: None, place: None }
    }

    fn result(id: JobId) -> JobResult {
        let model = ModelName::new("m").unwrap();
        let header = JobHeader::new(id, model, ClientName::new("c").unwrap(), UnixMillis(0));
        JobResult::of(&header, Status::Succeeded, UnixMillis(1))
    }

    #[test]
    fn all_who_wait_for_a_job_get_its_result_once() {
        let (mut pending, now, id) = (Pending::default(), Instant::now(), JobId::new());
        let (_, mut one) = pending.add(wait(id, None), now);
        let (_, mut two) = pending.add(wait(id, None), now);
        assert!(pending.resolve(result(id)));
        assert!(!pending.resolve(result(id)), "a repeated reply finds nobody");
        for receiver in [&mut one, &mut two] {
            assert_eq!(receiver.try_recv().unwrap().unwrap().id, id);
        }
        assert_eq!(pending.next_due(), None);
    }

    #[test]
    fn looks_become_rarer_and_the_last_is_at_the_moment_of_giving_up() {
        let (mut pending, start, id) = (Pending::default(), Instant::now(), JobId::new());
        let (_, mut receiver) = pending.add(wait(id, Some(start + 9 * SECOND)), start);
        let mut looks = Vec::new();
        while let Some(due) = pending.next_due() {
            assert_eq!(pending.take_due(due, 10), [id]);
            pending.missed(id, due, None);
            looks.push((due - start).as_secs());
        }
        assert_eq!(looks, [1, 2, 4, 8, 9]);
        assert!(matches!(receiver.try_recv().unwrap(), Err(WaitError::NoRecord { .. })));
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_resumed_queue_makes_everything_due_and_closing_answers_everyone() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        let ids: Vec<_> = (0..5).map(|_| JobId::new()).collect();
        let mut receivers: Vec<_> = ids.iter().map(|id| pending.add(wait(*id, None), now).1).collect();
        assert!(pending.take_due(now, 10).is_empty());
        pending.look_for_all(now);
        assert_eq!(pending.take_due(now, 3).len(), 3);
        assert_eq!(pending.take_due(now, 3).len(), 2);
        pending.close();
        for receiver in &mut receivers {
            assert!(matches!(receiver.try_recv().unwrap(), Err(WaitError::Closed { .. })));
        }
    }

    proptest! {
        #[test]
        fn the_schedule_and_the_entries_always_agree(steps in proptest::collection::vec((0u8..6, 0usize..4, 0u64..5), 1..80)) {
            let mut pending = Pending::default();
            let ids: Vec<_> = (0..4).map(|_| JobId::new()).collect();
            let mut now = Instant::now();
            let mut waiters: Vec<(JobId, u64, oneshot::Receiver<Answer>)> = Vec::new();
            for (action, which, seconds) in steps {
                now += Duration::from_secs(seconds);
                let id = ids[which];
                match action {
                    0 | 1 => {
                        let give_up = (action == 0).then_some(now + 3 * SECOND);
                        let (token, receiver) = pending.add(wait(id, give_up), now);
                        waiters.push((id, token, receiver));
                    }
                    2 => drop(pending.resolve(result(id))),
                    3 => if let Some((id, token, _)) = waiters.pop() { pending.leave(id, token) },
                    4 => for id in pending.take_due(now, 2) { pending.missed(id, now, None) },
                    _ => pending.look_for_all(now),
                }
                prop_assert_eq!(pending.schedule.len(), pending.entries.len());
                for (id, entry) in &pending.entries {
                    prop_assert!(pending.schedule.contains(&(entry.due, *id)));
                    prop_assert!(!entry.waiters.is_empty());
                }
            }
        }
    }
}
