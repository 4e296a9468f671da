//! What the fields of a task may be, whoever submits it: a client over HTTP or a running task. Pure; a refusal says what
//! the field must be, and its caller names the field.

use std::time::Duration;

use protocol::json::{self, JsonFault};
use protocol::message::truncate;
use protocol::retry::RetryOptions;
use serde_json::value::RawValue;

use crate::callbacks::receivers::Receivers;

/// The largest submit over HTTP, and the most bytes of JSON that the arguments of a child have together.
pub const MAX_BYTES: usize = 256 * 1024;
/// The deepest nesting of a whole submit or task message, in which every field lies one level down.
const MAX_DEPTH: usize = 64;
/// The longest name of a task.
pub const MAX_TASK_BYTES: usize = 200;
const MAX_TASK_ID_BYTES: usize = 64;
/// The highest priority.
pub const MAX_PRIORITY: u8 = 9;
/// The most retries that may be asked for.
pub const MAX_RETRIES: u32 = 1_000;
/// Thirty days: the longest wait between attempts.
pub const MAX_BACKOFF_S: f64 = 30.0 * 24.0 * 3600.0;
/// Ten years, the longest that RabbitMQ takes for a time to live.
pub const MAX_SECONDS: f64 = 315_360_000.0;
/// The shortest time in seconds that counts as one.
pub const LEAST_SECONDS: f64 = 0.001;
/// The longest name of a queue that is ever shown.
pub const MAX_QUEUE_BYTES: usize = 64;

/// What this producer accepts.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// `QUEUES`.
    pub queues: Vec<String>,
    /// The longest time limit.
    pub max_time_limit: Duration,
    /// Who may be called back.
    pub receivers: Receivers,
}

impl Limits {
    /// Whether it is one of `QUEUES`.
    pub fn queue(&self, queue: &str) -> Result<(), String> {
        if self.queues.iter().any(|accepted| accepted == queue) {
            return Ok(());
        }
        let queue = truncate(queue, MAX_QUEUE_BYTES);
        Err(format!("{queue:?} is none of this producer's QUEUES: {}", self.queues.join(", ")))
    }

    /// Seconds of a time limit.
    pub fn time_limit(&self, limit: Option<f64>) -> Result<f64, String> {
        let limit = seconds(limit, LEAST_SECONDS)?;
        let longest = self.max_time_limit.as_secs_f64();
        if limit > longest { Err(format!("is above the longest that is allowed, {longest} s")) } else { Ok(limit) }
    }
}

/// A task's name.
pub fn task_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_TASK_BYTES {
        return Err(format!("must be 1 to {MAX_TASK_BYTES} bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err("must not contain control characters".to_owned());
    }
    Ok(())
}

/// A task's id: it is part of a path.
pub fn task_id(id: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if id.is_empty() || id.len() > MAX_TASK_ID_BYTES || !id.bytes().all(fits) {
        return Err(format!("must be 1 to {MAX_TASK_ID_BYTES} of A-Z, a-z, 0-9, _ and -"));
    }
    Ok(())
}

/// JSON that is passed on unread and must be readable by those who receive it.
pub fn json(json: &str) -> Result<(), String> {
    json::check(json, MAX_DEPTH - 1).map_err(|fault| match fault {
        JsonFault::TooDeep { .. } => format!("nests deeper than {MAX_DEPTH} levels"),
        JsonFault::Invalid(error) => error.to_string(),
    })
}

/// The positional arguments of a task that names none.
pub fn no_args() -> Box<RawValue> {
    RawValue::from_string("[]".to_owned()).unwrap_or_default()
}

/// The arguments by name of a task that names none.
pub fn no_kwargs() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_default()
}

/// A priority; `None` is no integer.
pub fn priority(priority: Option<u64>) -> Result<u8, String> {
    let fits = priority.and_then(|priority| u8::try_from(priority).ok()).filter(|priority| *priority <= MAX_PRIORITY);
    fits.ok_or_else(|| format!("must be an integer from 0 to {MAX_PRIORITY}"))
}

/// A number of seconds, `least` to ten years; `None` is no number.
pub fn seconds(seconds: Option<f64>, least: f64) -> Result<f64, String> {
    let fits = seconds.filter(|seconds| (least..=MAX_SECONDS).contains(seconds));
    fits.ok_or_else(|| format!("must be a number of seconds from {least} to {MAX_SECONDS}"))
}

/// A soft time limit beside a hard one.
pub fn soft_time_limit(hard: Option<f64>, soft: Option<f64>) -> Result<(), String> {
    let is_above = hard.zip(soft).is_some_and(|(hard, soft)| soft > hard);
    if is_above { Err("is above time_limit".to_owned()) } else { Ok(()) }
}

/// What was chosen of a retry policy.
pub fn retry(chosen: &RetryOptions) -> Result<(), String> {
    if chosen.max_retries.is_some_and(|most| most > MAX_RETRIES) {
        return Err(format!("max_retries must be at most {MAX_RETRIES}"));
    }
    for (name, value) in [("backoff", chosen.backoff), ("backoff_max", chosen.backoff_max)] {
        if value.is_some_and(|value| !(0.0..=MAX_BACKOFF_S).contains(&value)) {
            return Err(format!("{name} must be 0 to {MAX_BACKOFF_S} s"));
        }
    }
    Ok(())
}
