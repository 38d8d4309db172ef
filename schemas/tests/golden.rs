//! Golden messages: what earlier builds wrote must decode for ever, and what this build writes must be what they
//! wrote. Files in `golden/` are hexadecimal, one message each, named `<what>_v<version>[_<case>].hex`; they are never
//! changed, only added to.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::Bytes;
use schemas::body::Parameter;
use schemas::header::Placement;
use schemas::{
    Attempt, Class, ClientName, Failure, FailureKind, JobBody, JobHeader, JobId, JobResult, Lane, LaneSet,
    ModelName, Payload, ReplyQueue, Status, Tensor, UnixMillis,
};
use std::path::Path;
use std::time::Duration;

fn golden(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect::<Vec<_>>().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn id() -> JobId {
    "019aa0f2-5d0e-7cc1-9f5e-7a1b0c2d3e4f".parse().unwrap()
}

fn fresh_header() -> JobHeader {
    let mut header = JobHeader::new(
        id(),
        ModelName::new("digits").unwrap(),
        ClientName::new("guest").unwrap(),
        UnixMillis(1_763_800_000_000),
    );
    header.size = 321;
    header.reply_to = Some(ReplyQueue::new("reply.guest.7").unwrap());
    header
}

fn seasoned_header() -> JobHeader {
    let mut header = fresh_header();
    header.class = Class::Low;
    header.attempt = 2;
    header.failed_lanes = LaneSet::EMPTY.with(Lane::Docker);
    header.history = vec![Attempt {
        number: 1,
        lane: Some(Lane::Docker),
        worker: "worker-a-1".to_owned(),
        at: UnixMillis(1_763_800_001_000),
        failure: Failure::new(FailureKind::ModelError, "it broke"),
    }];
    header.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    header.placement = Some(Placement { lane: Lane::Local, reason: "moderate/local_failed".to_owned() });
    header.origin = Some(id());
    header.run_timeout = Some(Duration::from_millis(1_500));
    header.attempts_max = Some(3);
    header.may_have_run = true;
    header
}

fn body() -> JobBody {
    let mut body = JobBody::new(Payload::Tensors(vec![Tensor::fp32("image", [1, 2], &[0.0, 16.0]).unwrap()]));
    body.outputs = vec!["label".to_owned()];
    body.parameters.insert("ms".to_owned(), Parameter::Integer(5));
    body
}

fn result() -> JobResult {
    let mut result = JobResult::of(&seasoned_header(), Status::Succeeded, UnixMillis(1_763_800_002_000));
    result.attempts = 2;
    result.worker = Some("worker-b-2".to_owned());
    result.run_us = Some(35);
    result.output =
        Some(Payload::Tensors(vec![Tensor::fp32("probabilities", [1, 2], &[0.25, 0.75]).unwrap()]));
    result
}

/// What this build writes is the golden message, byte for byte; a change here is a change of the wire.
#[test]
fn what_is_written_is_what_was_written() {
    let messages = [
        ("header_v1_fresh", fresh_header().encode()),
        ("header_v1_seasoned", seasoned_header().encode()),
        ("body_v1", body().encode()),
        ("result_v1", result().encode()),
    ];
    for (name, written) in messages {
        assert_eq!(hex(&written), hex(&golden(name)), "{name}");
    }
}

#[test]
fn what_was_written_is_still_read() {
    assert_eq!(JobHeader::decode(&golden("header_v1_fresh")).unwrap(), fresh_header());
    assert_eq!(JobHeader::decode(&golden("header_v1_seasoned")).unwrap(), seasoned_header());
    assert_eq!(JobBody::decode(&golden("body_v1")).unwrap(), body());
    assert_eq!(JobResult::decode(&golden("result_v1")).unwrap(), result());
}

/// The least a version-1 writer writes: 15 elements.
#[test]
fn a_header_without_its_optional_end_has_the_defaults() {
    assert_eq!(JobHeader::decode(&golden("header_v1_short")).unwrap(), fresh_header());
}

/// A later build of the same version appended elements: they are kept, byte for byte.
#[test]
fn unknown_elements_are_carried_on() {
    let bytes = golden("header_v1_longer");
    let header = JobHeader::decode(&bytes).unwrap();
    assert_eq!(hex(&header.encode()), hex(&bytes));
    assert_eq!(header.id, id());
}

/// A body written by another language: values in place of raw bytes, fields we do not know, no version.
#[test]
fn a_foreign_body_is_read() {
    let body = JobBody::decode(&golden("body_v1_foreign")).unwrap();
    assert_eq!(body.input.tensor("image").unwrap().as_fp32().unwrap(), [0.0, 16.0]);
}

#[test]
fn a_newer_version_is_refused_and_named() {
    let header = JobHeader::decode(&golden("header_v2")).unwrap_err().to_string();
    assert!(header.contains("version 2") && header.contains("up to 1"), "{header}");
    let body = JobBody::decode(&golden("body_v2")).unwrap_err().to_string();
    assert!(body.contains("version 2") && body.contains("up to 1"), "{body}");
    let result = JobResult::decode(&golden("body_v2")).unwrap_err().to_string();
    assert!(result.contains("version 2"), "{result}");
}

/// No prefix, and no header with a byte changed, makes a decoder panic or hang.
#[test]
fn damage_is_an_error_never_a_panic() {
    for name in ["header_v1_fresh", "header_v1_seasoned", "header_v1_longer"] {
        let bytes = golden(name);
        for end in 0..bytes.len() {
            assert!(JobHeader::decode(&bytes.slice(..end)).is_err(), "{name} cut at {end}");
        }
        for at in 0..bytes.len() {
            for value in [0x00, 0x7f, 0x80, 0xc0, 0xc6, 0xdd, 0xdf, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] = value;
                let _ = JobHeader::decode(&damaged.into());
            }
        }
    }
    for name in ["body_v1", "result_v1"] {
        let bytes = golden(name);
        for end in 0..bytes.len() {
            assert!(
                JobBody::decode(&bytes[..end]).is_err() && JobResult::decode(&bytes[..end]).is_err(),
                "{name} at {end}"
            );
        }
    }
}

/// However long a history gets, the header stays within what a broker carries, and the newest attempt stays in it.
#[test]
fn a_header_never_outgrows_its_limit() {
    let mut header = seasoned_header();
    let attempt = |number| Attempt {
        number,
        lane: Some(Lane::Local),
        worker: "w".repeat(600),
        at: UnixMillis(1),
        failure: Failure::new(FailureKind::Timeout, "é".repeat(2_000)),
    };
    header.history = (1..=20).map(attempt).collect();
    header.trace = Some("t".repeat(128));
    let bytes = header.encode();
    assert!(bytes.len() <= schemas::limits::HEADER_BYTES_MAX);
    assert_eq!(JobHeader::decode(&bytes).unwrap().history.last().unwrap().number, 20);
}

/// What a reader lets in has room for all that hops add: no hop makes a header that the next one refuses.
#[test]
fn a_header_that_was_read_can_be_written_again() {
    let longer = |bytes: usize| {
        let mut header = seasoned_header().encode().to_vec();
        header[2] += 1;
        header.push(0xc5);
        header.extend(u16::try_from(bytes).unwrap().to_be_bytes());
        header.resize(header.len() + bytes, 0);
        JobHeader::decode(&header.into())
    };
    let mut header = longer(8_000).unwrap();
    let attempt = header.history[0].clone();
    header.history =
        (1..=20).map(|number| Attempt { number, worker: "w".repeat(500), ..attempt.clone() }).collect();
    header.placement = Some(Placement { lane: Lane::Docker, reason: "r".repeat(300) });
    assert_eq!(JobHeader::decode(&header.encode()).unwrap().history.last().unwrap().number, 20);
    let error = longer(9_000).unwrap_err().to_string();
    assert!(error.contains("8192 bytes behind"), "{error}");
    let plain = schemas::header::PlainFacts {
        header: &|name| {
            Some(if name == "sl-model" { "m".into() } else { "t".repeat(17_000) })
                .filter(|_| ["sl-model", schemas::header::names::TRACE].contains(&name))
        },
        correlation_id: None,
        reply_to: None,
        default_client: "c",
        class: Class::Normal,
        body_bytes: 0,
    };
    assert_eq!(JobHeader::from_plain(plain, UnixMillis(0)).unwrap().trace, None);
}
