//! A call's arguments, `args` and `kwargs`, as one typed value, by the rules of a Python call.
//!
//! Positional arguments fill a struct's fields in declaration order, keyword arguments go by name, and what is left
//! over, given twice or missing is an error that names it. It works on the JSON text, so a field of type `RawValue`
//! keeps its value to the digit.

mod argument;
mod fields;

use std::collections::BTreeMap;

use serde::de::value::SeqDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde_json::value::RawValue;

pub(crate) use self::fields::fields;

use self::argument::{Argument, Fields, Key};

/// Why a call does not fit the handler's arguments. It never changes by trying again.
#[derive(Debug, thiserror::Error)]
pub enum InvalidArguments {
    /// `args` is no JSON array, or `kwargs` no object.
    #[error("malformed {part}: {error}")]
    Malformed {
        /// `args` or `kwargs`.
        part: &'static str,
        /// What the parser says.
        error: serde_json::Error,
    },
    /// More positional arguments than there are fields.
    #[error("{}, {given} given", at_most(*.max))]
    TooMany {
        /// As many as fit.
        max: usize,
        /// As many as came.
        given: usize,
    },
    /// Given by position and by name, or by two of its names.
    #[error("got multiple values for argument `{name}`")]
    Duplicate {
        /// The field.
        name: &'static str,
    },
    /// No field has this name.
    #[error("unexpected argument `{name}`")]
    Unexpected {
        /// The keyword.
        name: String,
    },
    /// Not given, and without a default.
    #[error("missing argument `{name}`")]
    Missing {
        /// The field.
        name: &'static str,
    },
    /// Of a wrong type, or a value that the field's type refuses.
    #[error("argument {argument}: {}", without_position(.error))]
    Value {
        /// Its name in backquotes, or its position from 1.
        argument: String,
        /// What the parser says.
        error: serde_json::Error,
    },
    /// The same of an argument whose value is shown to nobody.
    #[error("argument {argument}: not what the task takes; its value is not shown")]
    Redacted {
        /// Its name in backquotes.
        argument: String,
    },
    /// The type as a whole refuses them.
    #[error("invalid arguments: {reason}")]
    Refused {
        /// The type's own words.
        reason: String,
    },
}

impl InvalidArguments {
    /// The same error without the values of these arguments, or of any when `all` of them may be meant.
    #[must_use]
    pub fn redacted(self, names: &[&str], all: bool) -> Self {
        match self {
            Self::Value { argument, .. } if all || names.contains(&argument.trim_matches('`')) => {
                Self::Redacted { argument }
            }
            // It may quote any of them.
            Self::Refused { .. } if !names.is_empty() => {
                Self::Refused { reason: "not what the task takes; the values are not shown".to_owned() }
            }
            other => other,
        }
    }
}

fn at_most(max: usize) -> String {
    let plural = if max == 1 { "" } else { "s" };
    format!("takes at most {max} positional argument{plural}")
}

/// Line and column would count from the argument's own start, which the client cannot see.
fn without_position(error: &serde_json::Error) -> String {
    let mut message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    if message.ends_with(&position) {
        message.truncate(message.len() - position.len());
    }
    message
}

impl serde::de::Error for InvalidArguments {
    fn custom<T: std::fmt::Display>(reason: T) -> Self {
        Self::Refused { reason: reason.to_string() }
    }

    fn unknown_field(name: &str, _: &'static [&'static str]) -> Self {
        Self::Unexpected { name: name.to_owned() }
    }

    fn missing_field(name: &'static str) -> Self {
        Self::Missing { name }
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::Duplicate { name }
    }
}

/// The arguments of a call as a `T`.
///
/// A struct takes positional and keyword arguments, a tuple or a sequence positional ones only, a map or
/// `serde_json::Value` keyword ones only, `()` and unit structs none; a newtype struct takes what is in it.
///
/// # Errors
/// [`InvalidArguments`] when they do not fit `T`, or are no JSON that `serde_json` can read: lone surrogates, nesting
/// over 128.
pub fn from_call<T: DeserializeOwned>(args: &RawValue, kwargs: &RawValue) -> Result<T, InvalidArguments> {
    let malformed = |part| move |error| InvalidArguments::Malformed { part, error };
    let positional = serde_json::from_str(args.get()).map_err(malformed("args"))?;
    let keywords = serde_json::from_str(kwargs.get()).map_err(malformed("kwargs"))?;
    T::deserialize(Call { positional, keywords })
}

struct Call<'de> {
    positional: Vec<&'de RawValue>,
    keywords: BTreeMap<String, &'de RawValue>,
}

impl<'de> Call<'de> {
    fn at_most(&self, max: usize) -> Result<(), InvalidArguments> {
        let given = self.positional.len();
        if given > max { Err(InvalidArguments::TooMany { max, given }) } else { Ok(()) }
    }

    fn no_keywords(&self) -> Result<(), InvalidArguments> {
        let unexpected = |name: &String| Err(InvalidArguments::Unexpected { name: name.clone() });
        self.keywords.keys().next().map_or(Ok(()), unexpected)
    }

    fn positional(&self) -> impl Iterator<Item = Argument<'de>> {
        let given = self.positional.len();
        self.positional.iter().enumerate().map(move |(index, json)| {
            let left_over = InvalidArguments::TooMany { max: index, given };
            Argument { json, name: (index + 1).to_string(), left_over }
        })
    }
}

impl<'de> Deserializer<'de> for Call<'de> {
    type Error = InvalidArguments;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.at_most(fields.len())?;
        let positional = self.positional().zip(fields).enumerate().map(|(index, (argument, name))| {
            let key = Key { name: (*name).to_owned(), index: Some(index as u64) };
            (key, Argument { name: format!("`{name}`"), ..argument })
        });
        let keywords = self.keywords.iter().map(|(name, json)| {
            let left_over = InvalidArguments::Unexpected { name: name.clone() };
            (Key { name: name.clone(), index: None }, Argument { json, name: format!("`{name}`"), left_over })
        });
        visitor.visit_map(Fields::new(positional.chain(keywords)))
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.no_keywords()?;
        visitor.visit_seq(SeqDeserializer::new(self.positional()))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Self::Error> {
        self.at_most(len)?;
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        n: usize,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.deserialize_tuple(n, visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.at_most(0)?;
        self.no_keywords()?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option map enum identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::{Value, json};
    use std::collections::HashMap;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        item: String,
        #[serde(default)]
        count: u32,
        note: Option<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Renamed {
        #[serde(alias = "a_first", alias = "z_first")]
        first: u8,
        second: u8,
    }

    #[derive(Deserialize)]
    struct Wrapper(Order);

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn call<T: DeserializeOwned>(args: &str, kwargs: &str) -> Result<T, String> {
        from_call(&raw(args), &raw(kwargs)).map_err(|error| error.to_string())
    }

    fn refusal<T: DeserializeOwned>(args: &str, kwargs: &str) -> String {
        call::<T>(args, kwargs).err().unwrap_or_else(|| panic!("{args} {kwargs} fits"))
    }

    #[test]
    fn a_struct_is_filled_as_a_python_call_would() {
        let order = |count, note: Option<&str>| Order { item: "tea".into(), count, note: note.map(Into::into) };
        assert_eq!(call(r#"["tea"]"#, "{}"), Ok(order(0, None)));
        assert_eq!(call(r#"["tea", 2]"#, r#"{"note": "hot"}"#), Ok(order(2, Some("hot"))));
        assert_eq!(call("[]", r#"{"count": 3, "item": "tea", "note": null}"#), Ok(order(3, None)));
        assert_eq!(call::<Wrapper>(r#"["tea"]"#, "{}").unwrap().0, order(0, None));
    }

    #[test]
    fn what_a_fields_type_refuses_is_named() {
        #[derive(Debug, Deserialize)]
        #[serde(try_from = "u8")]
        struct Even(#[expect(dead_code, reason = "it is never read")] u8);

        impl TryFrom<u8> for Even {
            type Error = &'static str;

            fn try_from(number: u8) -> Result<Self, Self::Error> {
                if number.is_multiple_of(2) { Ok(Self(number)) } else { Err("an odd number") }
            }
        }

        #[derive(Debug, Deserialize)]
        struct Pair {
            #[expect(dead_code, reason = "it is never read")]
            first: Even,
            #[expect(dead_code, reason = "it is never read")]
            second: Even,
        }

        assert!(call::<Pair>("[0, 2]", "{}").is_ok());
        assert_eq!(refusal::<Pair>("[1, 2]", "{}"), "argument `first`: an odd number");
        assert_eq!(refusal::<Pair>("[2]", r#"{"second": 1}"#), "argument `second`: an odd number");
        assert_eq!(
            refusal::<Pair>("[2]", r#"{"second": -1}"#),
            "argument `second`: invalid value: integer `-1`, expected u8"
        );
        let error = from_call::<Pair>(&raw("[1, 2]"), &raw("{}")).unwrap_err().redacted(&["first"], false);
        assert!(matches!(error, InvalidArguments::Redacted { .. }), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (args, kwargs, reason) in [
            ("[1, 2, 3, 4]", "{}", "takes at most 3 positional arguments, 4 given"),
            (r#"["tea"]"#, r#"{"item": "milk"}"#, "got multiple values for argument `item`"),
            (r#"["tea"]"#, r#"{"size": 1}"#, "unexpected argument `size`"),
            ("[]", r#"{"count": 1}"#, "missing argument `item`"),
            (r#"["tea", "x"]"#, "{}", r#"argument `count`: invalid type: string "x", expected u32"#),
            ("[]", r#"{"item": "\ud800"}"#, "argument `item`: unexpected end of hex escape"),
            ("[]", r#"{"\ud800": 1}"#, "malformed kwargs: unexpected end of hex escape at line 1 column 9"),
            ("{}", "{}", "malformed args: invalid type: map, expected a sequence at line 1 column 0"),
        ] {
            assert_eq!(refusal::<Order>(args, kwargs), reason);
        }
    }

    #[test]
    fn a_renamed_field_keeps_its_position_and_its_old_names() {
        let both = Renamed { first: 1, second: 2 };
        assert_eq!(call::<Renamed>("[1, 2]", "{}").as_ref(), Ok(&both));
        assert_eq!(call::<Renamed>("[1]", r#"{"second": 2}"#).as_ref(), Ok(&both));
        assert_eq!(call::<Renamed>("[]", r#"{"second": 2, "z_first": 1}"#).as_ref(), Ok(&both));
        assert_eq!(refusal::<Renamed>("[1]", r#"{"a_first": 1}"#), "got multiple values for argument `first`");
        assert_eq!(refusal::<Renamed>("[1, 2, 3]", "{}"), "takes at most 2 positional arguments, 3 given");
        assert_eq!(refusal::<Renamed>("[]", r#"{"third": 1}"#), "unexpected argument `third`");
    }

    #[test]
    fn other_shapes_take_what_they_can_hold() {
        assert_eq!(call("[1, 2]", "{}"), Ok((1, 2)));
        assert_eq!(refusal::<(u8, u8)>("[1, \"x\"]", "{}"), r#"argument 2: invalid type: string "x", expected u8"#);
        assert_eq!(refusal::<(u8,)>("[1, 2]", "{}"), "takes at most 1 positional argument, 2 given");
        assert_eq!(refusal::<(u8, u8)>("[1]", "{}"), "invalid arguments: invalid length 1, expected a tuple of size 2");
        assert_eq!(refusal::<(u8, u8)>("[1]", r#"{"x": 2}"#), "unexpected argument `x`");
        assert_eq!(call("[]", r#"{"x": 2}"#), Ok(HashMap::from([("x".to_owned(), 2)])));
        assert_eq!(call::<Value>("[]", r#"{"x": [2]}"#), Ok(json!({"x": [2]})));
        assert_eq!(refusal::<Value>("[1]", "{}"), "takes at most 0 positional arguments, 1 given");
        call::<()>("[]", "{}").unwrap();
        assert_eq!(refusal::<()>("[]", r#"{"x": 2}"#), "unexpected argument `x`");
    }

    #[test]
    fn deep_nesting_is_refused_and_raw_values_keep_every_digit() {
        let deep = format!("[{}{}]", "[".repeat(1000), "]".repeat(1000));
        assert_eq!(refusal::<(Value,)>(&deep, "{}"), "argument 1: recursion limit exceeded");
        let (kept,): (Box<RawValue>,) = call("[1180591620717411303424.0]", "{}").unwrap();
        assert_eq!(kept.get(), "1180591620717411303424.0");
        assert_eq!(refusal::<(Box<RawValue>,)>(r#"["\ud800"]"#, "{}"), "argument 1: unexpected end of hex escape");
    }

    #[test]
    fn no_integer_loses_digits_unsaid() {
        const WIDE: &str = "1180591620717411303424";
        for value in [WIDE.to_owned(), format!("-{WIDE}"), format!(r#"{{"\"1": ["é", {WIDE}]}}"#)] {
            let args = format!("[{value}]");
            assert_eq!(refusal::<(Value,)>(&args, "{}"), "argument 1: an integer of more than 64 bits");
            let (kept, optional) =
                call::<(Box<RawValue>, Option<Box<RawValue>>)>(&format!("[{value}, {value}]"), "{}").unwrap();
            assert_eq!((kept.get(), optional.unwrap().get()), (value.as_str(), value.as_str()));
        }
        assert!(refusal::<(f64,)>(&format!("[{WIDE}]"), "{}").contains("64 bits"));
        assert!(refusal::<(u64,)>(&format!("[{WIDE}]"), "{}").starts_with("argument 1: invalid type"));
        for value in ["18446744073709551615", "-9223372036854775808", "1180591620717411303424.0", "1e30"] {
            assert!(call::<(Option<f64>,)>(&format!("[{value}]"), "{}").is_ok(), "{value}");
        }
        assert_eq!(call(&format!(r#"["{WIDE} \\\" {WIDE}"]"#), "{}"), Ok((json!(format!(r#"{WIDE} \" {WIDE}"#)),)));
    }

    proptest! {
        #[test]
        fn any_split_between_position_and_name_is_the_same(item in ".*", count: u32, note in ".*", split in 0..=3_usize) {
            let values = [("item", json!(item)), ("count", json!(count)), ("note", json!(note))];
            let args: Vec<_> = values[..split].iter().map(|(_, value)| value).collect();
            let kwargs: HashMap<_, _> = values[split..].iter().map(|(name, value)| (name, value)).collect();
            let order = call(&json!(args).to_string(), &serde_json::to_string(&kwargs).unwrap());
            prop_assert_eq!(order, Ok(Order { item, count, note: Some(note) }));
        }
    }
}
