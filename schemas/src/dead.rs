//! The index of dead jobs: what an operator sees of a job that rests in `dead`.

use crate::class::Class;
use crate::failure::{Attempt, Failure};
use crate::header::{Claim, JobHeader};
use crate::id::JobId;
use crate::names::{ClientName, ModelName};
use crate::time::UnixMillis;
use crate::wire::WIRE_VERSION;
use serde::{Deserialize, Serialize};

/// One dead job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct DeadEntry {
    /// Major version of the wire.
    pub version: u8,
    /// The job; a fresh id where the message did not say.
    pub id: JobId,
    /// When it died.
    pub died: UnixMillis,
    /// Why.
    pub failure: Failure,
    /// Attempts made.
    pub attempts: u8,
    /// Failed attempts, oldest first.
    #[serde(default)]
    pub history: Vec<Attempt>,
    /// The model it asked for, if it could be read that far.
    pub model: Option<ModelName>,
    /// Who submitted it, if it could be read that far.
    pub client: Option<ClientName>,
    /// Its class.
    pub class: Class,
    /// Bytes of its input.
    pub size: u64,
    /// The queue it was last in.
    pub queue: String,
}

impl DeadEntry {
    /// The job of `header`, which died in `queue`; its attempts are those before the header's.
    pub fn of(header: &JobHeader, failure: Failure, queue: &str, now: UnixMillis) -> Self {
        Self {
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
            queue: queue.to_owned(),
        }
    }

    /// A message of `size` bytes that was no job.
    pub fn unreadable(claim: &Claim, size: u64, failure: Failure, queue: &str, now: UnixMillis) -> Self {
        Self {
            version: WIRE_VERSION,
            id: claim.id,
            died: now,
            failure,
            attempts: 0,
            history: Vec::new(),
            model: None,
            client: claim.client.clone(),
            class: Class::default(),
            size,
            queue: queue.to_owned(),
        }
    }
}
