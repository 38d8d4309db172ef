//! How an attempt fails: what failed, whose fault it was, and whether another try can help.

use crate::lane::Lane;
use crate::time::UnixMillis;
use crate::wire::bounded;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FailureKind {
    /// The message cannot be read.
    Undecodable = 0,
    /// The message is of a newer wire version.
    UnsupportedVersion = 1,
    /// The input does not fit the model: a tensor is missing, of another datatype or shape.
    InvalidInput = 2,
    /// No worker knows the model.
    UnknownModel = 3,
    /// Input or output over a limit.
    TooLarge = 4,
    /// The client may not do what it asked for.
    Forbidden = 5,
    /// The deadline passed.
    DeadlineExceeded = 6,
    /// The run took longer than its time limit.
    Timeout = 7,
    /// The model ran and failed.
    ModelError = 8,
    /// The worker died while it ran the job.
    WorkerLost = 9,
    /// The lane could not run the job: its engine or provider is away.
    LaneUnavailable = 10,
    /// The lane said "come back later": it is full or throttled. Costs no attempt.
    Busy = 11,
    /// A blob is not there, or its store is away.
    BlobUnavailable = 12,
    /// No lane can ever take this job.
    Unplaceable = 13,
    /// A fault of ours.
    Internal = 14,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client's: the same job would fail again.
    Client,
    /// The model's.
    Model,
    /// The system's.
    System,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Undecodable,
        Self::UnsupportedVersion,
        Self::InvalidInput,
        Self::UnknownModel,
        Self::TooLarge,
        Self::Forbidden,
        Self::DeadlineExceeded,
        Self::Timeout,
        Self::ModelError,
        Self::WorkerLost,
        Self::LaneUnavailable,
        Self::Busy,
        Self::BlobUnavailable,
        Self::Unplaceable,
        Self::Internal,
    ];

    /// The kind with this number on the wire; one that this build does not know counts as internal.
    pub fn from_index(index: u8) -> Self {
        Self::ALL.get(usize::from(index)).copied().unwrap_or(Self::Internal)
    }

    /// Whose fault it is.
    pub const fn blame(self) -> Blame {
        match self {
            Self::Undecodable
            | Self::UnsupportedVersion
            | Self::InvalidInput
            | Self::UnknownModel
            | Self::TooLarge
            | Self::Forbidden
            | Self::DeadlineExceeded
            | Self::Unplaceable => Blame::Client,
            Self::Timeout | Self::ModelError | Self::WorkerLost => Blame::Model,
            Self::LaneUnavailable | Self::Busy | Self::BlobUnavailable | Self::Internal => Blame::System,
        }
    }

    /// Whether another attempt can end otherwise.
    pub const fn worth_another_try(self) -> bool {
        !matches!(self.blame(), Blame::Client)
    }

    /// Whether a try that ended so counts as an attempt.
    pub const fn costs_an_attempt(self) -> bool {
        !matches!(self, Self::Busy)
    }

    /// The word used in labels and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::UnsupportedVersion => "unsupported_version",
            Self::InvalidInput => "invalid_input",
            Self::UnknownModel => "unknown_model",
            Self::TooLarge => "too_large",
            Self::Forbidden => "forbidden",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Timeout => "timeout",
            Self::ModelError => "model_error",
            Self::WorkerLost => "worker_lost",
            Self::LaneUnavailable => "lane_unavailable",
            Self::Busy => "busy",
            Self::BlobUnavailable => "blob_unavailable",
            Self::Unplaceable => "unplaceable",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A failure, with the words a person reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[error("{kind}: {message}")]
pub struct Failure {
    /// What failed.
    pub kind: FailureKind,
    /// What was expected and what was found, bounded, never with payload data or secrets in it.
    pub message: String,
    /// How long whoever failed asks to be left alone; heeded where the failure is met, and not sent on.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of `kind`; the message is cut to [`crate::limits::ERROR_BYTES_MAX`].
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        Self { kind, message: bounded(&message.to_string()), retry_after: None }
    }

    /// The same, not to be tried again for `pause`.
    #[must_use]
    pub fn after(self, pause: Duration) -> Self {
        Self { retry_after: Some(pause), ..self }
    }
}

/// A failed attempt, as kept in a job's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u8,
    /// The lane it ran in, if it got as far as one.
    pub lane: Option<Lane>,
    /// The worker or dispatcher that saw it fail.
    pub worker: String,
    /// When it failed.
    pub at: UnixMillis,
    /// How.
    pub failure: Failure,
}
