//! A task to be submitted by a running one (Celery's signature).

use std::time::Duration;

use protocol::json;
use protocol::retry::RetryOptions;
use protocol::topology::Topology;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// All arguments of one task, in bytes of JSON; the bound that the HTTP API has for a whole request.
const MAX_ARGUMENT_BYTES: usize = 256 * 1024;
/// Of each argument list: the message, like a request over HTTP, is one level deeper.
const MAX_DEPTH: usize = 63;
const MAX_NAME_BYTES: usize = 200;
const MAX_PRIORITY: u8 = 9;

/// A call of a task by name, with how and when it is to run.
///
/// ```
/// # use consumer::signature::Signature;
/// let resize = Signature::new("resize_image").arg("https://example.com/a.png").kwarg("width", 320).priority(5);
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[must_use]
pub struct Signature {
    /// The task's name.
    pub task: String,
    /// Positional arguments.
    pub args: Vec<Box<RawValue>>,
    /// Arguments by name, in the order given.
    pub kwargs: Vec<(String, Box<RawValue>)>,
    /// The queue; `None` is the parent's.
    pub queue: Option<String>,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// The wait before the first attempt.
    pub countdown: Option<Duration>,
    /// Not to be started later than this after its submission.
    pub expires: Option<Duration>,
    /// The hard time limit.
    pub time_limit: Option<Duration>,
    /// The soft time limit.
    pub soft_time_limit: Option<Duration>,
    /// What differs from the task's own policy.
    pub retry: RetryOptions,
    /// An id of the caller's choice.
    pub task_id: Option<String>,
    /// The first argument that is not JSON.
    fault: Option<String>,
}

/// Why a child was not submitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SubmitError {
    /// A field of the signature cannot be used; the message names it.
    #[error("{0}")]
    Invalid(String),
    /// The broker did not take it in time.
    #[error("the broker did not take the child: {0}")]
    Unavailable(String),
}

impl Signature {
    /// A call of the task of that name, without arguments.
    pub fn new(task: impl Into<String>) -> Self {
        Self {
            task: task.into(),
            args: Vec::new(),
            kwargs: Vec::new(),
            queue: None,
            priority: 0,
            countdown: None,
            expires: None,
            time_limit: None,
            soft_time_limit: None,
            retry: RetryOptions::default(),
            task_id: None,
            fault: None,
        }
    }

    /// A call with these arguments, by name: the fields of a struct.
    pub(crate) fn with(task: &str, args: &impl Serialize) -> Self {
        let mut signature = Self::new(task);
        match serde_json::to_string(args).map_err(|error| error.to_string()).and_then(|json| fields(&json)) {
            Ok(kwargs) => signature.kwargs = kwargs,
            Err(fault) => signature.fault = Some(format!("args: {fault}")),
        }
        signature
    }

    /// One more positional argument.
    pub fn arg(mut self, value: impl Serialize) -> Self {
        match to_raw_value(&value) {
            Ok(json) => self.args.push(json),
            Err(error) => self.fault = self.fault.or_else(|| Some(format!("args: {error}"))),
        }
        self
    }

    /// One more argument by name; a later one of the same name replaces it.
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let name = name.into();
        match to_raw_value(&value) {
            Ok(json) => {
                self.kwargs.retain(|(given, _)| *given != name);
                self.kwargs.push((name, json));
            }
            Err(error) => self.fault = self.fault.or_else(|| Some(format!("kwargs: {name}: {error}"))),
        }
        self
    }

    /// The queue, instead of the parent's.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// 0 to 9, higher first.
    pub const fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// How long it waits before its first attempt.
    pub const fn countdown(mut self, wait: Duration) -> Self {
        self.countdown = Some(wait);
        self
    }

    /// How long after its submission it may still start.
    pub const fn expires(mut self, after: Duration) -> Self {
        self.expires = Some(after);
        self
    }

    /// The hard time limit, instead of the task's own.
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// The soft time limit, instead of the task's own.
    pub const fn soft_time_limit(mut self, limit: Duration) -> Self {
        self.soft_time_limit = Some(limit);
        self
    }

    /// What differs from the task's own retry policy.
    pub const fn retry(mut self, retry: RetryOptions) -> Self {
        self.retry = retry;
        self
    }

    /// An id of the caller's choice, instead of one that follows from the parent's and the call. A task that was
    /// submitted with it before is not submitted again.
    pub fn task_id(mut self, id: impl Into<String>) -> Self {
        self.task_id = Some(id.into());
        self
    }

    /// The positional arguments as a JSON array.
    pub(crate) fn args_json(&self) -> Box<RawValue> {
        to_raw_value(&self.args).unwrap_or_default()
    }

    /// The arguments by name as a JSON object.
    pub(crate) fn kwargs_json(&self) -> Box<RawValue> {
        let members: Vec<String> =
            self.kwargs.iter().map(|(name, value)| format!("{}:{value}", serde_json::json!(name))).collect();
        RawValue::from_string(format!("{{{}}}", members.join(","))).unwrap_or_default()
    }

    /// Whether every field can be used. The rules are those of the HTTP API.
    pub(crate) fn check(&self) -> Result<(), SubmitError> {
        let bad = |field: &str, why: &str| Err(SubmitError::Invalid(format!("{field}: {why}")));
        if let Some(fault) = &self.fault {
            return Err(SubmitError::Invalid(fault.clone()));
        }
        if self.task.is_empty() || self.task.len() > MAX_NAME_BYTES || self.task.chars().any(char::is_control) {
            return bad("task", "must be 1 to 200 bytes without control characters");
        }
        if let Some(error) = self.queue.as_ref().and_then(|queue| Topology::check_queue(queue).err()) {
            return bad("queue", &error.to_string());
        }
        if self.priority > MAX_PRIORITY {
            return bad("priority", "must be 0 to 9");
        }
        if self.task_id.as_ref().is_some_and(|id| !is_task_id(id)) {
            return bad("task_id", "must be 1 to 64 of [A-Za-z0-9_-]");
        }
        if self.time_limit.is_some_and(|limit| limit.is_zero()) {
            return bad("time_limit", "must be above zero");
        }
        if self.soft_time_limit.is_some_and(|limit| limit.is_zero()) {
            return bad("soft_time_limit", "must be above zero");
        }
        let (args, kwargs) = (self.args_json(), self.kwargs_json());
        if args.get().len() + kwargs.get().len() > MAX_ARGUMENT_BYTES {
            return bad("args and kwargs", "together more than 256 KiB of JSON");
        }
        for (field, json) in [("args", args), ("kwargs", kwargs)] {
            if let Err(error) = json::check(json.get(), MAX_DEPTH) {
                return bad(field, &error.to_string());
            }
        }
        Ok(())
    }
}

fn is_task_id(id: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=64).contains(&id.len()) && id.bytes().all(fits)
}

fn fields(json: &str) -> Result<Vec<(String, Box<RawValue>)>, String> {
    let fields: std::collections::BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(json).map_err(|_| "a struct with named fields is needed".to_owned())?;
    Ok(fields.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_json_in_their_order() {
        let call = Signature::new("t").arg(1).arg("two").kwarg("b", [3]).kwarg("a\"", None::<u8>);
        assert_eq!(call.args_json().get(), r#"[1,"two"]"#);
        assert_eq!(call.kwargs_json().get(), r#"{"b":[3],"a\"":null}"#);
        call.check().unwrap();
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let unserializable = std::collections::HashMap::from([((1, 2), 3)]);
        let nested =
            |levels| serde_json::from_str::<Box<RawValue>>(&("[".repeat(levels) + &"]".repeat(levels))).unwrap();
        Signature::new("t").arg(nested(62)).check().unwrap();
        let half = "x".repeat(140_000);
        for (call, field) in [
            (Signature::new(""), "task: "),
            (Signature::new("a\nb"), "task: "),
            (Signature::new("t").queue("Not A Queue"), "queue: "),
            (Signature::new("t").priority(10), "priority: "),
            (Signature::new("t").task_id("no blanks"), "task_id: "),
            (Signature::new("t").time_limit(Duration::ZERO), "time_limit: "),
            (Signature::new("t").kwarg("map", unserializable), "kwargs: map: "),
            (Signature::new("t").arg(nested(63)), "args: "),
            (Signature::new("t").arg(&half).kwarg("y", &half), "args and kwargs: "),
        ] {
            let error = call.check().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
