//! The threads of the local lane: handing tasks over, leaving those that take too long, replacing them.

use crate::lane::{Capacity, Ran, Task};
use crate::runtime::Runtime;
use schemas::{Failure, FailureKind, JobId, ModelName};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot, watch};

/// How long a thread may take between two tasks before it is looked at again.
const BETWEEN: Duration = Duration::from_millis(1);

type Work = dyn Fn(Task) -> Result<Ran, Failure> + Send + Sync;

pub(super) struct Threads {
    work: Box<Work>,
    runtime: Arc<dyn Runtime>,
    slots: u32,
    abandoned_max: u32,
    table: Mutex<Table>,
    /// One permit per idle thread in the table.
    idle: Semaphore,
    capacity: watch::Sender<Capacity>,
    /// Threads that exist, abandoned ones included.
    alive: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    /// The most recently used last: its caches are warm.
    idle: Vec<Thread>,
    /// Threads that serve, idle or busy.
    serving: u32,
    abandoned: HashSet<u64>,
    named: u64,
    stopping: bool,
}

/// A model thread, as its lane holds it. Dropping it ends the thread once its run is over.
struct Thread {
    number: u64,
    orders: mpsc::Sender<Order>,
}

struct Order {
    batch: Arc<Mutex<Batch>>,
    /// Told when all have run. Nobody waits any more once its other end is gone.
    done: oneshot::Sender<()>,
}

/// Tasks that one thread runs in turn.
#[derive(Default)]
struct Batch {
    waiting: VecDeque<Task>,
    running: Option<Running>,
    ends: Vec<Result<Ran, Failure>>,
}

/// The task that runs.
struct Running {
    id: JobId,
    model: ModelName,
    since: Instant,
    limit: Duration,
}

impl Batch {
    /// When to look whether a limit has passed: no later than that of the one that runs, and no longer than any of those
    /// behind it may take.
    fn patience(&self) -> Duration {
        let left = |running: &Running| running.limit.saturating_sub(running.since.elapsed());
        let limits = self.waiting.iter().map(|task| task.limit);
        limits.chain(self.running.as_ref().map(left)).min().unwrap_or(BETWEEN)
    }
}

fn lock(batch: &Mutex<Batch>) -> MutexGuard<'_, Batch> {
    batch.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    pub(super) fn start(
        slots: u32,
        abandoned_max: u32,
        runtime: Arc<dyn Runtime>,
        work: impl Fn(Task) -> Result<Ran, Failure> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, std::io::Error> {
        let threads = Arc::new(Self {
            work: Box::new(work),
            runtime,
            slots,
            abandoned_max,
            table: Mutex::default(),
            idle: Semaphore::new(0),
            capacity: watch::Sender::new(Capacity::default()),
            alive: watch::Sender::new(0),
        });
        threads.fill(&mut threads.table())?;
        Ok(threads)
    }

    pub(super) fn capacity(&self) -> watch::Receiver<Capacity> {
        self.capacity.subscribe()
    }

    /// Runs tasks one after the other on one thread; on another if one of them outlives its limit.
    pub(super) async fn run(self: &Arc<Self>, tasks: Vec<Task>) -> Vec<Result<Ran, Failure>> {
        let asked = tasks.len();
        let mut ends = Vec::with_capacity(asked);
        let mut waiting = VecDeque::from(tasks);
        while !waiting.is_empty() {
            let batch = Arc::new(Mutex::new(Batch { waiting, ..Batch::default() }));
            let ended = self.run_batch(&batch).await;
            let mut batch = lock(&batch);
            waiting = std::mem::take(&mut batch.waiting);
            let begun = !ends.is_empty();
            ends.append(&mut batch.ends);
            ends.extend(ended.err().map(|failure| match failure.kind {
                // The lane closed over one before them: they were not begun, and are not to pay for it.
                FailureKind::LaneUnavailable if begun => {
                    Err(Failure::new(FailureKind::Busy, failure.message))
                }
                _ => Err(failure),
            }));
        }
        debug_assert_eq!(ends.len(), asked, "an end for each, in their order");
        ends
    }

    /// Runs what waits in `batch` until all of it has run, or one of them cannot or outlives its limit: the failure is
    /// that one's, and those behind it wait on.
    async fn run_batch(self: &Arc<Self>, batch: &Arc<Mutex<Batch>>) -> Result<(), Failure> {
        let unable = |failure| {
            lock(batch).waiting.pop_front();
            failure
        };
        let mut busy = self.take().await.map_err(unable)?;
        let mut patience = lock(batch).patience();
        let (done, mut all_ran) = oneshot::channel();
        busy.order(Order { batch: Arc::clone(batch), done }).map_err(unable)?;
        loop {
            match tokio::time::timeout(patience, &mut all_ran).await {
                Ok(Ok(())) => {
                    busy.done();
                    return Ok(());
                }
                Ok(Err(_)) => {
                    busy.gone();
                    let mut batch = lock(batch);
                    let running = batch.running.take().map(|running| running.model);
                    let Some(model) = running.or_else(|| Some(batch.waiting.pop_front()?.model)) else {
                        return Ok(());
                    };
                    let message = format!("the thread that ran model {model} died");
                    return Err(Failure::new(FailureKind::Internal, message));
                }
                Err(_) => {}
            }
            // Held until it is decided: the one that runs may end just now, and the next begin.
            let found = lock(batch);
            let late = found.running.as_ref().filter(|running| running.since.elapsed() >= running.limit);
            let Some(Running { id, model, limit, .. }) = late else {
                patience = found.patience();
                continue;
            };
            // From here on the thread takes no more of them, and the end of this one is not noted.
            all_ran.close();
            let message = format!("model {model} ran longer than {} ms", limit.as_millis());
            tracing::warn!(job.id = %id, %model, limit_ms = limit.as_millis(), "run outlived its limit; its thread is abandoned");
            drop(found);
            drop(busy);
            self.tell_if_full();
            return Err(Failure::new(FailureKind::Timeout, message));
        }
    }

    /// Ends idle threads now and busy ones when their run is over.
    pub(super) fn close(&self) {
        let mut table = self.table();
        table.stopping = true;
        table.idle.clear();
        self.idle.close();
        self.publish(&table);
    }

    /// Closes, and waits for at most `grace`; says how many threads are left.
    pub(super) async fn stop(&self, grace: Duration) -> usize {
        self.close();
        let mut alive = self.alive.subscribe();
        let ended = tokio::time::timeout(grace, alive.wait_for(|alive| *alive == 0)).await;
        if ended.is_ok() { 0 } else { *self.alive.borrow() }
    }

    /// An idle thread. There is one unless the caller exceeds the slots, or the lane has just lost one.
    async fn take(self: &Arc<Self>) -> Result<Busy<'_>, Failure> {
        let unavailable = |_| {
            Failure::new(FailureKind::LaneUnavailable, "the local lane takes no jobs: see its worker's log")
        };
        let permit = match self.idle.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let mut capacity = self.capacity();
                tokio::select! {
                    permit = self.idle.acquire() => permit.map_err(|_| unavailable(()))?,
                    _ = capacity.wait_for(|capacity| capacity.slots == 0) => return Err(unavailable(())),
                }
            }
        };
        permit.forget();
        let thread = self.table().idle.pop().ok_or(()).map_err(unavailable)?;
        Ok(Busy { threads: self, thread: Some(thread) })
    }

    /// Starts threads until there are as many as slots, unless too many are abandoned.
    fn fill(self: &Arc<Self>, table: &mut Table) -> Result<(), std::io::Error> {
        let mut filled = Ok(());
        while filled.is_ok() && !table.stopping && table.serving < self.slots && self.may_serve(table) {
            filled = self.spawn(table);
        }
        self.publish(table);
        filled
    }

    fn spawn(self: &Arc<Self>, table: &mut Table) -> Result<(), std::io::Error> {
        let number = table.named;
        let (orders, received) = mpsc::channel();
        let threads = Arc::clone(self);
        std::thread::Builder::new().name(format!("model-{number}")).spawn(move || {
            let leaving = Leaving { threads: Arc::clone(&threads), number };
            let runtime = Arc::clone(&threads.runtime);
            runtime.on_one_thread(Box::new(move || threads.serve(received)));
            drop(leaving);
        })?;
        table.named += 1;
        table.serving += 1;
        table.idle.push(Thread { number, orders });
        self.alive.send_modify(|alive| *alive += 1);
        self.idle.add_permits(1);
        Ok(())
    }

    /// The life of a model thread.
    fn serve(&self, orders: mpsc::Receiver<Order>) {
        for Order { batch, done } in orders {
            while let Some(task) = next(&batch, &done) {
                let end = (self.work)(task);
                let mut batch = lock(&batch);
                batch.running = None;
                if !done.is_closed() {
                    batch.ends.push(end);
                }
            }
            // Nobody waits any more where a run outlived its limit.
            let _ = done.send(());
        }
    }

    /// The run of `thread` is not waited for any longer.
    fn abandon(self: &Arc<Self>, thread: Thread) {
        let mut table = self.table();
        table.serving -= 1;
        table.abandoned.insert(thread.number);
        // Only now: the thread ends when its sender is gone, and must find itself among the abandoned.
        drop(thread);
        self.refill(&mut table);
    }

    fn tell_if_full(&self) {
        let table = self.table();
        if !self.may_serve(&table) {
            tracing::error!(
                abandoned = table.abandoned.len(),
                abandoned_max = self.abandoned_max,
                "local lane stops taking jobs: too many runs outlived their limit and hold their threads; \
                 it resumes when enough of them end, or restart the worker"
            );
        }
    }

    /// A thread has ended.
    fn ended(self: &Arc<Self>, number: u64) {
        let mut table = self.table();
        if !table.abandoned.remove(&number) {
            table.serving -= 1;
        }
        self.alive.send_modify(|alive| *alive -= 1);
        self.refill(&mut table);
    }

    fn refill(self: &Arc<Self>, table: &mut Table) {
        if let Err(error) = self.fill(table) {
            tracing::error!(%error, serving = table.serving, slots = self.slots, "model thread cannot be started");
        }
    }

    fn may_serve(&self, table: &Table) -> bool {
        table.abandoned.len() <= self.abandoned_max as usize
    }

    fn publish(&self, table: &Table) {
        let slots = if table.stopping || !self.may_serve(table) { 0 } else { table.serving };
        let abandoned = u32::try_from(table.abandoned.len()).unwrap_or(u32::MAX);
        let now = Capacity { slots, abandoned };
        self.capacity.send_if_modified(|capacity| std::mem::replace(capacity, now) != now);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next task to run, while somebody waits for it.
fn next(batch: &Mutex<Batch>, done: &oneshot::Sender<()>) -> Option<Task> {
    let mut batch = lock(batch);
    if done.is_closed() {
        return None;
    }
    let task = batch.waiting.pop_front()?;
    batch.running =
        Some(Running { id: task.id, model: task.model.clone(), since: Instant::now(), limit: task.limit });
    Some(task)
}

/// A thread at work for one caller. Dropped before the run's end, whether the limit passed or the caller left, it
/// abandons the thread.
struct Busy<'a> {
    threads: &'a Arc<Threads>,
    thread: Option<Thread>,
}

impl Busy<'_> {
    fn order(&mut self, order: Order) -> Result<(), Failure> {
        let sent = self.thread.as_ref().is_some_and(|thread| thread.orders.send(order).is_ok());
        if !sent {
            // It died while it was idle, and has been replaced.
            self.thread = None;
            return Err(Failure::new(FailureKind::Internal, "a model thread died"));
        }
        Ok(())
    }

    /// The run is over: the thread is idle again.
    fn done(mut self) {
        let Some(thread) = self.thread.take() else { return };
        let mut table = self.threads.table();
        if !table.stopping {
            table.idle.push(thread);
            self.threads.idle.add_permits(1);
        }
    }

    /// The thread is gone already.
    fn gone(mut self) {
        self.thread = None;
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.threads.abandon(thread);
        }
    }
}

/// Says that a thread has ended, however it ended.
struct Leaving {
    threads: Arc<Threads>,
    number: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.threads.ended(self.number);
    }
}

#[cfg(test)]
impl Threads {
    pub(super) fn alive_now(&self) -> watch::Ref<'_, usize> {
        self.alive.borrow()
    }

    pub(super) fn idle_now(&self) -> usize {
        self.table().idle.len()
    }
}
