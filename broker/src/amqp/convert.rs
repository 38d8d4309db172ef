//! Messages to and from what goes over the wire.
//!
//! Invariants: a header that is not ours arrives as it was sent, whatever its type; what the broker adds by itself
//! (`x-death` and its kin) never gets into a message, so it is not sent on and cannot make the broker see a cycle; what
//! the broker would act on (`CC`, `BCC`: further queues to put a message into) is not sent on either, because a
//! client's header must not reach past the queue that was chosen for its job.

use crate::delivery::Death;
use crate::message::{Message, Properties, Value};
use crate::receipt::PublishError;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

/// The one packed header. It is sent as a byte array, because that is what every client library gives and takes as
/// bytes; text, which some send, is taken as well.
const PACKED: &str = "sl";
/// Kept on disk by the broker.
const PERSISTENT: u8 = 2;
/// Returns so far; quorum queues only.
const RETURNS: &str = "x-delivery-count";
const DEATHS: &str = "x-death";
/// What broker versions add of their own accord, by beginnings.
const BROKER_HEADERS: [&str; 5] = [DEATHS, "x-first-death-", "x-last-death-", RETURNS, "x-acquired-count"];
/// Headers that make the broker route a message further.
const ROUTING_HEADERS: [&str; 2] = ["CC", "BCC"];
/// Fixed part of a content header frame, and each entry's type and lengths: rounded up.
const FRAME_OVERHEAD: usize = 64;
const ENTRY_OVERHEAD: usize = 8;

/// What arrived, apart from how to settle it.
#[derive(Debug, PartialEq)]
pub(super) struct Arrival {
    pub(super) message: Message,
    pub(super) redelivered: bool,
    pub(super) returns: u32,
    pub(super) death: Option<Death>,
}

/// The properties that `message` is sent with.
pub(super) fn properties(message: &Message) -> Result<BasicProperties, PublishError> {
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    if let Some(value) = &message.properties.content_type {
        properties = properties.with_content_type(short("content_type", value)?);
    }
    if let Some(value) = &message.properties.correlation_id {
        properties = properties.with_correlation_id(short("correlation_id", value)?);
    }
    if let Some(value) = &message.properties.reply_to {
        properties = properties.with_reply_to(short("reply_to", value)?);
    }
    if let Some(value) = &message.properties.user_id {
        properties = properties.with_user_id(short("user_id", value)?);
    }
    let mut table = FieldTable::default();
    for (name, value) in &message.headers {
        if !ROUTING_HEADERS.contains(&name.as_str()) && !is_brokers(name) {
            table.insert(short("name of a header", name)?, to_wire(value)?);
        }
    }
    if let Some(packed) = &message.packed {
        table.insert(PACKED.into(), AMQPValue::ByteArray(packed.as_ref().into()));
    }
    if !table.inner().is_empty() {
        properties = properties.with_headers(table);
    }
    Ok(properties)
}

/// About how long the frame with these properties is, rounded up. A broker cuts the connection over one that is
/// longer than was agreed.
pub(super) fn frame_bytes(message: &Message) -> usize {
    let own = &message.properties;
    let texts = [&own.content_type, &own.correlation_id, &own.reply_to, &own.user_id];
    let texts: usize = texts.into_iter().flatten().map(|text| text.len() + 1).sum();
    let packed = message.packed.as_ref().map_or(0, |packed| PACKED.len() + packed.len() + ENTRY_OVERHEAD);
    FRAME_OVERHEAD + texts + packed + table_bytes(&message.headers)
}

fn table_bytes(entries: &[(String, Value)]) -> usize {
    entries.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

fn value_bytes(value: &Value) -> usize {
    ENTRY_OVERHEAD
        + match value {
            Value::Null | Value::Bool(_) => 1,
            Value::Integer(_) | Value::Number(_) | Value::Timestamp(_) => 8,
            Value::Text(text) => text.len(),
            Value::Binary(bytes) => bytes.len(),
            Value::List(values) => values.iter().map(value_bytes).sum(),
            Value::Table(entries) => table_bytes(entries),
        }
}

/// The delivery taken apart. `last_stop` says that it comes from the queue where the broker's own dead letters end.
pub(super) fn arrival(delivery: lapin::message::Delivery, last_stop: bool) -> Arrival {
    let headers = delivery.properties.headers().as_ref();
    let returns = headers
        .and_then(|table| table.inner().get(RETURNS))
        .and_then(integer)
        .and_then(|count| u32::try_from(count).ok())
        .unwrap_or(delivery.redelivered.into());
    Arrival {
        redelivered: delivery.redelivered,
        returns,
        death: headers.filter(|_| last_stop).and_then(death),
        message: message(&delivery.properties, delivery.data.into()),
    }
}

fn message(properties: &BasicProperties, body: Bytes) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let mut message = Message {
        packed: None,
        headers: Vec::new(),
        properties: Properties {
            content_type: text(properties.content_type()),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            user_id: text(properties.user_id()),
        },
        body,
    };
    for (name, value) in properties.headers().iter().flatten() {
        match (name.as_str(), value) {
            (PACKED, AMQPValue::ByteArray(bytes)) => message.packed = Some(copied(bytes.as_slice())),
            (PACKED, AMQPValue::LongString(text)) => message.packed = Some(copied(text.as_bytes())),
            (name, _) if is_brokers(name) => {}
            (name, value) => message.headers.push((name.to_owned(), from_wire(value))),
        }
    }
    message
}

/// Where the broker gave up on it last. Newer versions say so in headers of their own; all of them list the newest
/// death first.
fn death(headers: &FieldTable) -> Option<Death> {
    let headers = headers.inner();
    let named = |name: &str| headers.get(name).and_then(text);
    if let (Some(queue), Some(reason)) = (named("x-last-death-queue"), named("x-last-death-reason")) {
        return Some(Death { queue, reason });
    }
    let AMQPValue::FieldArray(deaths) = headers.get(DEATHS)? else { return None };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
    let named = |name: &str| newest.inner().get(name).and_then(text);
    Some(Death { queue: named("queue")?, reason: named("reason")? })
}

fn is_brokers(name: &str) -> bool {
    BROKER_HEADERS.iter().any(|beginning| name.starts_with(beginning))
}

fn short(what: &str, text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| {
        PublishError::Invalid(format!("its {what} has {} bytes: at most 255 can be sent", text.len()))
    })
}

fn copied(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn to_wire(value: &Value) -> Result<AMQPValue, PublishError> {
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Integer(value) => AMQPValue::LongLongInt(*value),
        // A broker that reads one of the others breaks down over it, and takes the connection along.
        Value::Number(value) if value.is_finite() => AMQPValue::Double(*value),
        Value::Number(value) => {
            return Err(PublishError::Invalid(format!(
                "one of its headers is {value}: only finite numbers can be sent"
            )));
        }
        Value::Text(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Binary(bytes) => AMQPValue::ByteArray(bytes.as_ref().into()),
        Value::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        Value::List(values) => AMQPValue::FieldArray(FieldArray::from(
            values.iter().map(to_wire).collect::<Result<Vec<_>, _>>()?,
        )),
        Value::Table(entries) => {
            let mut table = FieldTable::default();
            for (name, value) in entries {
                table.insert(short("name of a header", name)?, to_wire(value)?);
            }
            AMQPValue::FieldTable(table)
        }
    })
}

fn from_wire(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Void => Value::Null,
        AMQPValue::Boolean(value) => Value::Bool(*value),
        AMQPValue::Float(value) => Value::Number((*value).into()),
        AMQPValue::Double(value) => Value::Number(*value),
        AMQPValue::DecimalValue(value) => {
            Value::Number(f64::from(value.value) / 10f64.powi(value.scale.into()))
        }
        AMQPValue::ShortString(text) => Value::Text(text.as_str().to_owned()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Binary(copied(text.as_bytes())),
        },
        AMQPValue::ByteArray(bytes) => Value::Binary(copied(bytes.as_slice())),
        AMQPValue::Timestamp(seconds) => Value::Timestamp(*seconds),
        AMQPValue::FieldArray(values) => Value::List(values.as_slice().iter().map(from_wire).collect()),
        AMQPValue::FieldTable(table) => Value::Table(
            table.into_iter().map(|(name, value)| (name.as_str().to_owned(), from_wire(value))).collect(),
        ),
        whole => integer(whole).map_or(Value::Null, Value::Integer),
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(value) => Some((*value).into()),
        AMQPValue::ShortShortUInt(value) => Some((*value).into()),
        AMQPValue::ShortInt(value) => Some((*value).into()),
        AMQPValue::ShortUInt(value) => Some((*value).into()),
        AMQPValue::LongInt(value) => Some((*value).into()),
        AMQPValue::LongUInt(value) => Some((*value).into()),
        AMQPValue::LongLongInt(value) => Some(*value),
        _ => None,
    }
}

fn text(value: &AMQPValue) -> Option<String> {
    match from_wire(value) {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
