//! JSON as a parameter of the type that a Postgres statement expects, in its binary form.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Number, Value};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::values::{EPOCH, Kind};

/// Digits of a `numeric` on either side of the point, far above any use.
const MAX_DIGITS: usize = 1000;

/// A value that is encoded already.
pub(super) struct Parameter {
    info: PgTypeInfo,
    bytes: Option<Vec<u8>>,
}

impl Parameter {
    /// # Errors
    /// What the value is and the type does not take, as the end of a sentence.
    pub(super) fn new(info: &PgTypeInfo, kind: Kind, value: &Value) -> Result<Self, String> {
        let bytes = match value {
            Value::Null if !matches!(kind, Kind::Json | Kind::Jsonb) => None,
            value => Some(encode(kind, value).ok_or_else(|| format!("not {}", wanted(kind)))?),
        };
        Ok(Self { info: info.clone(), bytes })
    }
}

impl Type<Postgres> for Parameter {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("unknown")
    }
}

impl Encode<'_, Postgres> for Parameter {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let Some(bytes) = &self.bytes else { return Ok(IsNull::Yes) };
        buffer.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.info.clone())
    }
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "a boolean",
        Kind::Int2 => "an integer of 16 bits",
        Kind::Int4 => "an integer of 32 bits",
        Kind::Int8 => "an integer of 64 bits",
        Kind::Oid => "an unsigned integer of 32 bits",
        Kind::Float4 | Kind::Float8 => "a number",
        Kind::Numeric => "a number, or a string of decimal digits",
        Kind::Text => "a string",
        Kind::Bytea => "a string in base64",
        Kind::Date => "a date like 2026-11-20",
        Kind::Time => "a time of day like 15:04:05",
        Kind::Timestamp => "a time like 2026-11-20T15:04:05, without an offset",
        Kind::Timestamptz => "a time in RFC 3339, like 2026-11-20T15:04:05Z",
        Kind::Uuid => "a UUID",
        Kind::Json | Kind::Jsonb => "JSON",
    }
}

fn encode(kind: Kind, value: &Value) -> Option<Vec<u8>> {
    Some(match kind {
        Kind::Bool => vec![u8::from(value.as_bool()?)],
        Kind::Int2 => i16::try_from(value.as_i64()?).ok()?.to_be_bytes().into(),
        Kind::Int4 => i32::try_from(value.as_i64()?).ok()?.to_be_bytes().into(),
        Kind::Int8 => value.as_i64()?.to_be_bytes().into(),
        Kind::Oid => u32::try_from(value.as_u64()?).ok()?.to_be_bytes().into(),
        Kind::Float4 => single(value.as_f64()?)?.to_be_bytes().into(),
        Kind::Float8 => value.as_f64()?.to_be_bytes().into(),
        Kind::Numeric => match value {
            Value::Number(number) => numeric(&decimal(number)?)?,
            other => numeric(other.as_str()?)?,
        },
        Kind::Text => value.as_str()?.as_bytes().into(),
        Kind::Bytea => BASE64_STANDARD.decode(value.as_str()?).ok()?,
        Kind::Date => {
            let days = (parse(&format!("{}T00:00:00Z", value.as_str()?))? - EPOCH).whole_days();
            i32::try_from(days).ok()?.to_be_bytes().into()
        }
        Kind::Time => micros(&format!("2000-01-01T{}Z", value.as_str()?))?,
        Kind::Timestamp => micros(&format!("{}Z", value.as_str()?))?,
        Kind::Timestamptz => micros(value.as_str()?)?,
        Kind::Uuid => Uuid::parse_str(value.as_str()?).ok()?.into_bytes().into(),
        Kind::Json => serde_json::to_vec(value).ok()?,
        // The first byte is the format's version.
        Kind::Jsonb => [vec![1], serde_json::to_vec(value).ok()?].concat(),
    })
}

fn parse(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

fn micros(text: &str) -> Option<Vec<u8>> {
    let micros = (parse(text)? - EPOCH).whole_microseconds();
    Some(i64::try_from(micros).ok()?.to_be_bytes().into())
}

#[expect(clippy::cast_possible_truncation, reason = "the nearest float4 is what is asked for")]
fn single(value: f64) -> Option<f32> {
    Some(value as f32).filter(|value| value.is_finite())
}

/// A number without an exponent.
fn decimal(number: &Number) -> Option<String> {
    if number.is_f64() { number.as_f64().map(|float| float.to_string()) } else { Some(number.to_string()) }
}

/// Digits to the base of 10 000: their number, the first one's power, the sign, the decimals to show, and then they.
fn numeric(text: &str) -> Option<Vec<u8>> {
    let (sign, digits) = text.strip_prefix('-').map_or((0_u16, text), |digits| (0x4000, digits));
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.len() <= MAX_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(decimals) {
        return None;
    }
    let (before, after) = (whole.len().div_ceil(4), decimals.len().div_ceil(4));
    let padded = format!("{whole:0>0$}{decimals:0<1$}", before * 4, after * 4);
    let mut digits = padded
        .as_bytes()
        .as_chunks()
        .0
        .iter()
        .map(|four: &[u8; 4]| four.iter().fold(0, |sum, byte| sum * 10 + u16::from(byte - b'0')));
    let leading = digits.clone().take_while(|digit| *digit == 0).count();
    let mut digits: Vec<u16> = digits.by_ref().skip(leading).collect();
    while digits.last() == Some(&0) {
        digits.pop();
    }
    let weight = i16::try_from(before).ok()? - 1 - i16::try_from(leading).ok()?;
    let head = [u16::try_from(digits.len()).ok()?, weight.cast_unsigned(), sign, u16::try_from(decimals.len()).ok()?];
    Some(head.iter().chain(&digits).flat_map(|word| word.to_be_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn there_and_back(kind: Kind, value: &Value) -> Option<Value> {
        kind.json(&encode(kind, value)?)
    }

    #[test]
    fn a_parameter_reads_back_as_it_was_given() {
        for (kind, value) in [
            (Kind::Bool, json!(true)),
            (Kind::Int2, json!(-32768)),
            (Kind::Int4, json!(7)),
            (Kind::Int8, json!(i64::MIN)),
            (Kind::Float8, json!(0.25)),
            (Kind::Numeric, json!("-10000.00010")),
            (Kind::Numeric, json!("0.00001234")),
            (Kind::Numeric, json!("123456789012345678901234567890")),
            (Kind::Numeric, json!("0")),
            (Kind::Text, json!("Grüße")),
            (Kind::Bytea, json!("AP8=")),
            (Kind::Date, json!("1999-12-31")),
            (Kind::Time, json!("15:04:05.25")),
            (Kind::Timestamp, json!("2026-11-20T15:04:05")),
            (Kind::Timestamptz, json!("1970-01-01T00:00:00.000001Z")),
            (Kind::Uuid, json!("0190a000-0000-7000-8000-000000000000")),
            (Kind::Json, json!({"a": [null]})),
            (Kind::Jsonb, json!(null)),
        ] {
            assert_eq!(there_and_back(kind, &value), Some(value), "{kind:?}");
        }
        assert_eq!(
            there_and_back(Kind::Timestamptz, &json!("2026-11-20T15:04:05+01:00")),
            Some(json!("2026-11-20T14:04:05Z"))
        );
        assert_eq!(there_and_back(Kind::Numeric, &json!(1e20)), Some(json!("100000000000000000000")));
    }

    #[test]
    fn what_the_type_does_not_take_is_refused() {
        for (kind, value) in [
            (Kind::Bool, json!("true")),
            (Kind::Int2, json!(32768)),
            (Kind::Int4, json!(1.5)),
            (Kind::Int4, json!("1")),
            (Kind::Int8, json!(u64::MAX)),
            (Kind::Float4, json!(1e300)),
            (Kind::Numeric, json!("1e5")),
            (Kind::Numeric, json!(".5")),
            (Kind::Numeric, json!("9".repeat(1001))),
            (Kind::Text, json!(1)),
            (Kind::Bytea, json!("?")),
            (Kind::Timestamptz, json!("2026-11-20T15:04:05")),
            (Kind::Timestamp, json!("2026-11-20T15:04:05Z")),
            (Kind::Date, json!("20.11.2026")),
            (Kind::Uuid, json!("nope")),
        ] {
            assert_eq!(encode(kind, &value), None, "{kind:?} {value}");
        }
    }

    proptest! {
        #[test]
        fn a_numeric_keeps_every_digit(text in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?") {
            let value = json!(text);
            // Postgres has no negative zero either.
            prop_assume!(text.bytes().any(|byte| (b'1'..=b'9').contains(&byte)));
            prop_assert_eq!(there_and_back(Kind::Numeric, &value), Some(value));
        }
    }
}
