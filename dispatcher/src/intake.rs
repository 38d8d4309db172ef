//! Reading what arrives: headers only, never a body.

use broker::Message;
use schemas::header::{self, Claim, InvalidHeader, PlainFacts};
use schemas::limits::DEADLINE_MAX;
use schemas::{Class, ClientName, Failure, FailureKind, JobHeader, UnixMillis};

/// A message that is no job: what can still be said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) claim: Claim,
    /// Why it is no job.
    pub(crate) failure: Failure,
}

/// Reads the header of a message that came through the queue of `class`.
///
/// A login that the broker vouches for overrides the client the message names, and a reply queue of another client
/// is refused: otherwise one client could write into the replies of another.
pub(crate) fn read(message: &Message, class: Class, now: UnixMillis) -> Result<JobHeader, Unreadable> {
    let vouched = message.properties.user_id.as_deref();
    let unreadable = |failure| Unreadable { claim: message.claim(), failure };
    let mut header = match &message.packed {
        Some(packed) => JobHeader::decode(packed).map_err(|error| unreadable(from_packed(&error)))?,
        None => {
            let facts = PlainFacts {
                header: &|name| message.header_text(name),
                correlation_id: message.properties.correlation_id.as_deref(),
                reply_to: message.properties.reply_to.as_deref(),
                default_client: vouched.unwrap_or("anonymous"),
                class,
                body_bytes: message.body.len() as u64,
            };
            JobHeader::from_plain(facts, now).map_err(|error| {
                let kind = match error {
                    header::InvalidPlainHeader::Version(_) => FailureKind::UnsupportedVersion,
                    _ => FailureKind::Undecodable,
                };
                unreadable(Failure::new(kind, error))
            })?
        }
    };
    if let Some(login) = vouched {
        header.client = ClientName::new(login)
            .map_err(|error| unreadable(Failure::new(FailureKind::Forbidden, format!("user_id: {error}"))))?;
    }
    if let Some(queue) = &header.reply_to
        && !queue.belongs_to(&header.client)
    {
        let message = format!(
            "reply_to {queue} is not a queue of client {}: use reply.{}.<instance>",
            header.client, header.client
        );
        let claim = Claim { id: header.id, reply_to: None, client: Some(header.client) };
        return Err(Unreadable { claim, failure: Failure::new(FailureKind::Forbidden, message) });
    }
    // Whatever its header says: a job ends some day, and before its record does.
    header.deadline = header.deadline.min(now.plus(DEADLINE_MAX));
    // An inline input is measured, whatever its header says: thresholds and payload limits rest on it.
    header.size = header.size.max(message.body.len() as u64);
    Ok(header)
}

fn from_packed(error: &InvalidHeader) -> Failure {
    let kind = match error {
        InvalidHeader::Version(_) => FailureKind::UnsupportedVersion,
        _ => FailureKind::Undecodable,
    };
    Failure::new(kind, format!("header sl: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use broker::{Properties, Value};

    const NOW: UnixMillis = UnixMillis(1_000);

    fn plain(headers: &[(&str, Value)]) -> Message {
        Message {
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            properties: Properties {
                correlation_id: Some("019aa0f2-5d0e-7cc1-9f5e-7a1b0c2d3e4f".to_owned()),
                reply_to: Some("reply.guest.7".to_owned()),
                user_id: Some("guest".to_owned()),
                ..Properties::default()
            },
            body: bytes::Bytes::from_static(b"12345"),
            ..Message::default()
        }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn plain_headers_make_a_job() {
        let message = plain(&[("sl-model", text("digits")), ("sl-deadline-ms", Value::Integer(500))]);
        let header = read(&message, Class::Low, NOW).unwrap();
        assert_eq!((header.model.as_str(), header.class, header.size), ("digits", Class::Low, 5));
        assert_eq!((header.deadline, header.client.as_str()), (UnixMillis(1_500), "guest"));
        assert_eq!(header.reply_to.unwrap().as_str(), "reply.guest.7");
    }

    #[test]
    fn what_is_no_job_is_told_why_and_keeps_its_id() {
        for (headers, expected, kind) in [
            (vec![], "sl-model is missing", FailureKind::Undecodable),
            (vec![("sl-model", text("../x"))], "model", FailureKind::Undecodable),
            (
                vec![("sl-model", text("m")), ("sl-class", text("urgent"))],
                "high, normal or low",
                FailureKind::Undecodable,
            ),
            (
                vec![("sl-model", text("m")), ("sl-deadline-ms", text("soon"))],
                "sl-deadline-ms",
                FailureKind::Undecodable,
            ),
            (
                vec![("sl-model", text("m")), ("sl-version", Value::Integer(9))],
                "version is 9",
                FailureKind::UnsupportedVersion,
            ),
        ] {
            let unreadable = read(&plain(&headers), Class::Normal, NOW).unwrap_err();
            assert!(unreadable.failure.message.contains(expected), "{}", unreadable.failure);
            assert_eq!(unreadable.failure.kind, kind);
            let claim = unreadable.claim;
            assert_eq!(claim.id.to_string(), "019aa0f2-5d0e-7cc1-9f5e-7a1b0c2d3e4f");
            assert!(claim.reply_to.is_some());
        }
        let packed = Message { packed: Some(bytes::Bytes::from_static(b"\x01")), ..plain(&[]) };
        let unreadable = read(&packed, Class::Normal, NOW).unwrap_err();
        assert!(unreadable.failure.message.contains("not an array"), "{}", unreadable.failure);
    }

    #[test]
    fn nobody_writes_into_the_replies_of_another() {
        let mut message = plain(&[("sl-model", text("m"))]);
        message.properties.reply_to = Some("reply.alice.7".to_owned());
        let unreadable = read(&message, Class::Normal, NOW).unwrap_err();
        assert_eq!((unreadable.failure.kind, unreadable.claim.reply_to), (FailureKind::Forbidden, None));
        message.packed = Some(bytes::Bytes::from_static(b"\x01"));
        assert_eq!(read(&message, Class::Normal, NOW).unwrap_err().claim.reply_to, None);
    }

    #[test]
    fn no_deadline_is_further_than_the_furthest() {
        let mut message = plain(&[]);
        let far = JobHeader::new(
            schemas::JobId::new(),
            schemas::ModelName::new("m").unwrap(),
            ClientName::new("guest").unwrap(),
            NOW,
        );
        message.packed = Some(JobHeader { deadline: UnixMillis(u64::MAX), ..far }.encode());
        assert_eq!(read(&message, Class::Normal, NOW).unwrap().deadline, NOW.plus(DEADLINE_MAX));
    }

    #[test]
    fn an_inline_size_is_measured_not_believed() {
        let message = plain(&[("sl-model", text("m")), ("sl-size", Value::Integer(1))]);
        assert_eq!(read(&message, Class::Normal, NOW).unwrap().size, 5);
    }
}
