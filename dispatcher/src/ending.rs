//! The end of jobs that never reach a worker: recorded, answered, buried if they failed, then acknowledged.

use broker::{Broker, Delivery, Message, Properties, PublishError, Queue, Route};
use bytes::Bytes;
use schemas::dead::DeadEntry;
use schemas::wire::{CONTENT_TYPE, WIRE_VERSION};
use schemas::{Class, ClientName, Failure, JobHeader, JobId, JobResult, ReplyQueue, Status, UnixMillis};
use state::{Finish, Record, State};
use std::sync::Arc;
use std::time::Duration;

/// How long a delivery whose end could not be published is kept before it goes back: its queue would hand it out
/// again at once.
const PAUSE: Duration = Duration::from_millis(500);

/// A job that ends here.
pub(crate) struct Ending {
    pub(crate) delivery: Box<Delivery>,
    pub(crate) queue: Queue,
    pub(crate) fate: Fate,
}

/// Why it ends.
pub(crate) enum Fate {
    /// It has ended already: this is what is recorded.
    Recorded(JobHeader, Bytes),
    /// It ends now.
    Ended(JobHeader, Status, Failure),
    /// It never was a job.
    Unreadable {
        id: Option<JobId>,
        client: Option<ClientName>,
        reply_to: Option<ReplyQueue>,
        failure: Failure,
    },
}

/// What it takes to end jobs.
pub(crate) struct Ender {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) state: Arc<dyn State>,
    pub(crate) record_keep: Duration,
    pub(crate) name: String,
}

impl Ender {
    /// Ends one job; the delivery is acknowledged once everybody who must know does.
    pub(crate) async fn end(&self, ending: Ending, now: UnixMillis) {
        let Ending { mut delivery, queue, fate } = ending;
        let message = std::mem::take(&mut delivery.message);
        let ended = match fate {
            Fate::Recorded(header, result) => self.reply(header.reply_to, header.id, result).await,
            Fate::Ended(header, status, failure) => {
                metrics::counter!("straightline_dispatcher_jobs_ended_total", "status" => status.as_str(), "kind" => failure.kind.as_str()).increment(1);
                self.end_now(header, status, failure, queue, message, now).await
            }
            Fate::Unreadable { id, client, reply_to, failure } => {
                metrics::counter!("straightline_dispatcher_jobs_ended_total", "status" => "failed", "kind" => failure.kind.as_str()).increment(1);
                tracing::warn!(queue = %queue, error = %failure, "a message is no job; it goes to dead");
                self.end_unreadable(id, client, reply_to, failure, queue, message, now).await
            }
        };
        match ended {
            Ok(()) => delivery.ack(),
            Err(error) => {
                tracing::warn!(error = %error, "failed to end a job; it goes back to its queue");
                tokio::time::sleep(PAUSE).await;
                delivery.give_back();
            }
        }
    }

    async fn end_now(
        &self,
        header: JobHeader,
        status: Status,
        failure: Failure,
        queue: Queue,
        message: Message,
        now: UnixMillis,
    ) -> Result<(), PublishError> {
        let mut result = JobResult::of(&header, status, now);
        result.error = Some(failure.clone());
        result.worker = Some(self.name.clone());
        let recorded = self.record(header.id, result.encode()).await;
        self.reply(header.reply_to.clone(), header.id, recorded.clone()).await?;
        // A passed deadline is the client's choice, not a fault to look into. An earlier record that says failed may be
        // from a dispatcher that died before it came to this: burying twice is harmless.
        if status == Status::Failed && says_failed(&recorded) {
            let entry = DeadEntry {
                version: WIRE_VERSION,
                id: header.id,
                died: now,
                failure,
                attempts: header.attempt.saturating_sub(1),
                history: header.history.clone(),
                model: Some(header.model.clone()),
                client: Some(header.client.clone()),
                class: header.class,
                size: header.size,
                queue: queue.to_string(),
            };
            self.bury(entry, Message { packed: Some(header.encode()), ..message }).await?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what little is known of the message, part by part")]
    async fn end_unreadable(
        &self,
        id: Option<JobId>,
        client: Option<ClientName>,
        reply_to: Option<ReplyQueue>,
        failure: Failure,
        queue: Queue,
        message: Message,
        now: UnixMillis,
    ) -> Result<(), PublishError> {
        let entry = DeadEntry {
            version: WIRE_VERSION,
            id: id.unwrap_or_else(JobId::new),
            died: now,
            failure: failure.clone(),
            attempts: 0,
            history: Vec::new(),
            model: None,
            client: client.clone(),
            class: Class::default(),
            size: message.body.len() as u64,
            queue: queue.to_string(),
        };
        if let Some(reply_to) = reply_to {
            let result = JobResult {
                version: WIRE_VERSION,
                id: entry.id,
                status: Status::Failed,
                client,
                model: None,
                output: None,
                error: Some(failure),
                attempts: 0,
                lane: None,
                reason: None,
                worker: Some(self.name.clone()),
                submitted: now,
                finished: now,
                run_us: None,
                history: Vec::new(),
                origin: None,
            };
            let recorded = self.record(entry.id, result.encode()).await;
            self.reply(Some(reply_to), entry.id, recorded).await?;
        }
        self.bury(entry, message).await
    }

    /// Records a result; the answer is what is recorded now, ours or an earlier one.
    async fn record(&self, id: JobId, result: Bytes) -> Bytes {
        let record = Record { id, result: result.clone(), keep: self.record_keep };
        match self.state.finish(&[record]).await.map(|mut found| found.pop()) {
            Ok(Some(Finish::Lost(earlier))) => earlier,
            Ok(_) => result,
            Err(error) => {
                metrics::counter!("straightline_records_missed_total").increment(1);
                tracing::debug!(error = %error, "failed to record a result; it goes out unrecorded");
                result
            }
        }
    }

    /// Sends a result; a reply queue that is gone or full is its client's loss, the record holds the result.
    async fn reply(&self, to: Option<ReplyQueue>, id: JobId, result: Bytes) -> Result<(), PublishError> {
        let Some(to) = to else { return Ok(()) };
        let message = Message {
            properties: Properties {
                content_type: Some(CONTENT_TYPE.to_owned()),
                correlation_id: Some(id.to_string()),
                ..Properties::default()
            },
            body: result,
            ..Message::default()
        };
        match self.broker.publish(Route::To(Queue::Reply(to)), message).await.await {
            Err(PublishError::Unroutable { .. }) => {
                metrics::counter!("straightline_replies_dropped_total", "reason" => "gone").increment(1);
                Ok(())
            }
            Err(PublishError::Full { .. }) => {
                metrics::counter!("straightline_replies_dropped_total", "reason" => "full").increment(1);
                Ok(())
            }
            other => other,
        }
    }

    /// Lays a message to rest in `dead`, then into the index.
    async fn bury(&self, entry: DeadEntry, message: Message) -> Result<(), PublishError> {
        let correlation_id = Some(entry.id.to_string());
        let properties = Properties { correlation_id, user_id: None, ..message.properties };
        self.broker.publish(Route::To(Queue::Dead), Message { properties, ..message }).await.await?;
        if let Err(error) = self.state.bury(&[entry]).await {
            metrics::counter!("straightline_dead_unindexed_total").increment(1);
            tracing::warn!(error = %error, "failed to index a dead job; it rests in `dead`");
        }
        Ok(())
    }
}

fn says_failed(recorded: &[u8]) -> bool {
    JobResult::decode(recorded).is_ok_and(|result| result.status == Status::Failed)
}
