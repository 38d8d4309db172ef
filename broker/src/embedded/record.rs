//! How one message is laid out on disk. The format is described in [`super`].

use crate::delivery::Death;
use crate::message::{Message, Properties, Value};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A body of more bytes than this is stored apart from its record, so that the index can be read, and a message moved
/// to another queue, without touching it.
pub(super) const INLINE_BYTES_MAX: usize = 2048;

/// Bytes of a [`Head`].
const HEAD_BYTES: usize = 32;

/// What the index needs to know of a message, in a fixed place at the start of its record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The number of the queue it is in.
    pub(super) queue: u32,
    /// The number of the queue it moves to when `due`; 0 for none.
    pub(super) next: u32,
    /// When it moves on, in milliseconds since the Unix epoch; 0 for never.
    pub(super) due: u64,
    /// The key of its body where that is stored apart; 0 where it follows the record's description.
    pub(super) body_id: u64,
    /// Bytes of its body.
    pub(super) body_bytes: u32,
    /// Bytes of its description: everything but the body.
    pub(super) about_bytes: u32,
}

/// A message and what became of it before, as it is handed out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Content {
    pub(super) message: Message,
    pub(super) death: Option<Death>,
}

/// A record that breaks its format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {bytes} bytes is not in the known format: {reason}")]
pub(super) struct Malformed {
    bytes: usize,
    reason: String,
}

/// Everything but the body.
#[derive(Serialize)]
struct AboutRef<'a> {
    packed: &'a Option<Bytes>,
    headers: &'a [(String, Value)],
    properties: &'a Properties,
    death: Option<(&'a str, &'a str)>,
}

#[derive(Default, Deserialize)]
struct About {
    packed: Option<Bytes>,
    headers: Vec<(String, Value)>,
    properties: Properties,
    death: Option<(String, String)>,
}

/// The description of a message, as it stands in a record; empty where there is nothing to say.
pub(super) fn describe(message: &Message, death: Option<&Death>) -> Vec<u8> {
    let Message { packed, headers, properties, body: _ } = message;
    if packed.is_none() && headers.is_empty() && *properties == Properties::default() && death.is_none() {
        return Vec::new();
    }
    let death = death.map(|death| (death.queue.as_str(), death.reason.as_str()));
    let about = AboutRef { packed, headers, properties, death };
    rmp_serde::to_vec(&about).expect("these types always encode, and memory takes every write")
}

impl Head {
    /// A whole record: this head, the description, and the body unless it is stored apart.
    pub(super) fn record(&self, about: &[u8], body: &[u8]) -> Vec<u8> {
        debug_assert_eq!(self.about_bytes as usize, about.len());
        let inline = if self.body_id == 0 { body } else { &[] };
        let mut record = Vec::with_capacity(HEAD_BYTES + about.len() + inline.len());
        record.extend_from_slice(&self.queue.to_le_bytes());
        record.extend_from_slice(&self.next.to_le_bytes());
        record.extend_from_slice(&self.due.to_le_bytes());
        record.extend_from_slice(&self.body_id.to_le_bytes());
        record.extend_from_slice(&self.body_bytes.to_le_bytes());
        record.extend_from_slice(&self.about_bytes.to_le_bytes());
        record.extend_from_slice(about);
        record.extend_from_slice(inline);
        record
    }

    /// The head of `record`, and what follows it: description and inline body.
    pub(super) fn split(record: &[u8]) -> Result<(Self, &[u8], &[u8]), Malformed> {
        let malformed = |reason: &str| Malformed { bytes: record.len(), reason: reason.to_owned() };
        let (head, rest) =
            record.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| malformed("it has no head"))?;
        let mut fields = Fields(head);
        let head = Self {
            queue: u32::from_le_bytes(fields.take()),
            next: u32::from_le_bytes(fields.take()),
            due: u64::from_le_bytes(fields.take()),
            body_id: u64::from_le_bytes(fields.take()),
            body_bytes: u32::from_le_bytes(fields.take()),
            about_bytes: u32::from_le_bytes(fields.take()),
        };
        let (about, body) =
            rest.split_at_checked(head.about_bytes as usize).ok_or_else(|| malformed("it is cut short"))?;
        let inline = if head.body_id == 0 { head.body_bytes as usize } else { 0 };
        if body.len() == inline {
            Ok((head, about, body))
        } else {
            Err(malformed("its body is not as long as it says"))
        }
    }
}

impl Content {
    /// The content of a record with this description and this body.
    pub(super) fn new(about: &[u8], body: Bytes) -> Result<Self, Malformed> {
        let About { packed, headers, properties, death } = if about.is_empty() {
            About::default()
        } else {
            rmp_serde::from_slice(about)
                .map_err(|error| Malformed { bytes: about.len(), reason: error.to_string() })?
        };
        let death = death.map(|(queue, reason)| Death { queue, reason });
        Ok(Self { message: Message { packed, headers, properties, body }, death })
    }
}

/// Takes fields off the front of a head.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("a head holds exactly its fields");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rich() -> Message {
        Message {
            packed: Some(Bytes::from_static(&[1, 2, 255])),
            headers: vec![
                ("n".into(), Value::Number(0.5)),
                ("nan-free".into(), Value::List(vec![Value::Null, Value::Integer(-7), Value::Bool(true)])),
                ("t".into(), Value::Table(vec![("b".into(), Value::Binary(Bytes::from_static(&[0, 159])))])),
                ("when".into(), Value::Timestamp(u64::MAX)),
            ],
            properties: Properties { content_type: Some("a/b".into()), ..Properties::default() },
            body: Bytes::from_static(b"body"),
        }
    }

    fn head(about: &[u8], body: &[u8]) -> Head {
        Head {
            queue: 1,
            next: u32::MAX,
            due: u64::MAX - 1,
            body_id: 0,
            body_bytes: body.len() as u32,
            about_bytes: about.len() as u32,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let death = Death { queue: "jobs.low".into(), reason: "delivery_limit".into() };
        for (message, death) in [(rich(), Some(death)), (rich(), None), (Message::default(), None)] {
            let about = describe(&message, death.as_ref());
            let head = head(&about, &message.body);
            let record = head.record(&about, &message.body);
            let (found, about, body) = Head::split(&record).unwrap();
            assert_eq!(found, head);
            let content = Content::new(about, Bytes::copy_from_slice(body)).unwrap();
            assert_eq!(content, Content { message, death });
        }
    }

    #[test]
    fn a_body_apart_is_not_in_the_record() {
        let about = describe(&rich(), None);
        let head = Head { body_id: 9, ..head(&about, &[0; 4000]) };
        let record = head.record(&about, &[0; 4000]);
        assert_eq!(record.len(), HEAD_BYTES + about.len());
        let (found, _, body) = Head::split(&record).unwrap();
        assert_eq!((found, body.len()), (head, 0));
    }

    #[test]
    fn a_record_cut_anywhere_is_malformed_and_does_not_panic() {
        let about = describe(&rich(), None);
        let record = head(&about, b"body").record(&about, b"body");
        for end in 0..record.len() {
            assert!(Head::split(&record[..end]).is_err(), "cut at {end}");
        }
        for end in 1..about.len() {
            assert!(Content::new(&about[..end], Bytes::new()).is_err(), "described up to {end}");
        }
    }
}
