//! One argument of a call: which field it is for, and its value.

use protocol::json;
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::InvalidArguments;

/// How `serde_json` asks for a `RawValue`.
const RAW_VALUE: &str = "$serde_json::private::RawValue";

/// Which field an argument is for.
pub(super) struct Key {
    pub(super) name: String,
    /// Of a positional argument. The field names that serde gives include the aliases, so the n-th of them need not
    /// be the n-th field's.
    pub(super) index: Option<u64>,
}

impl<'de> Deserializer<'de> for Key {
    type Error = InvalidArguments;

    /// A derived struct asks this way, and knows its fields by index too.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.index {
            Some(index) => visitor.visit_u64(index),
            None => visitor.visit_string(self.name),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_string(self.name)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum ignored_any
    }
}

impl IntoDeserializer<'_, InvalidArguments> for Key {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// A struct's fields, and whose value it is that the field's own type refuses.
pub(super) struct Fields<'de, I> {
    left: I,
    value: Option<Argument<'de>>,
}

impl<'de, I: Iterator<Item = (Key, Argument<'de>)>> Fields<'de, I> {
    pub(super) fn new(fields: I) -> Self {
        Self { left: fields, value: None }
    }
}

impl<'de, I: Iterator<Item = (Key, Argument<'de>)>> MapAccess<'de> for Fields<'de, I> {
    type Error = InvalidArguments;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let Some((key, value)) = self.left.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        let argument = self.value.take().ok_or_else(|| Self::Error::custom("a value was asked for before its key"))?;
        let name = argument.name.clone();
        seed.deserialize(argument).map_err(|error| match error {
            InvalidArguments::Refused { reason } => {
                InvalidArguments::Value { argument: name, error: serde_json::Error::custom(reason) }
            }
            other => other,
        })
    }
}

/// One argument's value, which `serde_json` reads.
pub(super) struct Argument<'de> {
    pub(super) json: &'de RawValue,
    /// For messages: a field's name in backquotes, or the position from 1.
    pub(super) name: String,
    /// What it means that no field takes it.
    pub(super) left_over: InvalidArguments,
}

impl<'de> IntoDeserializer<'de, InvalidArguments> for Argument<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Argument<'_> {
    fn refused(self, error: impl std::fmt::Display) -> InvalidArguments {
        InvalidArguments::Value { argument: self.name, error: serde_json::Error::custom(error) }
    }
}

/// Passes methods on to `serde_json` and names the argument in its errors.
macro_rules! read_json {
    ($($method:ident($($hint:ident: $type:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(self, $($hint: $type,)* visitor: V) -> Result<V::Value, Self::Error> {
            let mut json = serde_json::Deserializer::from_str(self.json.get());
            let value = json.$method($($hint,)* visitor);
            value.map_err(|error| InvalidArguments::Value { argument: self.name, error })
        })*
    };
}

impl<'de> Deserializer<'de> for Argument<'de> {
    type Error = InvalidArguments;

    /// A derived struct skips this way over what is none of its fields.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(self.left_over)
    }

    /// A number, or any JSON. `serde_json` would read an integer over 64 bits as a float, without a word.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if has_wide_integer(self.json.get()) {
            return Err(self.refused("an integer of more than 64 bits"));
        }
        let mut json = serde_json::Deserializer::from_str(self.json.get());
        json.deserialize_any(visitor).map_err(|error| InvalidArguments::Value { argument: self.name, error })
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.json.get() == "null" { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    /// Raw JSON is kept to the digit, but whoever gets it must be able to read it.
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if name != RAW_VALUE {
            return visitor.visit_newtype_struct(self);
        }
        if let Err(fault) = json::check(self.json.get(), usize::MAX) {
            return Err(self.refused(fault));
        }
        let mut json = serde_json::Deserializer::from_str(self.json.get());
        json.deserialize_newtype_struct(name, visitor)
            .map_err(|error| InvalidArguments::Value { argument: self.name, error })
    }

    read_json! {
        deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
        deserialize_i128() deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_char() deserialize_str() deserialize_string()
        deserialize_bytes() deserialize_byte_buf() deserialize_unit() deserialize_seq()
        deserialize_map() deserialize_identifier() deserialize_tuple(len: usize)
        deserialize_unit_struct(name: &'static str)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }
}

/// Whether an integer in it needs more than 64 bits.
fn has_wide_integer(json: &str) -> bool {
    let (mut at, mut in_string) = (0, false);
    while let Some(byte) = json.as_bytes().get(at) {
        at += match byte {
            b'\\' => 2,
            b'-' | b'0'..=b'9' if !in_string => {
                let is_part = |byte: char| byte.is_ascii_digit() || matches!(byte, '-' | '+' | '.' | 'e' | 'E');
                let end = json[at..].find(|byte| !is_part(byte)).map_or(json.len(), |length| at + length);
                let number = &json[at..end];
                let is_integer = !number.contains(['.', 'e', 'E']);
                if is_integer && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return true;
                }
                number.len()
            }
            _ => {
                in_string ^= *byte == b'"';
                1
            }
        };
    }
    false
}
