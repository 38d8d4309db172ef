//! Packing and unpacking, element by element: no intermediate value, no allocation but for what is kept.

use super::{JobHeader, Kind, Placement, UnknownTail};
use crate::class::Class;
use crate::failure::{Attempt, Failure, FailureKind};
use crate::id::JobId;
use crate::lane::{Lane, LaneSet};
use crate::limits::{ATTEMPTS_MAX, HEADER_BYTES_MAX, HEADER_TAIL_BYTES_MAX, TRACE_BYTES_MAX};
use crate::names::{ClientName, InvalidName, ModelName, ReplyQueue};
use crate::time::UnixMillis;
use crate::wire::WIRE_VERSION;
use bytes::Bytes;
use rmp::{Marker, decode, encode};
use std::time::Duration;

/// Elements this build writes.
const ELEMENTS: u32 = 20;
/// Elements that every writer of version 1 writes; what follows may be left out and then has its default.
const ELEMENTS_MIN: u32 = 15;

/// Why a packed header was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// Written for a later major version.
    #[error(
        "header has wire version {0}, this build reads up to {WIRE_VERSION}: upgrade it, or send version {WIRE_VERSION}"
    )]
    Version(u64),
    /// Not the array it should be.
    #[error("header element {element:?} {problem}")]
    Malformed {
        /// Which element.
        element: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name that is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Too long.
    #[error("header has {0} bytes: at most {HEADER_BYTES_MAX}")]
    TooLong(usize),
}

const WRITE: &str = "writing to a Vec cannot fail";

pub(super) fn encode(header: &JobHeader, history: &[Attempt]) -> Bytes {
    let mut out = Vec::with_capacity(160);
    let w = &mut out;
    let elements = ELEMENTS + header.unknown.elements;
    encode::write_array_len(w, elements).expect(WRITE);
    encode::write_uint(w, u64::from(WIRE_VERSION)).expect(WRITE);
    encode::write_uint(w, header.kind as u64).expect(WRITE);
    encode::write_uint(w, u64::from(header.count)).expect(WRITE);
    encode::write_bin(w, header.id.as_bytes()).expect(WRITE);
    encode::write_str(w, header.model.as_str()).expect(WRITE);
    encode::write_uint(w, header.size).expect(WRITE);
    encode::write_uint(w, header.class as u64).expect(WRITE);
    encode::write_uint(w, header.deadline.0).expect(WRITE);
    encode::write_uint(w, u64::from(header.attempt)).expect(WRITE);
    encode::write_uint(w, u64::from(header.failed_lanes.bits())).expect(WRITE);
    write_history(w, history);
    encode::write_str(w, header.client.as_str()).expect(WRITE);
    write_optional(w, header.reply_to.as_ref().map(ReplyQueue::as_str));
    write_optional(w, header.trace.as_deref());
    encode::write_uint(w, header.submitted.0).expect(WRITE);
    match &header.placement {
        None => encode::write_nil(w).expect(WRITE),
        Some(placement) => {
            encode::write_array_len(w, 2).expect(WRITE);
            encode::write_uint(w, placement.lane as u64).expect(WRITE);
            encode::write_str(w, &placement.reason).expect(WRITE);
        }
    }
    match &header.origin {
        None => encode::write_nil(w).expect(WRITE),
        Some(id) => encode::write_bin(w, id.as_bytes()).expect(WRITE),
    }
    let run_timeout_ms = header.run_timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
    encode::write_uint(w, run_timeout_ms).expect(WRITE);
    encode::write_uint(w, u64::from(header.attempts_max.unwrap_or(0))).expect(WRITE);
    encode::write_bool(w, header.may_have_run).expect(WRITE);
    out.extend_from_slice(&header.unknown.bytes);
    out.into()
}

fn write_optional(w: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => encode::write_nil(w).expect(WRITE),
        Some(text) => encode::write_str(w, text).expect(WRITE),
    }
}

fn write_history(w: &mut Vec<u8>, history: &[Attempt]) {
    encode::write_array_len(w, u32::try_from(history.len()).unwrap_or(0)).expect(WRITE);
    for attempt in history {
        encode::write_array_len(w, 6).expect(WRITE);
        encode::write_uint(w, u64::from(attempt.number)).expect(WRITE);
        match attempt.lane {
            None => encode::write_nil(w).expect(WRITE),
            Some(lane) => drop(encode::write_uint(w, lane as u64).expect(WRITE)),
        }
        encode::write_str(w, &attempt.worker).expect(WRITE);
        encode::write_uint(w, attempt.at.0).expect(WRITE);
        encode::write_uint(w, attempt.failure.kind as u64).expect(WRITE);
        encode::write_str(w, &attempt.failure.message).expect(WRITE);
    }
}

pub(super) fn decode(bytes: &Bytes) -> Result<JobHeader, InvalidHeader> {
    if bytes.len() > HEADER_BYTES_MAX {
        return Err(InvalidHeader::TooLong(bytes.len()));
    }
    let mut r = Reader { rest: bytes };
    let elements = r.array("sl")?;
    let version = r.uint("version")?;
    if version > u64::from(WIRE_VERSION) {
        return Err(InvalidHeader::Version(version));
    }
    if elements < ELEMENTS_MIN {
        return Err(malformed("sl", "has too few elements"));
    }
    let kind = match r.uint("kind")? {
        0 => Kind::Job,
        _ => return Err(malformed("kind", "is not known: use 0 (job)")),
    };
    let count = u16::try_from(r.uint("count")?).map_err(|_| malformed("count", "is over 65535"))?;
    if count != 1 {
        return Err(malformed("count", "must be 1 for kind 0 (job)"));
    }
    let id = r.id("id")?.ok_or(malformed("id", "is missing"))?;
    let model = ModelName::new(r.text("model")?)?;
    let size = r.uint("size")?;
    let class = u8::try_from(r.uint("class")?).ok().and_then(Class::from_index);
    let class = class.ok_or(malformed("class", "is not known: use 0 (high), 1 (normal) or 2 (low)"))?;
    let deadline = UnixMillis(r.uint("deadline")?);
    let attempt = r.small("attempt")?;
    if attempt == 0 || attempt > ATTEMPTS_MAX {
        return Err(malformed("attempt", "must be 1 to 20"));
    }
    let failed_lanes = LaneSet::from_bits(r.small("failed_lanes")?);
    let history = r.history()?;
    let client = ClientName::new(r.text("client")?)?;
    let reply_to = r.optional_text("reply_to")?.map(ReplyQueue::new).transpose()?;
    let trace = r.optional_text("trace")?.filter(|trace| trace.len() <= TRACE_BYTES_MAX).map(str::to_owned);
    let submitted = UnixMillis(r.uint("submitted")?);
    let mut left = elements - ELEMENTS_MIN;
    let mut more = || {
        let more = left > 0;
        left = left.saturating_sub(1);
        more
    };
    let placement = if more() { r.placement()? } else { None };
    let origin = if more() { r.id("origin")? } else { None };
    let run_timeout_ms = if more() { r.uint("run_timeout")? } else { 0 };
    let attempts_max = if more() { r.small("attempts_max")? } else { 0 };
    if attempts_max > ATTEMPTS_MAX {
        return Err(malformed("attempts_max", "must be 0 to 20"));
    }
    let may_have_run = if more() { r.flag("may_have_run")? } else { false };
    let tail = r.rest;
    if tail.len() > HEADER_TAIL_BYTES_MAX {
        return Err(malformed("sl", "has more than 8192 bytes behind the elements of this version"));
    }
    for _ in 0..left {
        r.skip(0)?;
    }
    if !r.rest.is_empty() {
        return Err(malformed("sl", "is followed by stray bytes"));
    }
    Ok(JobHeader {
        kind,
        count,
        id,
        model,
        size,
        class,
        deadline,
        attempt,
        failed_lanes,
        history,
        client,
        reply_to,
        trace,
        submitted,
        placement,
        origin,
        run_timeout: (run_timeout_ms > 0).then(|| Duration::from_millis(run_timeout_ms)),
        attempts_max: (attempts_max > 0).then_some(attempts_max),
        may_have_run,
        unknown: UnknownTail { elements: left, bytes: bytes.slice_ref(tail) },
    })
}

fn malformed(element: &'static str, problem: &'static str) -> InvalidHeader {
    InvalidHeader::Malformed { element, problem }
}

/// Reads elements off the front of a slice.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array(&mut self, element: &'static str) -> Result<u32, InvalidHeader> {
        decode::read_array_len(&mut self.rest).map_err(|_| malformed(element, "is not an array"))
    }

    fn uint(&mut self, element: &'static str) -> Result<u64, InvalidHeader> {
        decode::read_int(&mut self.rest).map_err(|_| malformed(element, "is not a whole number from 0"))
    }

    fn small(&mut self, element: &'static str) -> Result<u8, InvalidHeader> {
        u8::try_from(self.uint(element)?).map_err(|_| malformed(element, "is over 255"))
    }

    fn flag(&mut self, element: &'static str) -> Result<bool, InvalidHeader> {
        decode::read_bool(&mut self.rest).map_err(|_| malformed(element, "is not true or false"))
    }

    fn text(&mut self, element: &'static str) -> Result<&'a str, InvalidHeader> {
        let (text, rest) =
            decode::read_str_from_slice(self.rest).map_err(|_| malformed(element, "is not text"))?;
        self.rest = rest;
        Ok(text)
    }

    fn optional_text(&mut self, element: &'static str) -> Result<Option<&'a str>, InvalidHeader> {
        if self.nil() { Ok(None) } else { self.text(element).map(Some) }
    }

    /// Takes a nil, if one is next.
    fn nil(&mut self) -> bool {
        let nil = self.rest.first() == Some(&Marker::Null.to_u8());
        if nil {
            self.rest = &self.rest[1..];
        }
        nil
    }

    fn id(&mut self, element: &'static str) -> Result<Option<JobId>, InvalidHeader> {
        if self.nil() {
            return Ok(None);
        }
        let wrong = malformed(element, "is not 16 bytes");
        if decode::read_bin_len(&mut self.rest).ok() != Some(16) {
            return Err(wrong);
        }
        let (id, rest) = self.rest.split_first_chunk::<16>().ok_or(wrong)?;
        self.rest = rest;
        Ok(Some(JobId::from_bytes(*id)))
    }

    fn lane(&mut self, element: &'static str) -> Result<Option<Lane>, InvalidHeader> {
        if self.nil() {
            return Ok(None);
        }
        // A lane of a newer build is not ours to name; the rest of the header still stands.
        Ok(Lane::from_index(self.small(element)?))
    }

    fn placement(&mut self) -> Result<Option<Placement>, InvalidHeader> {
        if self.nil() {
            return Ok(None);
        }
        if self.array("placement")? != 2 {
            return Err(malformed("placement", "is not [lane, reason]"));
        }
        let lane = self.lane("placement")?;
        let reason = self.text("placement")?.to_owned();
        Ok(lane.map(|lane| Placement { lane, reason }))
    }

    fn history(&mut self) -> Result<Vec<Attempt>, InvalidHeader> {
        let attempts = self.array("history")?;
        let mut history = Vec::new();
        for _ in 0..attempts {
            let fields = self.array("history")?;
            if fields < 6 {
                return Err(malformed("history", "has an attempt of fewer than 6 fields"));
            }
            let number = self.small("history")?;
            let lane = self.lane("history")?;
            let worker = self.text("history")?.to_owned();
            let at = UnixMillis(self.uint("history")?);
            let kind = FailureKind::from_index(self.small("history")?);
            let failure = Failure::new(kind, self.text("history")?);
            for _ in 6..fields {
                self.skip(0)?;
            }
            history.push(Attempt { number, lane, worker, at, failure });
        }
        Ok(history)
    }

    /// Passes over one value of any type.
    fn skip(&mut self, depth: u8) -> Result<(), InvalidHeader> {
        let broken = malformed("sl", "ends inside an unknown element, or nests too deep");
        if depth > 16 {
            return Err(broken);
        }
        let marker = decode::read_marker(&mut self.rest).map_err(|_| broken.clone())?;
        let (length_bytes, fixed, nested) = match marker {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => (0, 0, 0),
            Marker::U8 | Marker::I8 => (0, 1, 0),
            Marker::U16 | Marker::I16 | Marker::FixExt1 => (0, 2, 0),
            Marker::FixExt2 => (0, 3, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (0, 4, 0),
            Marker::FixExt4 => (0, 5, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (0, 8, 0),
            Marker::FixExt8 => (0, 9, 0),
            Marker::FixExt16 => (0, 17, 0),
            Marker::FixStr(n) => (0, usize::from(n), 0),
            Marker::FixArray(n) => (0, 0, usize::from(n)),
            Marker::FixMap(n) => (0, 0, 2 * usize::from(n)),
            Marker::Str8 | Marker::Bin8 => (1, 0, 0),
            Marker::Str16 | Marker::Bin16 => (2, 0, 0),
            Marker::Str32 | Marker::Bin32 => (4, 0, 0),
            Marker::Ext8 => (1, 1, 0),
            Marker::Ext16 => (2, 1, 0),
            Marker::Ext32 => (4, 1, 0),
            Marker::Array16 => (0, 0, self.length(2)?),
            Marker::Array32 => (0, 0, self.length(4)?),
            Marker::Map16 => (0, 0, 2 * self.length(2)?),
            Marker::Map32 => (0, 0, self.length(4)?.saturating_mul(2)),
            Marker::Reserved => return Err(broken),
        };
        let bytes = self.length(length_bytes)?.checked_add(fixed).ok_or(broken.clone())?;
        self.rest = self.rest.get(bytes..).ok_or(broken)?;
        for _ in 0..nested {
            self.skip(depth + 1)?;
        }
        Ok(())
    }

    /// A big-endian length of so many bytes.
    fn length(&mut self, bytes: usize) -> Result<usize, InvalidHeader> {
        let (head, rest) = self.rest.split_at_checked(bytes).ok_or(malformed("sl", "is cut short"))?;
        self.rest = rest;
        Ok(head.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }
}
