//! Single values of a task's fields. Errors say what the value must be.

use protocol::timestamp::{parse_rfc3339, unix_ms};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::rules::{self, LEAST_SECONDS};
use crate::store::UnixMs;

pub(super) fn string(raw: &RawValue) -> Result<String, String> {
    serde_json::from_str(raw.get()).map_err(|_| "must be a string".to_owned())
}

pub(super) fn array(raw: &RawValue) -> Result<Box<RawValue>, String> {
    if raw.get().starts_with('[') { Ok(raw.to_owned()) } else { Err("must be an array".to_owned()) }
}

pub(super) fn object(raw: &RawValue) -> Result<Box<RawValue>, String> {
    if raw.get().starts_with('{') { Ok(raw.to_owned()) } else { Err("must be an object".to_owned()) }
}

/// The number, `None` when it is no number of that kind.
pub(super) fn number<T: serde::de::DeserializeOwned>(raw: &RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

/// A time with an offset: one without would mean something else on every machine.
pub(super) fn time(raw: &RawValue) -> Result<UnixMs, String> {
    let text = string(raw).map_err(|_| must_be_time())?;
    parse_rfc3339(&text).map(unix_ms).ok_or_else(must_be_time)
}

fn must_be_time() -> String {
    "must be a time in RFC 3339 with an offset, like 2026-11-20T15:00:00Z".to_owned()
}

/// Seconds from now, or a time.
pub(super) fn expires(raw: &RawValue, now: UnixMs) -> Result<UnixMs, String> {
    match serde_json::from_str(raw.get()) {
        Ok(Value::Number(_)) => rules::seconds(number(raw), LEAST_SECONDS).map(|seconds| after(now, seconds)),
        Ok(Value::String(_)) => time(raw),
        _ => Err("must be a number of seconds or a time in RFC 3339".to_owned()),
    }
}

/// That many seconds after `now`.
#[expect(clippy::cast_possible_truncation, reason = "ten years of milliseconds fit")]
pub(super) fn after(now: UnixMs, seconds: f64) -> UnixMs {
    now.saturating_add((seconds * 1000.0).round() as i64)
}
