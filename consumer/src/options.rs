//! What a task says of itself beside its handler: where it runs, its limits, its retries.
//!
//! All of it is constant, and what contradicts itself does not compile.

use std::num::NonZeroU32;
use std::time::Duration;

use protocol::retry::RetryPolicy;
use serde::{Deserialize, Serialize};

/// A task's defaults. What the caller of a task says wins over retries and time limits here, and these win over the
/// worker's settings.
///
/// ```
/// # use std::time::Duration;
/// # use consumer::options::{RateLimit, TaskOptions};
/// const OPTIONS: TaskOptions = TaskOptions::new()
///     .time_limit(Duration::from_secs(60))
///     .soft_time_limit(Duration::from_secs(50))
///     .rate_limit(RateLimit::per_minute(30))
///     .concurrency_limit(4)
///     .redact(&["card_number"]);
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct TaskOptions {
    pub(crate) execution: Execution,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) soft_time_limit: Option<Duration>,
    pub(crate) concurrency_limit: Option<NonZeroU32>,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) redacted: &'static [&'static str],
}

/// Where a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Execution {
    /// Among the others on a few threads: it must come to an `await` every few milliseconds.
    #[default]
    Async,
    /// On a thread of its own, of which the worker has `BLOCKING_THREADS`.
    Blocking,
    /// In a process of its own, of which the worker has `CHILD_PROCESSES`.
    Isolated(ResourceLimits),
}

/// What an isolated handler's process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// Bytes of private writable memory of each process (`RLIMIT_DATA`).
    pub memory: u64,
    /// CPU time of each process (`RLIMIT_CPU`), in whole seconds.
    pub cpu: Duration,
}

/// At most so many starts of a task within any period of that length, per worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Starts.
    pub starts: NonZeroU32,
    /// The period, which may begin at any time.
    pub per: Duration,
}

impl RateLimit {
    /// So many within any second. Above zero, or it does not compile.
    #[must_use]
    pub const fn per_second(starts: u32) -> Self {
        Self::per(starts, Duration::from_secs(1))
    }

    /// So many within any minute.
    #[must_use]
    pub const fn per_minute(starts: u32) -> Self {
        Self::per(starts, Duration::from_mins(1))
    }

    /// So many within any hour.
    #[must_use]
    pub const fn per_hour(starts: u32) -> Self {
        Self::per(starts, Duration::from_hours(1))
    }

    const fn per(starts: u32, per: Duration) -> Self {
        Self { starts: above_zero(starts), per }
    }
}

const fn above_zero(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => panic_at_compile_time(),
    }
}

#[expect(clippy::panic, reason = "it is met while constants are evaluated, and then the crate does not compile")]
const fn panic_at_compile_time() -> ! {
    panic!("a limit of zero would never let the task run")
}

impl TaskOptions {
    /// An async task without limits of its own.
    pub const fn new() -> Self {
        Self {
            execution: Execution::Async,
            retry: None,
            time_limit: None,
            soft_time_limit: None,
            concurrency_limit: None,
            rate_limit: None,
            redacted: &[],
        }
    }

    /// The handler may block its thread: it computes, or calls what is not async. It must look at
    /// [`is_cancelled`](crate::context::Context::is_cancelled) from time to time; a thread that ignores its time limit
    /// is lost until the worker restarts.
    pub const fn blocking(mut self) -> Self {
        self.execution = Execution::Blocking;
        self
    }

    /// The handler runs in a process of its own within these limits, which is killed with its whole group at the hard
    /// time limit. For what may crash, or is fed by strangers.
    pub const fn isolated(mut self, limits: ResourceLimits) -> Self {
        self.execution = Execution::Isolated(limits);
        self
    }

    /// How failed attempts are retried, field by field unless the caller says otherwise.
    pub const fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// The hard limit of one attempt: the run is ended then, and the task has failed.
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// When the run is asked to end.
    pub const fn soft_time_limit(mut self, limit: Duration) -> Self {
        self.soft_time_limit = Some(limit);
        self
    }

    /// At most so many at once on one worker. Above zero, or it does not compile.
    pub const fn concurrency_limit(mut self, limit: u32) -> Self {
        self.concurrency_limit = Some(above_zero(limit));
        self
    }

    /// At most so many starts within a period on one worker.
    pub const fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.rate_limit = Some(limit);
        self
    }

    /// Arguments that are shown to nobody: their values are in no error message and in no header of a message.
    pub const fn redact(mut self, arguments: &'static [&'static str]) -> Self {
        self.redacted = arguments;
        self
    }
}

impl std::fmt::Display for RateLimit {
    /// As Celery writes it: `10/s`, `30/m`, `5/h`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_written_as_celery_does() {
        let rates = [RateLimit::per_second(10), RateLimit::per_minute(30), RateLimit::per_hour(5)];
        assert_eq!(rates.map(|rate| rate.to_string()), ["10/s", "30/m", "5/h"]);
    }
}
