//! The end of jobs that never reach a worker: recorded, answered, buried if they failed, then acknowledged.

use broker::{Broker, Delivery, Message, Properties, PublishError, Queue, Route};
use bytes::Bytes;
use schemas::dead::DeadEntry;
use schemas::header::Claim;
use schemas::{Failure, FailureKind, JobHeader, JobId, JobResult, ReplyQueue, Status, UnixMillis};
use state::{Finish, Record, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a delivery whose end could not be published is kept before it goes back: its queue would hand it out
/// again at once.
const PAUSE: Duration = Duration::from_millis(500);

/// How long shared state is waited for where a record is all that will tell of a result.
const RECORD_PATIENCE: Duration = Duration::from_secs(30);

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
    Unreadable(Claim, Failure),
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
    /// One that cannot end before `halted` goes back to its queue.
    pub(crate) async fn end(&self, ending: Ending, now: UnixMillis, halted: impl Future<Output = ()>) {
        let Ending { mut delivery, queue, fate } = ending;
        let message = std::mem::take(&mut delivery.message);
        let redelivered = delivery.redelivered;
        let mut halted = std::pin::pin!(halted);
        let ended = tokio::select! {
            biased;
            ended = self.bring_to(fate, queue, message, redelivered, now) => ended,
            () = &mut halted => Err(PublishError::Closed),
        };
        match ended {
            Ok(()) => delivery.ack(),
            Err(error) => {
                tracing::warn!(error = %error, "failed to end a job; it goes back to its queue");
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = halted => {}
                }
                delivery.give_back();
            }
        }
    }

    async fn bring_to(
        &self,
        fate: Fate,
        queue: Queue,
        message: Message,
        redelivered: bool,
        now: UnixMillis,
    ) -> Result<(), PublishError> {
        match fate {
            Fate::Recorded(header, result) => {
                self.end_recorded(header, result, queue, message, redelivered).await
            }
            Fate::Ended(header, status, failure) => {
                metrics::counter!("straightline_dispatcher_jobs_ended_total", "status" => status.as_str(), "kind" => failure.kind.as_str()).increment(1);
                self.end_now(header, status, failure, queue, message, now).await
            }
            Fate::Unreadable(claim, failure) => {
                metrics::counter!("straightline_dispatcher_jobs_ended_total", "status" => "failed", "kind" => failure.kind.as_str()).increment(1);
                tracing::warn!(queue = %queue, error = %failure, "a message is no job; it goes to dead");
                self.end_unreadable(claim, failure, queue, message, now).await
            }
        }
    }

    /// Answers with what is recorded. Where that says failed, whoever wrote it may have died before the job was buried;
    /// burying twice is harmless.
    async fn end_recorded(
        &self,
        header: JobHeader,
        recorded: Bytes,
        queue: Queue,
        message: Message,
        redelivered: bool,
    ) -> Result<(), PublishError> {
        let Ok(result) = JobResult::decode(&recorded) else {
            return self.reply(header.reply_to, header.id, recorded).await.map(drop);
        };
        if result.client.as_ref().is_some_and(|client| *client != header.client) {
            // Whoever guesses or copies the id of another's job learns nothing of it.
            let message = format!("job {} is another client's: use an id of your own", header.id);
            let mut refused = JobResult::of(&header, Status::Failed, result.finished);
            refused.error = Some(Failure::new(FailureKind::Forbidden, message));
            return self.reply(header.reply_to.clone(), header.id, refused.encode()).await.map(drop);
        }
        self.reply(header.reply_to.clone(), header.id, recorded).await?;
        match result.error {
            Some(failure) if redelivered && result.status == Status::Failed => {
                let header = JobHeader { history: result.history, ..header };
                let entry = DeadEntry::of(&header, failure, &queue.to_string(), result.finished);
                let entry = DeadEntry { attempts: result.attempts, ..entry };
                self.bury(entry, Message { packed: Some(header.encode()), ..message }).await
            }
            _ => Ok(()),
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
        let (mut recorded, mut kept) = self.record(header.id, result.encode()).await;
        let told = self.reply(header.reply_to.clone(), header.id, recorded.clone()).await?;
        let until = Instant::now() + RECORD_PATIENCE;
        // Neither sent nor recorded it would be lost.
        while !told && !kept {
            if Instant::now() >= until {
                let why = "its result could be neither sent nor recorded: shared state is away";
                return Err(PublishError::Unavailable(why.to_owned()));
            }
            tokio::time::sleep(PAUSE).await;
            (recorded, kept) = self.record(header.id, recorded).await;
        }
        // A passed deadline is the client's choice, not a fault to look into.
        if status == Status::Failed && says_failed(&recorded) {
            let entry = DeadEntry::of(&header, failure, &queue.to_string(), now);
            self.bury(entry, Message { packed: Some(header.encode()), ..message }).await?;
        }
        Ok(())
    }

    /// No record is written: the id that the message carries, if any, is only a claim, and may be another job's.
    async fn end_unreadable(
        &self,
        claim: Claim,
        failure: Failure,
        queue: Queue,
        message: Message,
        now: UnixMillis,
    ) -> Result<(), PublishError> {
        let size = message.body.len() as u64;
        let entry = DeadEntry::unreadable(&claim, size, failure.clone(), &queue.to_string(), now);
        let reply_to = claim.reply_to.clone();
        let mut result = JobResult::unreadable(claim, failure, now);
        result.worker = Some(self.name.clone());
        self.reply(reply_to, result.id, result.encode()).await?;
        self.bury(entry, message).await
    }

    /// Records a result; the answer is what is recorded now, ours or an earlier one, and whether it is.
    async fn record(&self, id: JobId, result: Bytes) -> (Bytes, bool) {
        let record = Record { id, result: result.clone(), keep: self.record_keep };
        match self.state.finish(&[record]).await.map(|mut found| found.pop()) {
            Ok(Some(Finish::Lost(earlier))) => (earlier, true),
            Ok(_) => (result, true),
            Err(error) => {
                metrics::counter!("straightline_records_missed_total").increment(1);
                tracing::debug!(error = %error, "failed to record a result; it goes out unrecorded");
                (result, false)
            }
        }
    }

    /// Sends a result; false if it has nowhere to go, which is counted and no error.
    async fn reply(&self, to: Option<ReplyQueue>, id: JobId, result: Bytes) -> Result<bool, PublishError> {
        let Some(to) = to else { return Ok(false) };
        let sent = self.broker.publish(Route::To(Queue::Reply(to)), Message::reply(id, result)).await.await;
        let Err(error) = sent else { return Ok(true) };
        let Some(reason) = error.reply_dropped() else { return Err(error) };
        metrics::counter!("straightline_replies_dropped_total", "reason" => reason).increment(1);
        Ok(false)
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
