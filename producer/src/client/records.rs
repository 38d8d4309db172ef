//! What is done with records: fetching results later, getting outputs out of the blob store, cancelling.

use super::replies::FETCH_MAX;
use super::{Client, Shared};
use crate::now;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use metrics::counter;
use schemas::control::Control;
use schemas::wire::{self, DecodeError, WIRE_VERSION};
use schemas::{JobId, JobResult, Payload, Status, UnixMillis};
use state::blobs::BlobError;
use state::{Finish, Record, StateError};
use tracing::warn;

/// What a cancel came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The job will give no result but this one. A run under way is stopped where it can be.
    Now(JobResult),
    /// It had ended before, so.
    Before(JobResult),
}

/// Why a record could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Shared state could not answer.
    #[error(transparent)]
    State(#[from] StateError),
    /// A record cannot be read.
    #[error("record of job {id} cannot be read: {reason}")]
    Record {
        /// The job.
        id: JobId,
        /// Why.
        reason: DecodeError,
    },
    /// The output's blob could not be had.
    #[error("output of job {id} cannot be read: {reason}")]
    Blob {
        /// The job.
        id: JobId,
        /// Why.
        reason: BlobError,
    },
    /// The output is in a blob store, and this client has none.
    #[error("output of job {id} is in a blob store: configure the same store here")]
    NoStore {
        /// The job.
        id: JobId,
    },
}

impl Client {
    /// The results of these jobs, in their order; `None` where a job has not ended, is forgotten, or never was.
    pub fn fetch<'a>(
        &'a self,
        ids: &'a [JobId],
    ) -> BoxFuture<'a, Result<Vec<Option<JobResult>>, ResolveError>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(ids.len());
            for ids in ids.chunks(FETCH_MAX) {
                let records = self.shared.state.fetch(ids).await?;
                for (id, record) in ids.iter().zip(records) {
                    results.push(record.map(|record| decode(*id, &record)).transpose()?);
                }
            }
            Ok(results)
        })
    }

    /// `result` with its output in it, got from the blob store if it rests there.
    pub fn resolve(&self, mut result: JobResult) -> BoxFuture<'_, Result<JobResult, ResolveError>> {
        Box::pin(async move {
            let id = result.id;
            if let Some(Payload::Blob(blob)) = &result.output {
                let blobs = self.shared.blobs.as_ref().ok_or(ResolveError::NoStore { id })?;
                let output = blobs.get(blob).await.map_err(|reason| ResolveError::Blob { id, reason })?;
                result.output = Some(output);
            }
            Ok(result)
        })
    }

    /// Takes a job back, whoever submitted it: its record says cancelled unless it has ended already. An id that was
    /// never submitted is cancelled as well, should it still come.
    pub fn cancel(&self, id: JobId) -> BoxFuture<'_, Result<Cancelled, ResolveError>> {
        Box::pin(async move {
            let result = self.shared.cancelled(id);
            let record = Record { id, result: result.encode(), keep: self.shared.config.record_keep };
            match self.shared.state.finish(&[record]).await?.pop().expect("state answers for every record") {
                Finish::Lost(record) => {
                    let result = decode(id, &record)?;
                    self.shared.with_pending(|pending| pending.resolve(result.clone()));
                    Ok(Cancelled::Before(result))
                }
                Finish::Won => {
                    counter!("straightline_cancels_total").increment(1);
                    // The record decides; the broadcast only stops a run sooner.
                    if let Err(error) =
                        self.shared.broker.broadcast(wire::encode(&Control::Cancelled { id })).await
                    {
                        warn!(%error, job.id = %id, "cancelled a job without telling those who may be running it");
                    }
                    self.shared.with_pending(|pending| pending.resolve(result.clone()));
                    Ok(Cancelled::Now(result))
                }
            }
        })
    }
}

impl Shared {
    fn cancelled(&self, id: JobId) -> JobResult {
        let submitted = self.with_pending(|pending| pending.submitted(id));
        let at = submitted.as_ref().map(|submitted| submitted.at);
        JobResult {
            version: WIRE_VERSION,
            id,
            status: Status::Cancelled,
            client: Some(self.config.client.clone()),
            model: submitted.map(|submitted| submitted.model),
            output: None,
            error: None,
            attempts: 0,
            lane: None,
            reason: None,
            worker: None,
            submitted: at.or_else(|| created(id)).unwrap_or_else(now),
            finished: now(),
            run_us: None,
            history: Vec::new(),
            origin: None,
        }
    }
}

/// When an id was made, if it says so: its first 48 bits, in version 7.
pub(crate) fn created(id: JobId) -> Option<UnixMillis> {
    let bytes = id.as_bytes();
    let millis = bytes[..6].iter().fold(0, |millis, byte| millis << 8 | u64::from(*byte));
    (bytes[6] >> 4 == 7).then_some(UnixMillis(millis))
}

fn decode(id: JobId, record: &Bytes) -> Result<JobResult, ResolveError> {
    JobResult::decode(record).map_err(|reason| ResolveError::Record { id, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::ClientName;

    #[test]
    fn a_time_ordered_id_tells_when_it_was_made() {
        let before = now();
        let made = created(JobId::new()).unwrap();
        assert!((before..=now()).contains(&made));
        let keyed = JobId::from_key(&ClientName::new("c").unwrap(), "k");
        assert_eq!(created(keyed), None);
    }
}
