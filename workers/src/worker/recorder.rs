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

/// A batch of so many records takes no more.
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
    records: Vec<Record>,
    answer: oneshot::Sender<Vec<Recorded>>,
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

    /// Records each result unless its job has a record already; answers in their order.
    pub(crate) async fn record(&self, results: Vec<(JobId, Bytes)>) -> Vec<Recorded> {
        let (answer, answered) = oneshot::channel();
        let record =
            |(id, result): &(JobId, Bytes)| Record { id: *id, result: result.clone(), keep: self.keep };
        let records = results.iter().map(record).collect();
        // The writing task outlives every recorder unless it panicked: then nothing is recorded, which is said.
        let sent = self.orders.send(Order { records, answer }).await.is_ok();
        match answered.await {
            Ok(recorded) if sent => recorded,
            _ => {
                missed(results.len());
                results.into_iter().map(|(_, result)| Recorded::Missed(result)).collect()
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
        let mut records = Vec::new();
        let answers: Vec<_> = batch(first, &mut orders)
            .into_iter()
            .map(|order| {
                let asked = order.records.len();
                records.extend(order.records);
                (asked, order.answer)
            })
            .collect();
        let found = finish(&*state, patience, &records).await;
        if let Err(error) = &found {
            missed(records.len());
            tracing::warn!(%error, records = records.len(), "failed to record results; they go out unrecorded");
            late.remember(&records);
        }
        let back = found.is_ok();
        let mut found = found.unwrap_or_default().into_iter();
        let mut recorded = records.into_iter().map(|record| match found.next() {
            Some(Finish::Won) => Recorded::Ours(record.result),
            Some(Finish::Lost(earlier)) => Recorded::Earlier(earlier),
            None => Recorded::Missed(record.result),
        });
        for (asked, answer) in answers {
            // Nobody waits when the worker was halted meanwhile.
            let _ = answer.send(recorded.by_ref().take(asked).collect());
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
    let bytes_of = |order: &Order| order.records.iter().map(|record| record.result.len()).sum::<usize>();
    let (mut records, mut bytes) = (first.records.len(), bytes_of(&first));
    let mut batch = vec![first];
    while records < BATCH_RECORDS_MAX && bytes < BATCH_BYTES_MAX {
        let Ok(order) = orders.try_recv() else { break };
        records += order.records.len();
        bytes += bytes_of(&order);
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
