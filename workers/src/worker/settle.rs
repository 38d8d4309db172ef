//! The way out of a worker: record, reply, retry, bury. Each ends with what to do with the delivery, which is
//! acknowledged only when everything that must outlive it is confirmed.

use super::ending::{Dead, Ending};
use super::measure;
use super::offload::offload;
use super::recorder::Recorded;
use super::services::{Job, Services};
use broker::{Message, Properties, PublishError, Queue, Route, Settlement};
use bytes::Bytes;
use schemas::dead::DeadEntry;
use schemas::{Failure, JobHeader, JobId, JobResult, ReplyQueue, Status, UnixMillis};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a delivery whose end could not be published is kept before it goes back.
const PAUSE: Duration = Duration::from_millis(500);

/// Brings `job` to its `ending`. One that is said to be cancelled is not tried again if its record says so too.
pub(crate) async fn settle(services: &Services, job: &Job, ending: Ending, cancelled: bool) -> Settlement {
    let ending = match ending {
        Ending::Retried { .. } if cancelled => {
            services.recorded(job.header.id).await.map_or(ending, Ending::Recorded)
        }
        ending => ending,
    };
    let settled = match ending {
        Ending::Recorded(record) => answer(services, job, record).await,
        Ending::Ended(result) => end(services, &job.header, *result).await.map(drop),
        Ending::Dead(dead) => die(services, job, *dead).await,
        Ending::Retried { header, delay } => {
            let route = Route::Retry(delay, header.class);
            services.publish(route, onward(&job.message, &header, Properties::default())).await
        }
    };
    match settled {
        Ok(()) => Settlement::Ack,
        Err(error) => unpublished(services, job.header.id, &error).await,
    }
}

/// What became of a job that ended with others.
pub(crate) enum End {
    /// All that must outlive its delivery is confirmed.
    Settled(Settlement),
    /// Its reply has not gone out: [`settle_later`], apart from the others.
    Unsent(Arc<Job>, Recorded),
}

/// Brings jobs to the ends that these results are, together: one round trip to shared state, and replies side by side. One
/// that takes longer holds up no other.
pub(crate) async fn settle_results(services: &Services, ended: Vec<(Arc<Job>, JobResult)>) -> Vec<End> {
    let (jobs, results): (Vec<_>, Vec<_>) = ended.into_iter().unzip();
    let sent = send_all(services, jobs.iter().map(|job| &job.header).zip(results).collect()).await;
    let ended = jobs.into_iter().zip(sent).map(|(job, (recorded, told))| match told {
        Ok(true) => End::Settled(Settlement::Ack),
        Ok(false) if !matches!(recorded, Recorded::Missed(_)) => End::Settled(Settlement::Ack),
        _ => End::Unsent(job, recorded),
    });
    ended.collect()
}

/// Sees to it that a result which is recorded, as far as it could be, goes out.
pub(crate) async fn settle_later(services: &Services, job: &Job, recorded: Recorded) -> Settlement {
    match told(services, &job.header, recorded).await {
        Ok(_) => Settlement::Ack,
        Err(error) => unpublished(services, job.header.id, &error).await,
    }
}

/// What was to follow could not be published: the job goes back to its queue, which hands it out again at once, so
/// not without a pause.
async fn unpublished(services: &Services, id: JobId, error: &PublishError) -> Settlement {
    tracing::warn!(job.id = %id, %error, "failed to pass a job on; it goes back to its queue");
    measure::given_back(services.lane, "unpublished", 1);
    if *error != PublishError::Closed {
        tokio::time::sleep(PAUSE).await;
    }
    Settlement::GiveBack
}

/// Replies with an earlier record. Where that says failed, whoever wrote it may have died before the job was buried;
/// burying twice is harmless.
async fn answer(services: &Services, job: &Job, record: Bytes) -> Result<(), PublishError> {
    let _told = reply(services, job.header.reply_to.clone(), job.header.id, record.clone()).await?;
    if !job.redelivered {
        return Ok(());
    }
    let bytes = record.len() as u64;
    match offload(bytes, move || JobResult::decode(&record)).await {
        Ok(result) if result.status == Status::Failed => {
            let Some(failure) = result.error else { return Ok(()) };
            let header = JobHeader { history: result.history, ..job.header.clone() };
            let entry = DeadEntry::of(&header, failure, &services.queue, result.finished);
            let entry = DeadEntry { attempts: result.attempts, ..entry };
            bury(services, entry, &job.message, Some(header)).await
        }
        _ => Ok(()),
    }
}

/// Records a result and replies with what is recorded, which may be an earlier one; says what that is.
async fn end(services: &Services, header: &JobHeader, result: JobResult) -> Result<Recorded, PublishError> {
    let sent = send_all(services, vec![(header, result)]).await.pop();
    let (recorded, sent) = sent.ok_or(PublishError::Lost)?;
    match sent {
        Ok(true) => Ok(recorded),
        Ok(false) => insist(services, header.id, recorded).await,
        Err(_) => told(services, header, recorded).await,
    }
}

/// Records results and sends what is recorded, once each; whether it was told, in their order.
async fn send_all(
    services: &Services,
    ended: Vec<(&JobHeader, JobResult)>,
) -> Vec<(Recorded, Result<bool, PublishError>)> {
    let (mut jobs, mut results) = (Vec::with_capacity(ended.len()), Vec::with_capacity(ended.len()));
    for (header, result) in ended {
        jobs.push((header, result.status));
        let bytes = result.output.as_ref().map_or(0, schemas::Payload::data_bytes);
        results.push((header.id, offload(bytes, move || result.encode()).await));
    }
    let recorded = services.recorder.record(results).await;
    let mut replies = Vec::with_capacity(jobs.len());
    for ((header, status), recorded) in jobs.into_iter().zip(recorded) {
        if !matches!(recorded, Recorded::Earlier(_)) {
            services.measures.finished(Some(&header.model), status);
        }
        let receipt = match &header.reply_to {
            Some(to) => {
                let reply = Message::reply(header.id, recorded.result().clone());
                Some(services.broker.publish(Route::To(Queue::Reply(to.clone())), reply).await)
            }
            None => None,
        };
        replies.push((header.id, recorded, receipt));
    }
    let mut sent = Vec::with_capacity(replies.len());
    for (id, recorded, receipt) in replies {
        let told = match receipt {
            Some(receipt) => receipt.await.map_or_else(|error| dropped(id, error), |()| Ok(true)),
            None => Ok(false),
        };
        sent.push((recorded, told));
    }
    sent
}

/// Replies with what is recorded, trying again; where nobody can be told, its record has to hold it.
async fn told(services: &Services, header: &JobHeader, recorded: Recorded) -> Result<Recorded, PublishError> {
    let told = reply(services, header.reply_to.clone(), header.id, recorded.result().clone()).await?;
    if told { Ok(recorded) } else { insist(services, header.id, recorded).await }
}

/// A result that no reply carries rests in its record alone. Without one it would be lost, so here shared state is
/// waited for, and in the end the job is given back, to be run again.
async fn insist(services: &Services, id: JobId, mut recorded: Recorded) -> Result<Recorded, PublishError> {
    let until = Instant::now() + services.config.publish_patience;
    while let Recorded::Missed(result) = recorded {
        if Instant::now() >= until {
            let why = "its result could be neither sent nor recorded: shared state is away";
            return Err(PublishError::Unavailable(why.to_owned()));
        }
        tokio::time::sleep(PAUSE).await;
        recorded = services
            .recorder
            .record(vec![(id, result.clone())])
            .await
            .pop()
            .unwrap_or(Recorded::Missed(result));
    }
    Ok(recorded)
}

/// Ends a job that has failed for good, and lays it to rest unless its record says that it did not fail.
async fn die(services: &Services, job: &Job, dead: Dead) -> Result<(), PublishError> {
    let Dead { result, header, entry } = dead;
    let failed = match end(services, &job.header, result).await? {
        Recorded::Ours(_) | Recorded::Missed(_) => true,
        Recorded::Earlier(record) => {
            let bytes = record.len() as u64;
            let earlier = offload(bytes, move || JobResult::decode(&record)).await;
            earlier.is_ok_and(|result| result.status == Status::Failed)
        }
    };
    if failed { bury(services, entry, &job.message, Some(header)).await } else { Ok(()) }
}

/// Ends a message that is no job: a word to whoever sent it, if that can be told, and a place in `dead`. No record is
/// written: the id it carries, if any, is only a claim.
pub(crate) async fn settle_unreadable(
    services: &Services,
    message: &Message,
    failure: Failure,
    now: UnixMillis,
) -> Settlement {
    tracing::warn!(error = %failure, queue = %services.queue, "a message is no job; it goes to dead");
    let claim = message.claim();
    let (id, reply_to, size) = (claim.id, claim.reply_to.clone(), message.body.len() as u64);
    let entry = DeadEntry::unreadable(&claim, size, failure.clone(), &services.queue, now);
    let result = JobResult {
        lane: Some(services.lane),
        worker: Some(services.config.name.clone()),
        ..JobResult::unreadable(claim, failure, now)
    };
    let told = async {
        // A sender that cannot be told finds its message in `dead`.
        let _told = reply(services, reply_to, id, result.encode()).await?;
        bury(services, entry, message, None).await
    };
    match told.await {
        Ok(()) => {
            services.measures.finished(None, Status::Failed);
            Settlement::Ack
        }
        Err(error) => unpublished(services, id, &error).await,
    }
}

/// Sends a result; false if it has nowhere to go, which is counted and no error.
async fn reply(
    services: &Services,
    to: Option<ReplyQueue>,
    id: JobId,
    result: Bytes,
) -> Result<bool, PublishError> {
    let Some(to) = to else { return Ok(false) };
    let Err(error) = services.publish(Route::To(Queue::Reply(to)), Message::reply(id, result)).await else {
        return Ok(true);
    };
    dropped(id, error)
}

/// What a reply that failed means: false if it has nowhere to go.
fn dropped(id: JobId, error: PublishError) -> Result<bool, PublishError> {
    let Some(reason) = error.reply_dropped() else { return Err(error) };
    tracing::debug!(job.id = %id, reason, "a reply had no queue to go to; its record holds the result");
    measure::reply_dropped(reason);
    Ok(false)
}

/// Lays a message to rest in `dead`, then into the index. An unreadable one keeps the header it has.
async fn bury(
    services: &Services,
    entry: DeadEntry,
    message: &Message,
    header: Option<JobHeader>,
) -> Result<(), PublishError> {
    let properties = Properties { correlation_id: Some(entry.id.to_string()), ..Properties::default() };
    let resting = match &header {
        Some(header) => onward(message, header, properties),
        None => Message { properties, ..message.clone() },
    };
    services.publish(Route::To(Queue::Dead), resting).await?;
    let id = entry.id;
    let indexed = timeout(services.config.state_timeout, services.state.bury(&[entry])).await;
    if !matches!(indexed, Ok(Ok(()))) {
        metrics::counter!("straightline_dead_unindexed_total").increment(1);
        tracing::warn!(job.id = %id, "failed to index a dead job; it rests in `dead`");
    }
    Ok(())
}

/// The message with another header: the same body, and the headers that are not ours.
fn onward(message: &Message, header: &JobHeader, properties: Properties) -> Message {
    Message {
        packed: Some(header.encode()),
        headers: message.headers.clone(),
        properties,
        body: message.body.clone(),
    }
}
