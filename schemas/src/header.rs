//! The routing facts of a job, packed into the one header `sl`.
//!
//! Format: a MessagePack array in fixed order, version first. Elements are only ever added at the end; a
//! reader keeps the ones it does not know, byte for byte, and forwards them. [`JobHeader`] lists the order.

use crate::class::Class;
use crate::failure::Attempt;
use crate::id::JobId;
use crate::lane::{Lane, LaneSet};
use crate::limits::HEADER_BYTES_MAX;
use crate::names::{ClientName, ModelName, ReplyQueue};
use crate::time::UnixMillis;
use bytes::Bytes;
use std::time::Duration;

mod claim;
mod packed;
mod plain;

pub use claim::Claim;
pub use packed::InvalidHeader;
pub use plain::{InvalidPlainHeader, PlainFacts, names};

/// The name of the packed header.
pub const PACKED: &str = "sl";

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One job.
    Job = 0,
}

/// The routing facts of one job. Fields stand in wire order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobHeader {
    /// What the body is.
    pub kind: Kind,
    /// Jobs in the message: 1 for [`Kind::Job`].
    pub count: u16,
    /// The job.
    pub id: JobId,
    /// The model it asks for.
    pub model: ModelName,
    /// r_d: bytes of the input as encoded, the body's own length or the blob's.
    pub size: u64,
    /// How urgent it is.
    pub class: Class,
    /// When its answer is no longer wanted.
    pub deadline: UnixMillis,
    /// The number of the next (or running) attempt, from 1.
    pub attempt: u8,
    /// Lanes that already failed it.
    pub failed_lanes: LaneSet,
    /// Its failed attempts, oldest first; the last one is the last error.
    pub history: Vec<Attempt>,
    /// Who submitted it.
    pub client: ClientName,
    /// Where its result goes; none for fire-and-fetch.
    pub reply_to: Option<ReplyQueue>,
    /// W3C trace context (`traceparent`), forwarded as it came.
    pub trace: Option<String>,
    /// When its client submitted it.
    pub submitted: UnixMillis,
    /// Where the dispatcher put it, and why.
    pub placement: Option<Placement>,
    /// The dead job this one was requeued from.
    pub origin: Option<JobId>,
    /// Longest run of one attempt that the client allows; none for the worker's own limit.
    pub run_timeout: Option<Duration>,
    /// Most attempts the client allows; none for the deployment's own limit.
    pub attempts_max: Option<u8>,
    /// Whether this attempt may have begun before, in a worker that died or was lost with it: what a delivery says of
    /// itself, kept for the hops that make a new message of it.
    pub may_have_run: bool,
    /// Elements a newer writer appended, undecoded.
    pub unknown: UnknownTail,
}

/// A lane chosen for a job, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The lane.
    pub lane: Lane,
    /// The rule's row that matched first, and why it was passed over if it was: `large/docker_down`.
    pub reason: String,
}

/// Trailing elements of a header, as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownTail {
    elements: u32,
    bytes: Bytes,
}

impl JobHeader {
    /// The header of a new job: first attempt, nothing known of its way yet.
    pub fn new(id: JobId, model: ModelName, client: ClientName, now: UnixMillis) -> Self {
        Self {
            kind: Kind::Job,
            count: 1,
            id,
            model,
            size: 0,
            class: Class::default(),
            deadline: now.plus(crate::limits::DEADLINE_DEFAULT),
            attempt: 1,
            failed_lanes: LaneSet::EMPTY,
            history: Vec::new(),
            client,
            reply_to: None,
            trace: None,
            submitted: now,
            placement: None,
            origin: None,
            run_timeout: None,
            attempts_max: None,
            may_have_run: false,
            unknown: UnknownTail::default(),
        }
    }

    /// Whether its deadline has passed.
    pub fn expired(&self, now: UnixMillis) -> bool {
        now >= self.deadline
    }

    /// Its bytes on the wire. Should they be over [`HEADER_BYTES_MAX`], the oldest attempts are left out; everything
    /// else is bounded so that it fits without them.
    pub fn encode(&self) -> Bytes {
        let mut from = 0;
        loop {
            let bytes = packed::encode(self, &self.history[from..]);
            if bytes.len() <= HEADER_BYTES_MAX || from == self.history.len() {
                return bytes;
            }
            from += 1;
        }
    }

    /// Reads a packed header.
    pub fn decode(bytes: &Bytes) -> Result<Self, InvalidHeader> {
        packed::decode(bytes)
    }
}
