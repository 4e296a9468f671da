//! From a request's body to a task: every field is checked, and every bad one is named by its JSON pointer.

mod value;

use std::time::Duration;

use actix_web::http::StatusCode;
use protocol::json::{self, JsonFault};
use protocol::retry::RetryOptions;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use self::value::{array, integer, object, seconds, string, time};
use super::Limits;
use super::problem::{FieldError, Problem};
use crate::store::{NewTask, UnixMs};

/// The deepest nesting of the whole body.
const MAX_DEPTH: usize = 64;
const MAX_TASK_BYTES: usize = 200;
const MAX_TASK_ID_BYTES: usize = 64;
const MAX_PRIORITY: u64 = 9;
const MAX_RETRIES: u32 = 1_000;
/// Thirty days: the longest wait between attempts.
const MAX_BACKOFF_S: f64 = 30.0 * 24.0 * 3600.0;

/// Checks the body. All bad fields are reported together.
///
/// # Errors
/// 400 for what is not JSON, 422 for what is not a task.
pub fn parse(body: &[u8], limits: &Limits, now: UnixMs) -> Result<NewTask, Problem> {
    let not_json = |error: serde_json::Error| {
        Problem::new(StatusCode::BAD_REQUEST, "not-json", format!("the body is not JSON: {error}"))
    };
    // Checked as a whole first, without recursion: deep nesting must not look like bad syntax, nor overflow the stack.
    let raw: &RawValue = serde_json::from_slice(body).map_err(not_json)?;
    let Ok(Members(members)) = serde_json::from_str::<Members<'_>>(raw.get()) else {
        let detail = "must be a JSON object".to_owned();
        return Err(Problem::fields(vec![FieldError { pointer: String::new(), detail }]));
    };
    let mut fields = Fields { members, errors: Vec::new(), now };
    let task = fields.task(limits);
    fields.refuse_unknown();
    if fields.errors.is_empty() { Ok(task) } else { Err(Problem::fields(fields.errors)) }
}

/// The members of an object in their order, duplicates kept.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(InOrder).map(Self)
    }
}

/// What is left of the object while its fields are taken out, and what was wrong so far.
struct Fields<'a> {
    members: Vec<(String, &'a RawValue)>,
    errors: Vec<FieldError>,
    now: UnixMs,
}

impl<'a> Fields<'a> {
    fn task(&mut self, limits: &Limits) -> NewTask {
        let task = self.name();
        let args = self.field("args", array).unwrap_or_else(|| empty("[]"));
        let kwargs = self.field("kwargs", object).unwrap_or_else(|| empty("{}"));
        let queue = self.queue(limits);
        let priority = self.field("priority", |raw| integer(raw, 0, MAX_PRIORITY)).unwrap_or(0);
        let eta = self.eta();
        let now = self.now;
        let expires = self.field("expires", |raw| value::expires(raw, now));
        let (time_limit, soft_time_limit) = self.time_limits(limits.max_time_limit);
        let id = self.field("task_id", task_id).unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        let retry = self.field("retry", retry).unwrap_or_default();
        let priority = u8::try_from(priority).unwrap_or(u8::MAX);
        NewTask {
            id,
            task,
            queue,
            priority,
            args,
            kwargs,
            retry,
            time_limit,
            soft_time_limit,
            created_at: now,
            eta,
            expires,
        }
    }

    /// Takes the field out; `None` when it is absent, null or bad, and then the error is kept.
    fn field<T>(&mut self, name: &str, check: impl FnOnce(&'a RawValue) -> Result<T, String>) -> Option<T> {
        let place = self.members.iter().position(|(member, _)| member == name)?;
        let (_, raw) = self.members.remove(place);
        if raw.get() == "null" {
            return None;
        }
        let checked = match json::check(raw.get(), MAX_DEPTH - 1) {
            Ok(()) => check(raw),
            Err(JsonFault::TooDeep { .. }) => Err(format!("nests deeper than {MAX_DEPTH} levels")),
            Err(fault) => Err(fault.to_string()),
        };
        checked.map_err(|detail| self.refuse(name, detail)).ok()
    }

    fn refuse(&mut self, name: &str, detail: impl Into<String>) {
        // RFC 6901: the two signs that a pointer escapes.
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        self.errors.push(FieldError { pointer, detail: detail.into() });
    }

    fn name(&mut self) -> String {
        let before = self.errors.len();
        let name = self.field("task", |raw| {
            let name = string(raw)?;
            if name.is_empty() || name.len() > MAX_TASK_BYTES {
                return Err(format!("must be 1 to {MAX_TASK_BYTES} bytes"));
            }
            if name.chars().any(char::is_control) {
                return Err("must not contain control characters".to_owned());
            }
            Ok(name)
        });
        if name.is_none() && self.errors.len() == before {
            self.refuse("task", "is required");
        }
        name.unwrap_or_default()
    }

    fn queue(&mut self, limits: &Limits) -> String {
        let queue = self.field("queue", |raw| {
            let queue = string(raw)?;
            if limits.queues.contains(&queue) {
                return Ok(queue);
            }
            Err(format!("is not a queue of this producer: {}", limits.queues.join(", ")))
        });
        // `default` when it is accepted, else the first: a producer always accepts one.
        let fallback = || limits.queues.iter().find(|queue| *queue == "default").or(limits.queues.first());
        queue.unwrap_or_else(|| fallback().cloned().unwrap_or_default())
    }

    fn eta(&mut self) -> Option<UnixMs> {
        let eta = self.field("eta", time);
        let now = self.now;
        let countdown = self.field("countdown", |raw| seconds(raw, 0.0).map(|seconds| value::after(now, seconds)));
        if eta.is_some() && countdown.is_some() {
            self.refuse("countdown", "excludes eta: give one of the two");
        }
        eta.or(countdown)
    }

    fn time_limits(&mut self, longest: Duration) -> (Option<f64>, Option<f64>) {
        let check = |raw: &RawValue| {
            let limit = seconds(raw, 0.001)?;
            let longest = longest.as_secs_f64();
            if limit > longest { Err(format!("is above the longest that is allowed, {longest} s")) } else { Ok(limit) }
        };
        let hard = self.field("time_limit", check);
        let soft = self.field("soft_time_limit", check);
        if let (Some(hard), Some(soft)) = (hard, soft)
            && soft > hard
        {
            self.refuse("soft_time_limit", "is above time_limit");
        }
        (hard, soft)
    }

    /// A misspelled option must not be ignored in silence.
    fn refuse_unknown(&mut self) {
        for (name, _) in std::mem::take(&mut self.members) {
            let known = KNOWN.contains(&name.as_str());
            self.refuse(&name, if known { "is given twice" } else { "is not a field of a task" });
        }
    }
}

const KNOWN: [&str; 12] = [
    "task",
    "args",
    "kwargs",
    "queue",
    "priority",
    "countdown",
    "eta",
    "expires",
    "time_limit",
    "soft_time_limit",
    "task_id",
    "retry",
];

fn empty(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn task_id(raw: &RawValue) -> Result<String, String> {
    let id = string(raw)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if id.is_empty() || id.len() > MAX_TASK_ID_BYTES || !id.bytes().all(fits) {
        return Err(format!("must be 1 to {MAX_TASK_ID_BYTES} of A-Z, a-z, 0-9, _ and -"));
    }
    Ok(id)
}

fn retry(raw: &RawValue) -> Result<RetryOptions, String> {
    // serde would also take an array, in field order.
    object(raw)?;
    let chosen: RetryOptions = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    if chosen.max_retries.is_some_and(|most| most > MAX_RETRIES) {
        return Err(format!("max_retries must be at most {MAX_RETRIES}"));
    }
    for (name, value) in [("backoff", chosen.backoff), ("backoff_max", chosen.backoff_max)] {
        if value.is_some_and(|value| !(0.0..=MAX_BACKOFF_S).contains(&value)) {
            return Err(format!("{name} must be 0 to {MAX_BACKOFF_S} s"));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests;
