//! From a request's body to a task: every field is checked, and every bad one is named by its JSON pointer.

mod edit;
mod value;

use actix_web::http::StatusCode;
use protocol::retry::RetryOptions;
use protocol::state::State;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

pub use self::edit::edit;
use self::value::{array, number, object, string, time};
use super::problem::{FieldError, Problem};
use crate::rules::{self, Limits};
use crate::store::{Callback, NewTask, UnixMs};

/// Checks the body. All bad fields are reported together.
///
/// # Errors
/// 400 for what is not JSON, 422 for what is not a task.
pub fn parse(body: &[u8], limits: &Limits, now: UnixMs) -> Result<NewTask, Problem> {
    check(json(body)?, limits, now).map_err(Problem::fields)
}

/// Checked as a whole first, without recursion: deep nesting must not look like bad syntax, nor overflow the stack.
fn json(body: &[u8]) -> Result<&RawValue, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "not-json", format!("the body is not JSON: {error}")))
}

/// Checks what should be a task.
///
/// # Errors
/// All of its bad fields.
pub fn check(raw: &RawValue, limits: &Limits, now: UnixMs) -> Result<NewTask, Vec<FieldError>> {
    let mut fields = Fields::of(raw, now)?;
    let task = fields.task(limits);
    fields.end(&KNOWN, "a task").map(|()| task)
}

fn whole(detail: String) -> Vec<FieldError> {
    vec![FieldError { pointer: String::new(), detail }]
}

/// The members of an object in their order, duplicates kept.
pub struct Members<'a>(pub Vec<(String, &'a RawValue)>);

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
    fn of(raw: &'a RawValue, now: UnixMs) -> Result<Self, Vec<FieldError>> {
        match serde_json::from_str::<Members<'_>>(raw.get()) {
            Ok(Members(members)) => Ok(Self { members, errors: Vec::new(), now }),
            // Its syntax was checked, so one of its names is no text: it holds half a surrogate pair.
            Err(error) if raw.get().starts_with('{') => Err(whole(format!("has a bad name: {error}"))),
            Err(_) => Err(whole("must be a JSON object".to_owned())),
        }
    }

    fn task(&mut self, limits: &Limits) -> NewTask {
        let task = self.name();
        let args = self.field("args", array).unwrap_or_else(rules::no_args);
        let kwargs = self.field("kwargs", object).unwrap_or_else(rules::no_kwargs);
        let queue = self.queue(limits);
        let priority = self.field("priority", |raw| rules::priority(number(raw))).unwrap_or(0);
        let eta = self.eta();
        let now = self.now;
        let expires = self.field("expires", |raw| value::expires(raw, now));
        let (time_limit, soft_time_limit) = self.time_limits(limits);
        let id = self.field("task_id", task_id).unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        let retry = self.field("retry", retry).unwrap_or_default();
        let callback = self.callback(limits);
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
            parent: None,
            owner: None,
            callback,
        }
    }

    /// Takes the field out; `None` when it is absent, null or bad, and then the error is kept.
    fn field<T>(&mut self, name: &str, check: impl FnOnce(&'a RawValue) -> Result<T, String>) -> Option<T> {
        let place = self.members.iter().position(|(member, _)| member == name)?;
        let (_, raw) = self.members.remove(place);
        if raw.get() == "null" {
            return None;
        }
        let checked = rules::json(raw.get()).and_then(|()| check(raw));
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
            rules::task_name(&name).map(|()| name)
        });
        if name.is_none() && self.errors.len() == before {
            self.refuse("task", "is required");
        }
        name.unwrap_or_default()
    }

    fn queue(&mut self, limits: &Limits) -> String {
        let queue = self.field("queue", |raw| {
            let queue = string(raw)?;
            limits.queue(&queue).map(|()| queue)
        });
        // `default` when it is accepted, else the first: a producer always accepts one.
        let fallback = || limits.queues.iter().find(|queue| *queue == "default").or(limits.queues.first());
        queue.unwrap_or_else(|| fallback().cloned().unwrap_or_default())
    }

    fn eta(&mut self) -> Option<UnixMs> {
        let eta = self.field("eta", time);
        let now = self.now;
        let countdown =
            self.field("countdown", |raw| rules::seconds(number(raw), 0.0).map(|seconds| value::after(now, seconds)));
        if eta.is_some() && countdown.is_some() {
            self.refuse("countdown", "excludes eta: give one of the two");
        }
        eta.or(countdown)
    }

    fn time_limits(&mut self, limits: &Limits) -> (Option<f64>, Option<f64>) {
        let hard = self.field("time_limit", |raw| limits.time_limit(number(raw)));
        let soft = self.field("soft_time_limit", |raw| limits.time_limit(number(raw)));
        if let Err(detail) = rules::soft_time_limit(hard, soft) {
            self.refuse("soft_time_limit", detail);
        }
        (hard, soft)
    }

    fn callback(&mut self, limits: &Limits) -> Option<Callback> {
        let raw = self.field("callback", |raw| object(raw).map(|_| raw))?;
        let read = self.read_callback(raw, limits);
        let within = |error: FieldError| FieldError { pointer: format!("/callback{}", error.pointer), ..error };
        read.map_err(|errors| self.errors.extend(errors.into_iter().map(within))).ok()?
    }

    fn read_callback(&self, raw: &'a RawValue, limits: &Limits) -> Result<Option<Callback>, Vec<FieldError>> {
        let mut own = Fields::of(raw, self.now)?;
        let events = own.field("events", events).unwrap_or_else(|| ENDS.to_vec());
        let before = own.errors.len();
        let callback = own.field("url", |raw| limits.receivers.callback(&string(raw)?, events));
        if callback.is_none() && own.errors.len() == before {
            own.refuse("url", "is required");
        }
        own.end(&["url", "events"], "a callback").map(|()| callback)
    }

    /// A misspelled option must not be ignored in silence.
    fn end(mut self, known: &[&str], what: &str) -> Result<(), Vec<FieldError>> {
        for (name, _) in std::mem::take(&mut self.members).into_iter().take(MAX_UNKNOWN) {
            let is_known = known.contains(&name.as_str());
            self.refuse(
                &name,
                if is_known { "is given twice".to_owned() } else { format!("is not a field of {what}") },
            );
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

/// How many unknown fields are told of: there can be as many as fit into a body.
const MAX_UNKNOWN: usize = 100;

/// Every field of a submit.
pub const KNOWN: [&str; 13] = [
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
    "callback",
];

fn task_id(raw: &RawValue) -> Result<String, String> {
    let id = string(raw)?;
    rules::task_id(&id).map(|()| id)
}

fn retry(raw: &RawValue) -> Result<RetryOptions, String> {
    // serde would also take an array, in field order.
    object(raw)?;
    let chosen: RetryOptions = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    rules::retry(&chosen).map(|()| chosen)
}

/// The states that a callback may be for.
pub const ENDS: [State; 3] = [State::Success, State::Failure, State::Revoked];

fn events(raw: &RawValue) -> Result<Vec<State>, String> {
    let events: Option<Vec<State>> = number(raw);
    let fits = |events: &Vec<State>| {
        let is_once = |place: usize| !events[..place].contains(&events[place]);
        !events.is_empty() && (0..events.len()).all(|place| ENDS.contains(&events[place]) && is_once(place))
    };
    events.filter(fits).ok_or_else(|| format!("must be some of {}, each once", ENDS.map(State::name).join(", ")))
}

#[cfg(test)]
mod tests;
