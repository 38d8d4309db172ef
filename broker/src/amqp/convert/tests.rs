use super::*;
use lapin::message::Delivery;
use lapin::types::{ByteArray, DecimalValue};

fn delivered(properties: BasicProperties, body: &[u8], redelivered: bool) -> Delivery {
    let mut delivery = Delivery::mock(1, "".into(), "jobs.high".into(), redelivered, body.to_vec());
    delivery.properties = properties;
    delivery
}

fn table(entries: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn words(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[test]
fn every_value_comes_back_as_it_was() {
    let values = [
        ("binary", Value::Binary(Bytes::from_static(&[0, 255]))),
        ("bool", Value::Bool(true)),
        ("integer", Value::Integer(i64::MIN)),
        ("list", Value::List(vec![Value::Null, Value::List(vec![]), Value::Number(0.1)])),
        ("null", Value::Null),
        ("number", Value::Number(f64::MAX)),
        ("table", Value::Table(vec![("a".into(), Value::Text(String::new()))])),
        ("text", Value::Text("手書き".into())),
        ("timestamp", Value::Timestamp(u64::MAX)),
    ];
    let message = Message {
        packed: Some(Bytes::from_static(b"\x9e\xff")),
        headers: values.map(|(name, value)| (name.to_owned(), value)).into(),
        properties: Properties {
            content_type: Some("application/msgpack".into()),
            correlation_id: Some("1".into()),
            reply_to: Some("reply.a.b".into()),
            user_id: Some("a".into()),
        },
        body: Bytes::from_static(b"body"),
    };
    let sent = properties(&message).unwrap();
    assert_eq!(*sent.delivery_mode(), Some(2));
    let arrived = arrival(delivered(sent, b"body", false), false);
    assert_eq!(arrived, Arrival { message, redelivered: false, returns: 0, death: None });
}

#[test]
fn every_type_a_foreign_client_can_send_is_kept() {
    let sent = table([
        ("b", AMQPValue::ShortShortInt(-1)),
        ("bb", AMQPValue::ShortShortUInt(255)),
        ("d", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 150 })),
        ("f", AMQPValue::Float(0.5)),
        ("i", AMQPValue::LongUInt(u32::MAX)),
        ("ii", AMQPValue::LongInt(i32::MIN)),
        ("raw", AMQPValue::LongString(vec![0xff, 0xfe].into())),
        ("s", AMQPValue::ShortInt(-2)),
        ("u", AMQPValue::ShortUInt(u16::MAX)),
    ]);
    let arrived = arrival(delivered(BasicProperties::default().with_headers(sent), b"", false), false);
    let expected = [
        ("b", Value::Integer(-1)),
        ("bb", Value::Integer(255)),
        ("d", Value::Number(1.5)),
        ("f", Value::Number(0.5)),
        ("i", Value::Integer(u32::MAX.into())),
        ("ii", Value::Integer(i32::MIN.into())),
        ("raw", Value::Binary(Bytes::from_static(&[0xff, 0xfe]))),
        ("s", Value::Integer(-2)),
        ("u", Value::Integer(u16::MAX.into())),
    ];
    assert_eq!(arrived.message.headers, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn the_packed_header_is_bytes_and_text_is_taken_for_it() {
    for value in [AMQPValue::ByteArray(ByteArray::from(&b"abc"[..])), words("abc")] {
        let sent = BasicProperties::default().with_headers(table([("sl", value)]));
        let message = arrival(delivered(sent, b"", false), false).message;
        assert_eq!((message.packed, message.headers), (Some(Bytes::from_static(b"abc")), vec![]));
    }
}

#[test]
fn what_the_broker_adds_stays_out_and_what_it_would_act_on_is_not_sent() {
    let death = |queue, reason| {
        AMQPValue::FieldTable(table([
            ("queue", words(queue)),
            ("reason", words(reason)),
            ("count", 1i64.into()),
        ]))
    };
    let deaths = FieldArray::from(vec![death("lane.local", "delivery_limit"), death("retry.100", "expired")]);
    let headers = [
        ("x-death", AMQPValue::FieldArray(deaths)),
        ("x-first-death-queue", words("retry.100")),
        ("x-delivery-count", 4i64.into()),
        ("mine", words("kept")),
    ];
    let sent = BasicProperties::default().with_headers(table(headers.clone()));
    let arrived = arrival(delivered(sent.clone(), b"", true), true);
    assert_eq!(arrived.message.headers, [("mine".to_owned(), Value::Text("kept".into()))]);
    assert_eq!(arrived.returns, 4);
    let newest = Death { queue: "lane.local".into(), reason: "delivery_limit".into() };
    assert_eq!(arrived.death, Some(newest));
    assert_eq!(
        arrival(delivered(sent, b"", true), false).death,
        None,
        "a retry has a death too, and is alive"
    );

    let last = [("x-last-death-queue", words("jobs.low")), ("x-last-death-reason", words("expired"))];
    let sent = BasicProperties::default().with_headers(table(headers.into_iter().chain(last)));
    let newest = Death { queue: "jobs.low".into(), reason: "expired".into() };
    assert_eq!(arrival(delivered(sent, b"", true), true).death, Some(newest));

    let text = |text: &str| Value::Text(text.into());
    let routed =
        [("BCC", text("dead")), ("CC", text("lane.local")), ("x-death", text("forged")), ("ok", text("y"))];
    let message = Message {
        headers: routed.map(|(name, value)| (name.to_owned(), value)).into(),
        ..Message::default()
    };
    let sent = properties(&message).unwrap();
    assert_eq!(*sent.headers(), Some(table([("ok", words("y"))])));
}

#[test]
fn a_classic_queue_counts_no_returns_but_says_redelivered() {
    let arrived = arrival(delivered(BasicProperties::default(), b"", true), false);
    assert_eq!((arrived.redelivered, arrived.returns), (true, 1));
}

#[test]
fn what_the_protocol_cannot_say_is_refused_with_its_name() {
    let mut message = Message::default();
    message.properties.correlation_id = Some("x".repeat(256));
    let error = properties(&message).unwrap_err().to_string();
    assert!(error.contains("correlation_id") && error.contains("256"), "{error}");
    let message = Message { headers: vec![("x".repeat(300), Value::Null)], ..Message::default() };
    assert!(properties(&message).unwrap_err().to_string().contains("300"));
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let nested = Value::List(vec![Value::Number(number)]);
        let message = Message { headers: vec![("n".into(), nested)], ..Message::default() };
        assert!(properties(&message).unwrap_err().to_string().contains("only finite numbers"));
    }
}

#[test]
fn a_frame_is_never_longer_than_was_reckoned() {
    let nested = Value::Table(vec![("k".into(), Value::List(vec![Value::Integer(1); 100]))]);
    let message = Message {
        packed: Some(vec![7; 1_000].into()),
        headers: vec![("nested".into(), nested), ("text".into(), Value::Text("y".repeat(500)))],
        properties: Properties { content_type: Some("a/b".into()), ..Properties::default() },
        body: Bytes::new(),
    };
    // 100 integers of 9 bytes each, a thousand and five hundred bytes, and names.
    assert!(frame_bytes(&message) >= 900 + 1_500 + 3 + "nested".len() + "text".len() + "k".len());
}

#[test]
fn a_body_is_moved_not_copied() {
    let delivery = delivered(BasicProperties::default(), &[1; 4_096], false);
    let before = delivery.data.as_ptr();
    assert_eq!(arrival(delivery, false).message.body.as_ptr(), before);
}
