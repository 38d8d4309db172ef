//! Writing records in batches: whatever has arrived while the batch before was written goes in one round trip.
//!
//! A record that cannot be written is missed, counted and said so; its job goes on, and the record is written late, when
//! state is back, as long as there is room to remember it. What this must not do: decide what a record says.

use bytes::Bytes;
use schemas::JobId;
use state::{Finish, Record, State};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

/// Most records in a batch.
const BATCH_RECORDS_MAX: usize = 128;
/// Bytes after which a batch is full.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most records that are remembered to be written late, and their bytes; the oldest are forgotten first.
const LATE_RECORDS_MAX: usize = 4096;
const LATE_BYTES_MAX: usize = 32 << 20;
/// Between two tries to write late ones while nothing else is to be written.
const LATE_PAUSE: Duration = Duration::from_millis(200);

/// What is recorded for a job now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// Our record.
    Ours(Bytes),
    /// Another came first.
    Earlier(Bytes),
    /// Nothing that we know of: state is away.
    Missed(Bytes),
}

impl Recorded {
    /// The result to reply with.
    pub(crate) fn result(&self) -> &Bytes {
        match self {
            Self::Ours(result) | Self::Earlier(result) | Self::Missed(result) => result,
        }
    }
}

struct Order {
    record: Record,
    answer: oneshot::Sender<Recorded>,
}

/// Hands records to the task that writes them. The task ends when the last of these is gone.
#[derive(Clone)]
pub(crate) struct Recorder {
    orders: mpsc::Sender<Order>,
    keep: Duration,
}

impl Recorder {
    pub(crate) fn start(state: Arc<dyn State>, keep: Duration, patience: Duration) -> Self {
        let (orders, received) = mpsc::channel(BATCH_RECORDS_MAX);
        tokio::spawn(write(state, patience, received));
        Self { orders, keep }
    }

    /// Records `result` unless the job has a record already.
    pub(crate) async fn record(&self, id: JobId, result: Bytes) -> Recorded {
        let (answer, answered) = oneshot::channel();
        let record = Record { id, result: result.clone(), keep: self.keep };
        // The writing task outlives every recorder unless it panicked: then nothing is recorded, which is said.
        let sent = self.orders.send(Order { record, answer }).await.is_ok();
        match answered.await {
            Ok(recorded) if sent => recorded,
            _ => {
                missed(1);
                Recorded::Missed(result)
            }
        }
    }
}

async fn write(state: Arc<dyn State>, patience: Duration, mut orders: mpsc::Receiver<Order>) {
    let mut late = Late::default();
    loop {
        let first = tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(order) => order,
                None => break,
            },
            () = sleep(LATE_PAUSE), if !late.records.is_empty() => {
                late.catch_up(&*state, patience).await;
                continue;
            }
        };
        let batch = batch(first, &mut orders);
        let (records, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|o| (o.record, o.answer)).unzip();
        let found = finish(&*state, patience, &records).await;
        if let Err(error) = &found {
            missed(records.len());
            tracing::warn!(%error, records = records.len(), "failed to record results; they go out unrecorded");
            late.remember(&records);
        }
        let back = found.is_ok();
        let mut found = found.unwrap_or_default().into_iter();
        for (record, answer) in records.into_iter().zip(answers) {
            let recorded = match found.next() {
                Some(Finish::Won) => Recorded::Ours(record.result),
                Some(Finish::Lost(earlier)) => Recorded::Earlier(earlier),
                None => Recorded::Missed(record.result),
            };
            // Nobody waits when the worker was halted meanwhile.
            let _ = answer.send(recorded);
        }
        if back {
            // A batch at a time: fresh results go first.
            late.catch_up(&*state, patience).await;
        }
    }
    while late.catch_up(&*state, patience).await {}
}

/// What has arrived, as much as fits.
fn batch(first: Order, orders: &mut mpsc::Receiver<Order>) -> Vec<Order> {
    let mut bytes = first.record.result.len();
    let mut batch = vec![first];
    while batch.len() < BATCH_RECORDS_MAX && bytes < BATCH_BYTES_MAX {
        let Ok(order) = orders.try_recv() else { break };
        bytes += order.record.result.len();
        batch.push(order);
    }
    batch
}

/// One round trip; an answer for each record, or none for any.
async fn finish(state: &dyn State, patience: Duration, records: &[Record]) -> Result<Vec<Finish>, String> {
    match timeout(patience, state.finish(records)).await {
        Ok(Ok(found)) if found.len() == records.len() => Ok(found),
        Ok(Ok(found)) => Err(format!("state answered for {} of {} records", found.len(), records.len())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("state did not answer within {} ms", patience.as_millis())),
    }
}

/// Records that state did not take when their jobs ended. Their results have gone out, or are about to; whoever asks for
/// one later finds it only if it gets here after all.
#[derive(Default)]
struct Late {
    records: VecDeque<Record>,
    ids: HashSet<JobId>,
    bytes: usize,
}

impl Late {
    fn remember(&mut self, records: &[Record]) {
        // One that nobody could be sent is tried again and again, and is one record all the same.
        for record in records {
            if !self.ids.insert(record.id) {
                continue;
            }
            self.bytes += record.result.len();
            self.records.push_back(record.clone());
        }
        while self.records.len() > LATE_RECORDS_MAX || self.bytes > LATE_BYTES_MAX {
            let Some(forgotten) = self.records.pop_front() else { break };
            self.bytes -= forgotten.result.len();
            self.ids.remove(&forgotten.id);
            metrics::counter!("straightline_records_forgotten_total").increment(1);
        }
    }

    /// Writes a batch; false if there was none, or state did not take it.
    async fn catch_up(&mut self, state: &dyn State, patience: Duration) -> bool {
        let batch: Vec<Record> = self.records.iter().take(BATCH_RECORDS_MAX).cloned().collect();
        if batch.is_empty() || finish(state, patience, &batch).await.is_err() {
            return false;
        }
        for written in self.records.drain(..batch.len()) {
            self.bytes -= written.result.len();
            self.ids.remove(&written.id);
        }
        tracing::info!(records = batch.len(), left = self.records.len(), "results are recorded, late");
        true
    }
}

fn missed(records: usize) {
    metrics::counter!("straightline_records_missed_total").increment(records as u64);
}
