//! Postgres' types and their binary form, as JSON.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sqlx::TypeInfo;
use sqlx::postgres::{PgTypeInfo, PgTypeKind};
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// Where Postgres counts time from.
pub(super) const EPOCH: OffsetDateTime = datetime!(2000-01-01 00:00 UTC);

/// A type that both a column and a parameter may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Bytea,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Uuid,
    Json,
    Jsonb,
}

impl Kind {
    /// `None` for a type that has no plain counterpart in JSON.
    pub(super) fn of(info: &PgTypeInfo) -> Option<Self> {
        match info.kind() {
            PgTypeKind::Domain(base) => return Self::of(base),
            PgTypeKind::Enum(_) => return Some(Self::Text),
            _ => {}
        }
        Some(match info.name() {
            "BOOL" => Self::Bool,
            "INT2" => Self::Int2,
            "INT4" => Self::Int4,
            "INT8" => Self::Int8,
            "OID" => Self::Oid,
            "FLOAT4" => Self::Float4,
            "FLOAT8" => Self::Float8,
            "NUMERIC" => Self::Numeric,
            "TEXT" | "VARCHAR" | "CHAR" | "\"CHAR\"" | "NAME" | "UNKNOWN" | "VOID" => Self::Text,
            "BYTEA" => Self::Bytea,
            "DATE" => Self::Date,
            "TIME" => Self::Time,
            "TIMESTAMP" => Self::Timestamp,
            "TIMESTAMPTZ" => Self::Timestamptz,
            "UUID" => Self::Uuid,
            "JSON" => Self::Json,
            "JSONB" => Self::Jsonb,
            _ => return None,
        })
    }

    /// The JSON of a value that is not null; `None` for a time outside of the years 0 to 9999, and for bytes that are
    /// not what the type says.
    pub(super) fn json(self, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::Bool => (array(bytes)? != [0]).into(),
            Self::Int2 => i16::from_be_bytes(array(bytes)?).into(),
            Self::Int4 => i32::from_be_bytes(array(bytes)?).into(),
            Self::Int8 => i64::from_be_bytes(array(bytes)?).into(),
            Self::Oid => u32::from_be_bytes(array(bytes)?).into(),
            Self::Float4 => single(f32::from_be_bytes(array(bytes)?)),
            Self::Float8 => float(f64::from_be_bytes(array(bytes)?)),
            Self::Numeric => numeric(bytes)?.into(),
            Self::Text => std::str::from_utf8(bytes).ok()?.into(),
            Self::Bytea => BASE64_STANDARD.encode(bytes).into(),
            Self::Date => match i32::from_be_bytes(array(bytes)?) {
                i32::MAX => "infinity".into(),
                i32::MIN => "-infinity".into(),
                days => rfc3339(Duration::days(days.into()))?.split('T').next()?.into(),
            },
            Self::Time => {
                let micros = Duration::microseconds(i64::from_be_bytes(array(bytes)?));
                // Postgres knows 24:00, RFC 3339 does not.
                let text = if micros == Duration::DAY { "T24:00:00Z".to_owned() } else { rfc3339(micros)? };
                text.split('T').nth(1)?.trim_end_matches('Z').into()
            }
            Self::Timestamp => timestamp(array(bytes)?)?.trim_end_matches('Z').into(),
            Self::Timestamptz => timestamp(array(bytes)?)?.into(),
            Self::Uuid => Uuid::from_bytes(array(bytes)?).to_string().into(),
            Self::Json => serde_json::from_slice(bytes).ok()?,
            // The first byte is the format's version.
            Self::Jsonb => serde_json::from_slice(bytes.strip_prefix(&[1])?).ok()?,
        })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// JSON has no number for those that are none or infinite.
pub(super) fn float(value: f64) -> Value {
    let name = if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    };
    serde_json::Number::from_f64(value).map_or_else(|| name.into(), Value::Number)
}

/// With the digits that a `float4` has: 0.1 and not 0.10000000149011612.
fn single(value: f32) -> Value {
    float(value.to_string().parse().unwrap_or_else(|_| f64::from(value)))
}

fn timestamp(bytes: [u8; 8]) -> Option<String> {
    match i64::from_be_bytes(bytes) {
        i64::MAX => Some("infinity".to_owned()),
        i64::MIN => Some("-infinity".to_owned()),
        micros => rfc3339(Duration::microseconds(micros)),
    }
}

fn rfc3339(since_epoch: Duration) -> Option<String> {
    EPOCH.checked_add(since_epoch)?.format(&Rfc3339).ok()
}

/// Digits to the base of 10 000: their number, the first one's power, the sign, and the decimals to show.
fn numeric(bytes: &[u8]) -> Option<String> {
    let words: Vec<u16> = bytes.as_chunks().0.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
    let (&[_, weight, sign, scale], digits) = words.split_first_chunk()?;
    let sign = match sign {
        0 => "",
        0x4000 => "-",
        0xC000 => return Some("NaN".to_owned()),
        0xD000 => return Some("Infinity".to_owned()),
        _ => return Some("-Infinity".to_owned()),
    };
    let weight = i32::from(weight.cast_signed());
    let digit = |power: i32| usize::try_from(weight - power).ok().and_then(|at| digits.get(at)).copied().unwrap_or(0);
    let four = |power| format!("{:04}", digit(power));
    let whole = (0..=weight).rev().map(four).collect::<Vec<_>>().concat();
    let whole = Some(whole.trim_start_matches('0')).filter(|whole| !whole.is_empty()).unwrap_or("0");
    let places = i32::from(scale.div_ceil(4));
    let mut decimals = (1..=places).map(|place| four(-place)).collect::<Vec<_>>().concat();
    decimals.truncate(scale.into());
    Some(if decimals.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{decimals}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_rfc_3339() {
        let second = 1_000_000_i64;
        for (kind, micros, text) in [
            (Kind::Timestamptz, 0, Some("2000-01-01T00:00:00Z")),
            (Kind::Timestamptz, -second / 2, Some("1999-12-31T23:59:59.5Z")),
            (Kind::Timestamp, second, Some("2000-01-01T00:00:01")),
            (Kind::Timestamp, i64::MAX, Some("infinity")),
            (Kind::Timestamptz, i64::MAX - 1, None),
            (Kind::Time, 3_661 * second + 1, Some("01:01:01.000001")),
            (Kind::Time, 86_400 * second, Some("24:00:00")),
        ] {
            assert_eq!(kind.json(&micros.to_be_bytes()), text.map(Value::from), "{kind:?} {micros}");
        }
        assert_eq!(Kind::Date.json(&(-1_i32).to_be_bytes()), Some(json!("1999-12-31")));
        assert_eq!(Kind::Date.json(&i32::MIN.to_be_bytes()), Some(json!("-infinity")));
    }

    #[test]
    fn floats_that_json_does_not_know_are_strings() {
        let json = |value: f64| Kind::Float8.json(&value.to_be_bytes()).unwrap();
        assert_eq!([f64::NAN, f64::INFINITY, -f64::INFINITY].map(json), ["NaN", "Infinity", "-Infinity"]);
        assert_eq!(json(0.5), json!(0.5));
        assert_eq!(Kind::Float4.json(&0.1_f32.to_be_bytes()), Some(json!(0.1)));
    }

    #[test]
    fn bytes_of_another_length_are_no_value() {
        assert_eq!(Kind::Int4.json(&[0; 8]), None);
        assert_eq!(Kind::Numeric.json(&[0; 3]), None);
        assert_eq!(Kind::Jsonb.json(b"{}"), None);
    }
}
