//! Between plain messages and lapin's types.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Number, Value};

use super::fault::Fault;
use crate::message::{Headers, Message, Properties};

/// A name as AMQP's short string. lapin's own conversion panics above 255 bytes.
pub(super) fn short_string(text: &str) -> Result<ShortString, Fault> {
    ShortString::try_new(text).map_err(|_| Fault::NameTooLong(format!("{text:.40}…")))
}

/// An AMQP table of the value types that every client reads the same: no short integers, which older Python clients
/// read as something else.
pub(super) fn field_table(map: &Map<String, Value>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in map {
        if let Ok(name) = ShortString::try_new(name.as_str()) {
            table.insert(name, amqp_value(value));
        }
    }
    table
}

fn amqp_value(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => amqp_number(number),
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(items) => {
            AMQPValue::FieldArray(FieldArray::from(items.iter().map(amqp_value).collect::<Vec<_>>()))
        }
        Value::Object(map) => AMQPValue::FieldTable(field_table(map)),
    }
}

fn amqp_number(number: &Number) -> AMQPValue {
    match number.as_i64() {
        Some(int) => i32::try_from(int).map_or(AMQPValue::LongLongInt(int), AMQPValue::LongInt),
        None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
    }
}

/// A received table, JSON-shaped. Bytes that are not UTF-8 are replaced; nothing is refused here.
pub(super) fn headers(table: &FieldTable) -> Headers {
    table.into_iter().map(|(name, value)| (name.to_string(), json_value(value))).collect()
}

fn json_value(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::ShortShortInt(int) => (*int).into(),
        AMQPValue::ShortShortUInt(int) => (*int).into(),
        AMQPValue::ShortInt(int) => (*int).into(),
        AMQPValue::ShortUInt(int) => (*int).into(),
        AMQPValue::LongInt(int) => (*int).into(),
        AMQPValue::LongUInt(int) => (*int).into(),
        AMQPValue::LongLongInt(int) => (*int).into(),
        AMQPValue::Float(float) => f64::from(*float).into(),
        AMQPValue::Double(float) => (*float).into(),
        AMQPValue::DecimalValue(decimal) => (f64::from(decimal.value) / 10_f64.powi(i32::from(decimal.scale))).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into(),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(json_value).collect(),
        AMQPValue::Timestamp(seconds) => (*seconds).into(),
        AMQPValue::FieldTable(table) => Value::Object(headers(table)),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into(),
        AMQPValue::Void => Value::Null,
    }
}

/// lapin's properties of a message to publish.
pub(super) fn basic_properties(properties: &Properties) -> Result<BasicProperties, Fault> {
    let mut basic = BasicProperties::default()
        .with_headers(field_table(&properties.headers))
        .with_delivery_mode(if properties.persistent { 2 } else { 1 });
    if let Some(priority) = properties.priority {
        basic = basic.with_priority(priority);
    }
    if let Some(text) = &properties.content_type {
        basic = basic.with_content_type(short_string(text)?);
    }
    if let Some(text) = &properties.content_encoding {
        basic = basic.with_content_encoding(short_string(text)?);
    }
    if let Some(text) = &properties.correlation_id {
        basic = basic.with_correlation_id(short_string(text)?);
    }
    if let Some(text) = &properties.reply_to {
        basic = basic.with_reply_to(short_string(text)?);
    }
    if let Some(text) = &properties.expiration {
        basic = basic.with_expiration(short_string(text)?);
    }
    Ok(basic)
}

/// The plain form of a received message.
pub(super) fn message(basic: &BasicProperties, body: Vec<u8>) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let properties = Properties {
        content_type: text(basic.content_type()),
        content_encoding: text(basic.content_encoding()),
        headers: basic.headers().as_ref().map(headers).unwrap_or_default(),
        persistent: *basic.delivery_mode() == Some(2),
        priority: *basic.priority(),
        correlation_id: text(basic.correlation_id()),
        reply_to: text(basic.reply_to()),
        expiration: text(basic.expiration()),
    };
    Message { properties, body }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any::{any_json, any_text};
    use proptest::prelude::*;

    fn any_name() -> impl Strategy<Value = Option<String>> {
        prop::option::of(any_text(63))
    }

    proptest! {
        #[test]
        fn a_message_survives_the_way_there_and_back(
            table in prop::collection::btree_map(any_text(20), any_json(), 0..8),
            (content_type, content_encoding, correlation_id) in (any_name(), any_name(), any_name()),
            (reply_to, expiration) in (any_name(), any_name()),
            (persistent, priority, body) in any::<(bool, Option<u8>, Vec<u8>)>(),
        ) {
            let headers = table.into_iter().collect();
            let properties = Properties {
                content_type, content_encoding, headers, persistent, priority, correlation_id, reply_to, expiration,
            };
            let sent = Message { properties, body };
            let basic = basic_properties(&sent.properties).unwrap();
            prop_assert_eq!(message(&basic, sent.body.clone()), sent);
        }

        #[test]
        fn any_name_is_a_short_string_or_an_error(text in any::<String>()) {
            prop_assert_eq!(short_string(&text).is_ok(), text.len() <= 255);
        }
    }

    #[test]
    fn a_name_too_long_is_an_error_not_a_panic() {
        assert!(short_string(&"x".repeat(256)).is_err());
        assert!(short_string(&"x".repeat(255)).is_ok());
    }
}
