//! Dead jobs: list, show, requeue, drop. The index in shared state is what an operator sees; the jobs themselves rest
//! in the `dead` queue.

use super::scan::{Scan, Which};
use crate::now;
use broker::{Broker, BrokerError, Message, PublishError, Queue, Route};
use futures_util::future::BoxFuture;
use schemas::dead::DeadEntry;
use schemas::limits::DEADLINE_MAX;
use schemas::{JobHeader, JobId, JobResult, LaneSet, UnixMillis};
use serde::{Deserialize, Serialize};
use state::{State, StateError};
use std::time::Duration;

/// Most entries in one page.
pub const DEAD_PAGE_MAX: u64 = 1_000;
/// A job requeued gets at least so long, however short its deadline was.
const DEADLINE_MIN: Duration = Duration::from_secs(60);
/// Entries taken out of the index together.
const UNBURY_MAX: usize = 100;

/// Why a dead job could not be dealt with. Those dealt with before stay so.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The broker could not.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Shared state could not.
    #[error(transparent)]
    State(#[from] StateError),
    /// A job could not be published again.
    #[error("failed to publish a dead job again: {0}")]
    Publish(#[from] PublishError),
    /// The broker was closed meanwhile.
    #[error("broker is closed")]
    Closed,
}

/// A page of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadPage {
    /// Newest first.
    pub entries: Vec<DeadEntry>,
    /// Entries in the whole index.
    pub total: u64,
    /// Where this page begins.
    pub offset: u64,
}

/// One dead job, as much as is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadDetails {
    /// Its entry.
    pub entry: DeadEntry,
    /// What its client got, while the record lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
}

/// What requeueing came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// Each dead job with the job it became.
    pub jobs: Vec<Requeue>,
    /// Ids that are not in the queue.
    pub not_found: Vec<JobId>,
    /// Jobs whose header cannot be read: they stay dead, and can only be dropped.
    pub unreadable: u64,
}

/// A dead job and the new one made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeue {
    /// The dead job.
    pub origin: JobId,
    /// The new one.
    pub id: JobId,
}

/// What dropping came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Jobs dropped.
    pub jobs: u64,
    /// Ids that are not in the queue. Their entries are gone from the index all the same.
    pub not_found: Vec<JobId>,
}

/// A page of the index, newest first: at most [`DEAD_PAGE_MAX`] entries from `offset`.
pub fn dead_list<'a>(
    state: &'a dyn State,
    offset: u64,
    limit: u64,
) -> BoxFuture<'a, Result<DeadPage, StateError>> {
    Box::pin(async move {
        let (entries, total) = state.dead(offset, limit.clamp(1, DEAD_PAGE_MAX)).await?;
        Ok(DeadPage { entries, total, offset })
    })
}

/// What is known of one dead job; `None` if it is not in the index.
pub fn dead_show<'a>(
    state: &'a dyn State,
    id: JobId,
) -> BoxFuture<'a, Result<Option<DeadDetails>, StateError>> {
    Box::pin(async move {
        let ids = [id];
        let (entries, records) = tokio::join!(state.dead_entries(&ids), state.fetch(&ids));
        let Some(entry) = entries?.pop().flatten() else { return Ok(None) };
        // The entry is what was asked for: a record that is away or unreadable takes nothing from it.
        let record = records.ok().and_then(|mut records| records.pop().flatten());
        let result = record.and_then(|record| JobResult::decode(&record).ok());
        Ok(Some(DeadDetails { entry, result }))
    })
}

/// Submits dead jobs again, each as a new job with a fresh id and deadline that names its origin. Nothing is sent back
/// for it, since nobody waits: its result is fetched by the new id.
pub fn dead_requeue<'a>(
    broker: &'a dyn Broker,
    state: &'a dyn State,
    which: &'a Which,
) -> BoxFuture<'a, Result<Requeued, DeadError>> {
    Box::pin(async move {
        let mut scan = Scan::begin(broker, which).await?;
        let mut requeued = Requeued::default();
        let mut unbury = Unbury::new(state);
        while let Some(dead) = scan.next().await? {
            let Some(header) = &dead.header else {
                requeued.unreadable += 1;
                scan.keep(dead).await?;
                continue;
            };
            let (origin, header) = (header.id, fresh(header, JobId::new(), now()));
            let message = again(&dead.delivery.message, &header);
            if let Err(error) = broker.publish(Route::To(Queue::Jobs(header.class)), message).await.await {
                scan.keep(dead).await?;
                unbury.flush().await?;
                return Err(error.into());
            }
            scan.settle(dead);
            requeued.jobs.push(Requeue { origin, id: header.id });
            unbury.add(origin).await?;
        }
        unbury.flush().await?;
        requeued.not_found = scan.end();
        Ok(requeued)
    })
}

/// Forgets dead jobs for good, their entries included. Their records stay until they expire.
pub fn dead_drop<'a>(
    broker: &'a dyn Broker,
    state: &'a dyn State,
    which: &'a Which,
) -> BoxFuture<'a, Result<Dropped, DeadError>> {
    Box::pin(async move {
        let mut scan = Scan::begin(broker, which).await?;
        let mut dropped = Dropped::default();
        let mut unbury = Unbury::new(state);
        while let Some(dead) = scan.next().await? {
            let id = dead.id;
            scan.settle(dead);
            dropped.jobs += 1;
            if let Some(id) = id {
                unbury.add(id).await?;
            }
        }
        dropped.not_found = scan.end();
        // An entry without its job is of no use to anyone, and the one who drops it means the entry.
        for id in &dropped.not_found {
            unbury.add(*id).await?;
        }
        unbury.flush().await?;
        Ok(dropped)
    })
}

/// The header of the new job made of a dead one: nothing of its way so far but where it came from.
fn fresh(dead: &JobHeader, id: JobId, now: UnixMillis) -> JobHeader {
    let had = dead.deadline.since(dead.submitted).clamp(DEADLINE_MIN, DEADLINE_MAX);
    JobHeader {
        id,
        deadline: now.plus(had),
        submitted: now,
        attempt: 1,
        failed_lanes: LaneSet::EMPTY,
        history: Vec::new(),
        placement: None,
        reply_to: None,
        origin: Some(dead.id),
        ..dead.clone()
    }
}

fn again(dead: &Message, header: &JobHeader) -> Message {
    let mut message = dead.clone();
    message.packed = Some(header.encode());
    message.properties.correlation_id = Some(header.id.to_string());
    message.properties.reply_to = None;
    // The broker vouched for its first sender; this hop is ours.
    message.properties.user_id = None;
    message
}

/// Takes entries out of the index, some at a time. Losing this on a crash leaves entries whose job is gone, which
/// dropping them by id tidies up.
struct Unbury<'a> {
    state: &'a dyn State,
    ids: Vec<JobId>,
}

impl<'a> Unbury<'a> {
    fn new(state: &'a dyn State) -> Self {
        Self { state, ids: Vec::new() }
    }

    async fn add(&mut self, id: JobId) -> Result<(), StateError> {
        self.ids.push(id);
        if self.ids.len() >= UNBURY_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StateError> {
        if !self.ids.is_empty() {
            self.state.unbury(&std::mem::take(&mut self.ids)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::failure::{Attempt, Failure, FailureKind};
    use schemas::{ClientName, Lane, ModelName, ReplyQueue};

    #[test]
    fn a_requeued_job_is_new_but_for_what_was_asked() {
        let client = ClientName::new("c").unwrap();
        let mut dead =
            JobHeader::new(JobId::new(), ModelName::new("m").unwrap(), client.clone(), UnixMillis(1_000));
        dead.deadline = UnixMillis(1_000 + 7_200_000);
        dead.attempt = 4;
        dead.attempts_max = Some(4);
        dead.failed_lanes = LaneSet::EMPTY.with(Lane::Local);
        dead.reply_to = Some(ReplyQueue::of(&client, "i").unwrap());
        dead.history.push(Attempt {
            number: 4,
            lane: Some(Lane::Local),
            worker: "w".into(),
            at: UnixMillis(2_000),
            failure: Failure::new(FailureKind::ModelError, "x"),
        });
        let id = JobId::new();
        let new = fresh(&dead, id, UnixMillis(9_000_000));
        assert_eq!((new.id, new.origin, new.attempt), (id, Some(dead.id), 1));
        assert_eq!(new.deadline, UnixMillis(9_000_000 + 7_200_000));
        assert!(new.history.is_empty() && new.failed_lanes.is_empty() && new.reply_to.is_none());
        assert_eq!((new.attempts_max, new.model, new.client), (Some(4), dead.model.clone(), client));
        dead.deadline = dead.submitted;
        assert_eq!(fresh(&dead, id, UnixMillis(0)).deadline, UnixMillis(60_000), "no new job is born dead");
    }

    #[test]
    fn a_requeued_message_keeps_its_body_and_strange_headers_only() {
        let header = JobHeader::new(
            JobId::new(),
            ModelName::new("m").unwrap(),
            ClientName::new("c").unwrap(),
            UnixMillis(0),
        );
        let mut dead = Message { body: "b".into(), ..Message::default() };
        dead.headers.push(("x-mine".into(), broker::Value::Bool(true)));
        dead.properties.user_id = Some("c".into());
        dead.properties.reply_to = Some("reply.c.i".into());
        let message = again(&dead, &header);
        assert_eq!((&message.body, &message.headers), (&dead.body, &dead.headers));
        assert_eq!(message.properties.user_id, None);
        assert_eq!(message.properties.reply_to, None);
        assert_eq!(message.properties.correlation_id, Some(header.id.to_string()));
    }
}
