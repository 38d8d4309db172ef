//! The client's two tasks: handing replies over, and looking for the records of jobs whose reply is late.

use super::Shared;
use crate::pending::Pending;
use broker::{Consumer, Incoming, Message};
use bytes::Bytes;
use metrics::counter;
use schemas::{JobId, JobResult};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// Records looked for in one round trip.
pub(super) const FETCH_MAX: usize = 200;
/// Looks due within so long of each other are made together.
const TOGETHER: Duration = Duration::from_millis(5);

/// Hands replies over until the broker or the client is closed.
pub(super) async fn receive(
    shared: Arc<Shared>,
    mut consumer: Box<dyn Consumer>,
    mut ended: watch::Receiver<()>,
) {
    loop {
        let incoming = tokio::select! {
            // Resolves with an error once the last clone of the client is dropped.
            _ = ended.changed() => break,
            incoming = consumer.next() => incoming,
        };
        match incoming {
            Some(Incoming::Delivery(delivery)) => {
                if let Err(why) = shared.hand_over(&delivery.message) {
                    counter!("straightline_replies_ignored_total", "why" => why).increment(1);
                }
                delivery.ack();
            }
            Some(Incoming::Resumed) => {
                shared.with_pending(|pending| pending.look_for_all(Instant::now()));
            }
            None => break,
        }
    }
    shared.with_pending(Pending::close);
}

/// Looks for the records of pending jobs when they are due, until the client is closed.
pub(super) async fn look_for_late(shared: Arc<Shared>, mut ended: watch::Receiver<()>) {
    let mut failing = false;
    loop {
        let due = shared.with_pending(|pending| pending.next_due());
        let wake = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ended.changed() => return,
            () = shared.rescheduled.notified() => continue,
            () = wake => {}
        }
        let now = Instant::now() + TOGETHER;
        loop {
            let ids = shared.with_pending(|pending| pending.take_due(now, FETCH_MAX));
            if ids.is_empty() {
                break;
            }
            failing = shared.look_for(&ids, now, failing).await;
        }
    }
}

impl Shared {
    /// Gives a reply to whoever waits for it, or says why it was ignored.
    fn hand_over(&self, reply: &Message) -> Result<(), &'static str> {
        // Most that nobody waits for say so in their property, and are not worth decoding.
        let claimed = reply.properties.correlation_id.as_deref().and_then(|id| id.parse().ok());
        if claimed.is_some_and(|id| !self.with_pending(|pending| pending.contains(id))) {
            return Err("unknown");
        }
        let result = JobResult::decode(&reply.body).map_err(|error| {
            warn!(%error, correlation.id = reply.properties.correlation_id.as_deref(), "ignored a reply that cannot be read");
            "undecodable"
        })?;
        if !self.with_pending(|pending| pending.resolve(result)) {
            return Err("unknown");
        }
        counter!("straightline_results_total", "via" => "reply").increment(1);
        Ok(())
    }

    /// Looks for these records; returns whether shared state failed to answer.
    async fn look_for(&self, ids: &[JobId], now: Instant, failing: bool) -> bool {
        match self.state.fetch(ids).await {
            Ok(records) => {
                for (id, record) in ids.iter().zip(records) {
                    self.found(*id, record, now);
                }
                false
            }
            Err(error) => {
                if !failing {
                    warn!(%error, jobs = ids.len(), "cannot look for the records of pending jobs");
                }
                let why = error.to_string();
                self.with_pending(|pending| ids.iter().for_each(|id| pending.missed(*id, now, Some(&why))));
                true
            }
        }
    }

    fn found(&self, id: JobId, record: Option<Bytes>, now: Instant) {
        match record.as_deref().map(JobResult::decode) {
            // By the id that was asked for: a record under another job's id would answer the wrong waiter.
            Some(Ok(result)) if result.id == id => {
                counter!("straightline_results_total", "via" => "record").increment(1);
                self.with_pending(|pending| pending.resolve(result));
            }
            Some(Ok(_)) => {
                self.with_pending(|pending| pending.missed(id, now, Some("record of another job")))
            }
            Some(Err(error)) => {
                self.with_pending(|pending| pending.missed(id, now, Some(&error.to_string())))
            }
            None => self.with_pending(|pending| pending.missed(id, now, None)),
        }
    }
}
