//! Plain headers: what a client in another language may send in place of the packed one. The first dispatcher
//! that sees them packs them.

use super::JobHeader;
use crate::class::{Class, UnknownClass};
use crate::id::{InvalidJobId, JobId};
use crate::limits::{ATTEMPTS_MAX, DEADLINE_MAX, TRACE_BYTES_MAX};
use crate::names::{ClientName, InvalidName, ModelName, ReplyQueue};
use crate::time::UnixMillis;
use crate::wire::WIRE_VERSION;
use std::time::Duration;

/// The names of the plain headers.
pub mod names {
    /// Required: the model.
    pub const MODEL: &str = "sl-model";
    /// Optional: `high`, `normal` or `low`; default: the class of the queue the job came through.
    pub const CLASS: &str = "sl-class";
    /// Optional: milliseconds from submission until the answer is no longer wanted.
    pub const DEADLINE_MS: &str = "sl-deadline-ms";
    /// Optional: milliseconds one attempt may run.
    pub const RUN_TIMEOUT_MS: &str = "sl-run-timeout-ms";
    /// Optional: most attempts.
    pub const ATTEMPTS_MAX: &str = "sl-attempts-max";
    /// For a blob input only: its length in bytes. An inline input is measured.
    pub const SIZE: &str = "sl-size";
    /// Optional: who submits; a broker that authenticates says so itself.
    pub const CLIENT: &str = "sl-client";
    /// Optional: major version of the wire, default 1.
    pub const VERSION: &str = "sl-version";
    /// Optional: W3C trace context.
    pub const TRACE: &str = "traceparent";
    /// All of them: what the packed header replaces.
    pub const ALL: [&str; 9] =
        [MODEL, CLASS, DEADLINE_MS, RUN_TIMEOUT_MS, ATTEMPTS_MAX, SIZE, CLIENT, VERSION, TRACE];
}

/// Why plain headers were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlainHeader {
    /// A required one is not there.
    #[error("header {0} is missing: every job needs it")]
    Missing(&'static str),
    /// A number is not one, or out of range.
    #[error("header {name} is not a whole number from {min} to {max}")]
    Number {
        /// Which header.
        name: &'static str,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// Written for a later major version.
    #[error(
        "header sl-version is {0}, this build reads up to {WIRE_VERSION}: upgrade it, or send version {WIRE_VERSION}"
    )]
    Version(u64),
    /// A name that is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Not a class.
    #[error(transparent)]
    Class(#[from] UnknownClass),
    /// Not a job id.
    #[error("property correlation_id: {0}")]
    Id(#[from] InvalidJobId),
}

/// What a message without a packed header offers, as text; the transport fills it in.
#[derive(Clone, Copy)]
pub struct PlainFacts<'a> {
    /// Looks up a header by name; numbers as decimal text.
    pub header: &'a dyn Fn(&str) -> Option<String>,
    /// Property `correlation_id`: the job's id.
    pub correlation_id: Option<&'a str>,
    /// Property `reply_to`.
    pub reply_to: Option<&'a str>,
    /// The client when neither the broker nor a header names one.
    pub default_client: &'a str,
    /// The class of the queue it came through.
    pub class: Class,
    /// Bytes of the body.
    pub body_bytes: u64,
}

impl JobHeader {
    /// The packed form of plain headers. A message without `correlation_id` gets a fresh id, which its client can
    /// then only learn from the reply.
    pub fn from_plain(facts: PlainFacts<'_>, now: UnixMillis) -> Result<Self, InvalidPlainHeader> {
        let get = facts.header;
        if let Some(version) = number(get, names::VERSION, 0, u64::MAX)?
            && version > u64::from(WIRE_VERSION)
        {
            return Err(InvalidPlainHeader::Version(version));
        }
        let model = get(names::MODEL).ok_or(InvalidPlainHeader::Missing(names::MODEL))?;
        let model = ModelName::new(&model)?;
        let client = ClientName::new(get(names::CLIENT).as_deref().unwrap_or(facts.default_client))?;
        let id = facts.correlation_id.map(str::parse).transpose()?.unwrap_or_else(JobId::new);
        let mut header = Self::new(id, model, client, now);
        header.class = get(names::CLASS).map(|class| class.parse()).transpose()?.unwrap_or(facts.class);
        header.size = number(get, names::SIZE, 0, u64::MAX)?.unwrap_or(0).max(facts.body_bytes);
        header.reply_to = facts.reply_to.map(ReplyQueue::new).transpose()?;
        header.trace = get(names::TRACE).filter(|trace| trace.len() <= TRACE_BYTES_MAX);
        let deadline_ms_max = DEADLINE_MAX.as_secs() * 1000;
        if let Some(ms) = number(get, names::DEADLINE_MS, 1, deadline_ms_max)? {
            header.deadline = now.plus(Duration::from_millis(ms));
        }
        header.run_timeout =
            number(get, names::RUN_TIMEOUT_MS, 1, deadline_ms_max)?.map(Duration::from_millis);
        header.attempts_max = number(get, names::ATTEMPTS_MAX, 1, u64::from(ATTEMPTS_MAX))?
            .map(|n| u8::try_from(n).expect("checked against ATTEMPTS_MAX"));
        Ok(header)
    }
}

fn number(
    get: &dyn Fn(&str) -> Option<String>,
    name: &'static str,
    min: u64,
    max: u64,
) -> Result<Option<u64>, InvalidPlainHeader> {
    let Some(text) = get(name) else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
        _ => Err(InvalidPlainHeader::Number { name, min, max }),
    }
}
