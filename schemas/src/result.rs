//! How a job ended: the one thing a client gets.

use crate::failure::{Attempt, Failure};
use crate::header::{Claim, JobHeader};
use crate::id::JobId;
use crate::lane::Lane;
use crate::names::{ClientName, ModelName};
use crate::payload::Payload;
use crate::time::UnixMillis;
use crate::wire::{self, DecodeError, WIRE_VERSION};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The closed set of endings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The model answered.
    Succeeded,
    /// Every attempt failed, or another could not help.
    Failed,
    /// Its client took it back.
    Cancelled,
    /// Its deadline passed first.
    Expired,
}

impl Status {
    /// The word used in labels and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A job's result: the body of a reply, and the record in shared state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct JobResult {
    /// Major version of the wire.
    pub version: u8,
    /// The job, as text, so that any language can compare it.
    pub id: JobId,
    /// How it ended.
    pub status: Status,
    /// Who submitted it; absent when the job could not be read that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientName>,
    /// The model it asked for; absent when the job could not be read that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// What the model answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Payload>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Attempts made; 0 when it ended before the first.
    pub attempts: u8,
    /// The lane of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// Why that lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The worker of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// When its client submitted it.
    pub submitted: UnixMillis,
    /// When it ended.
    pub finished: UnixMillis,
    /// How long the model itself ran, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
    /// Failed attempts, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Attempt>,
    /// The dead job this one was requeued from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<JobId>,
}

impl JobResult {
    /// The result of the job of `header`, ended at `now` with `status`; the caller fills in the rest.
    pub fn of(header: &JobHeader, status: Status, now: UnixMillis) -> Self {
        let (lane, reason) = match &header.placement {
            Some(placement) => (Some(placement.lane), Some(placement.reason.clone())),
            None => (None, None),
        };
        Self {
            version: WIRE_VERSION,
            id: header.id,
            status,
            client: Some(header.client.clone()),
            model: Some(header.model.clone()),
            output: None,
            error: None,
            attempts: header.attempt.saturating_sub(1),
            lane,
            reason,
            worker: None,
            submitted: header.submitted,
            finished: now,
            run_us: None,
            history: header.history.clone(),
            origin: header.origin,
        }
    }

    /// The word to whoever sent a message that was no job.
    pub fn unreadable(claim: Claim, failure: Failure, now: UnixMillis) -> Self {
        Self {
            version: WIRE_VERSION,
            id: claim.id,
            status: Status::Failed,
            client: claim.client,
            model: None,
            output: None,
            error: Some(failure),
            attempts: 0,
            lane: None,
            reason: None,
            worker: None,
            submitted: now,
            finished: now,
            run_us: None,
            history: Vec::new(),
            origin: None,
        }
    }

    /// Its bytes on the wire.
    pub fn encode(&self) -> Bytes {
        wire::encode_with(self, self.output.as_ref().map_or(0, Payload::inline_bytes))
    }

    /// Reads a result.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        wire::decode_version(bytes, |result: &Self| result.version)
    }
}
