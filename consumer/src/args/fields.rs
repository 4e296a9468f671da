//! Which fields a struct is asked by, learnt without a value of it.

use serde::de::{DeserializeOwned, Deserializer, Visitor};

use super::InvalidArguments;

/// The names by which a `T` takes arguments, in declaration order, each field's aliases beside it; `None` when it is no
/// struct with fields.
pub(crate) fn fields<T: DeserializeOwned>() -> Option<&'static [&'static str]> {
    let mut found = None;
    let _ = T::deserialize(Probe { found: &mut found });
    found
}

/// Keeps the fields that it is asked for, and then gives up.
struct Probe<'a> {
    found: &'a mut Option<&'static [&'static str]>,
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = InvalidArguments;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.found = Some(fields);
        Err(nothing())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(nothing())
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option map enum identifier
        ignored_any unit unit_struct seq tuple tuple_struct
    }
}

fn nothing() -> InvalidArguments {
    InvalidArguments::Refused { reason: "there is nothing to read".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::HashMap;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "nothing reads it")]
    struct Named {
        #[serde(alias = "a")]
        width: u8,
        height: u8,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "nothing reads it")]
    struct Wrapper(Named);

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "nothing reads it")]
    struct Flat {
        #[serde(flatten)]
        rest: HashMap<String, u8>,
    }

    #[test]
    fn a_struct_has_its_fields_and_their_aliases() {
        assert_eq!(fields::<Named>(), Some(["a", "width", "height"].as_slice()));
        assert_eq!(fields::<Wrapper>(), fields::<Named>());
    }

    #[test]
    fn what_is_no_struct_has_none() {
        assert_eq!(fields::<(u8, u8)>(), None);
        assert_eq!(fields::<()>(), None);
        assert_eq!(fields::<HashMap<String, u8>>(), None);
        assert_eq!(fields::<Flat>(), None);
        assert_eq!(fields::<serde_json::Value>(), None);
    }
}
