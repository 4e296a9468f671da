//! Whether JSON that is passed on unread could be read by those who receive it.
//!
//! A `RawValue` checks syntax only: it holds lone surrogates, `1e999` and any nesting, on which a handler's
//! deserializer fails later. This check is what a service makes before it promises anything.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

/// `serde_json` itself refuses deeper nesting, so a larger `max_depth` has no effect.
const READER_DEPTH: usize = 127;

/// The key of `serde_json`'s private form of a raw value. A `Value` reads the string under it as JSON, so it would
/// carry nesting past the check.
const RAW_VALUE_KEY: &str = "$serde_json::private::RawValue";

/// Why JSON is refused.
#[derive(Debug, thiserror::Error)]
pub enum JsonFault {
    /// Arrays and objects are nested deeper than allowed.
    #[error("nested deeper than {max} levels")]
    TooDeep {
        /// The levels allowed.
        max: usize,
    },
    /// It is not JSON, or holds what a `serde_json::Value` cannot: a lone surrogate, a number out of range.
    #[error(transparent)]
    Invalid(serde_json::Error),
}

/// Reads `raw` once, without building a value, and refuses what a `serde_json::Value` could not hold and what is
/// nested deeper than `max_depth`. The depth of `1` is 0, of `[]` 1.
///
/// # Errors
/// See [`JsonFault`].
pub fn check(raw: &str, max_depth: usize) -> Result<(), JsonFault> {
    let max = max_depth.min(READER_DEPTH);
    let too_deep = Cell::new(false);
    let mut reader = serde_json::Deserializer::from_str(raw);
    let read = Shape { levels: max, too_deep: &too_deep }.deserialize(&mut reader).and_then(|()| reader.end());
    read.map_err(|error| {
        if too_deep.get() || is_recursion_limit(&error) {
            JsonFault::TooDeep { max }
        } else {
            JsonFault::Invalid(error)
        }
    })
}

/// `serde_json` has no category for it.
fn is_recursion_limit(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("recursion limit exceeded")
}

/// Any value with at most `levels` levels of nesting.
#[derive(Clone, Copy)]
struct Shape<'a> {
    levels: usize,
    too_deep: &'a Cell<bool>,
}

impl Shape<'_> {
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1).ok_or_else(|| {
            self.too_deep.set(true);
            E::custom("nested too deep")
        })?;
        Ok(Self { levels, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while map.next_key_seed(Key)?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// Any key but `serde_json`'s private one.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<(), E> {
        if key == RAW_VALUE_KEY { Err(E::custom("reserved key")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn nested(levels: usize) -> String {
        "[".repeat(levels) + &"]".repeat(levels)
    }

    #[test]
    fn depth_counts_arrays_and_objects() {
        for (raw, depth) in [("1", 0), ("[]", 1), ("{}", 1), (r#"{"a":[{}]}"#, 3), ("[[],[[]]]", 3)] {
            assert!(check(raw, depth).is_ok(), "{raw}");
            assert!(depth == 0 || matches!(check(raw, depth - 1), Err(JsonFault::TooDeep { .. })), "{raw}");
        }
    }

    #[test]
    fn a_flood_of_brackets_is_too_deep_and_overflows_nothing() {
        for raw in [nested(100_000), "[".repeat(100_000), r#"{"a":"#.repeat(100_000), nested(128)] {
            for max in [0, 64, 127, 128, 1000, usize::MAX] {
                assert!(matches!(check(&raw, max), Err(JsonFault::TooDeep { .. })), "{max}");
            }
        }
        assert!(check(&nested(127), 127).is_ok());
        assert!(serde_json::from_str::<Value>(&nested(127)).is_ok());
    }

    #[test]
    fn what_a_value_cannot_hold_is_refused() {
        let bad = [r#""\ud800""#, r#"{"\ud800":1}"#, "1e999", "[NaN]", "Infinity", "1 2", "[1,]", "", "\"\n\"", "01"];
        for raw in bad {
            assert!(matches!(check(raw, 64), Err(JsonFault::Invalid(_))), "{raw}");
        }
    }

    #[test]
    fn nesting_cannot_hide_in_serde_jsons_private_key() {
        let raw = serde_json::to_string(&serde_json::json!({ RAW_VALUE_KEY: nested(100) })).unwrap();
        assert!(matches!(check(&raw, 2), Err(JsonFault::Invalid(_))));
    }

    proptest! {
        #[test]
        fn it_accepts_exactly_what_a_value_holds(raw in r#"[\[\]{}:,"0-9eE.+\\ud8antrfls \-]{0,24}"#) {
            prop_assert_eq!(check(&raw, 127).is_ok(), serde_json::from_str::<Value>(&raw).is_ok());
        }
    }
}
