//! Messages, as much of them as a broker handles.

use bytes::Bytes;
use schemas::JobId;
use schemas::header::Claim;
use schemas::wire::CONTENT_TYPE;
use serde::{Deserialize, Serialize};

/// A message. The body is shared, never copied, on its way through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// The packed header `sl`, if it has one.
    pub packed: Option<Bytes>,
    /// Every other header, forwarded as it came. Those the broker itself adds (`x-death` and its kin) are left out.
    pub headers: Vec<(String, Value)>,
    /// Properties.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
}

/// The properties of a message that StraightLine uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// Media type of the body.
    pub content_type: Option<String>,
    /// The job's id, where a client touches the message.
    pub correlation_id: Option<String>,
    /// The reply queue, where a client submits.
    pub reply_to: Option<String>,
    /// The login, vouched for by a broker that authenticates.
    pub user_id: Option<String>,
}

/// A header's value: the types that AMQP has, widened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any number.
    Number(f64),
    /// Text, or bytes that a broker calls text.
    Text(String),
    /// Bytes.
    Binary(Bytes),
    /// Seconds since the Unix epoch.
    Timestamp(u64),
    /// Several values.
    List(Vec<Value>),
    /// Named values.
    Table(Vec<(String, Value)>),
}

impl Message {
    /// A reply that carries the result of the job `id`.
    pub fn reply(id: JobId, result: Bytes) -> Self {
        let properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            correlation_id: Some(id.to_string()),
            ..Properties::default()
        };
        Self { properties, body: result, ..Self::default() }
    }

    /// What its properties say of it, should its header be unreadable.
    pub fn claim(&self) -> Claim {
        let Properties { correlation_id, reply_to, user_id, .. } = &self.properties;
        Claim::of(correlation_id.as_deref(), reply_to.as_deref(), user_id.as_deref())
    }

    /// A header as text; numbers and booleans in decimal.
    pub fn header_text(&self, name: &str) -> Option<String> {
        match &self.headers.iter().find(|(found, _)| found == name)?.1 {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Binary(bytes) => String::from_utf8(bytes.to_vec()).ok(),
            Value::Timestamp(seconds) => Some(seconds.to_string()),
            Value::Null | Value::List(_) | Value::Table(_) => None,
        }
    }
}
