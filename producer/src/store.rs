//! The store: what a 202 promises is here, on disk. It owns the rows and the order of reports about them.
//!
//! This module holds the nouns; SQL stands in the backend below it and nowhere else. Nothing here knows of HTTP or of
//! the broker.

mod api_keys;
mod attempts;
mod batch;
mod bulk;
mod callbacks;
mod children;
mod column;
mod control;
mod dead_letters;
mod depth;
mod forget;
mod insert;
mod keys;
mod list;
mod lost;
mod open;
mod quota;
mod read;
mod reconcile;
mod relay;
mod replay;
mod reports;
mod reserve;
mod revoke;
mod secrets;
mod stats;
mod task_types;
#[cfg(test)]
pub(crate) mod tests;
mod time;
mod wake;
mod watch;
mod write;
mod writer;

use protocol::reply::{ErrorInfo, Reply};
use protocol::retry::RetryOptions;
use protocol::state::State;
use serde_json::value::RawValue;

pub use api_keys::{ApiKey, KeyLimits, Keybook};
pub use attempts::{Attempt, Provenance};
pub use batch::Atomicity;
pub use callbacks::{Callback, CallbackStanding, DueCallback};
pub use dead_letters::{LetterFilter, LetterPlace};
pub use depth::MAX_AHEAD;
pub use forget::Forgotten;
pub use keys::{Accepted, IdempotencyKey};
pub use list::Filter;
pub use open::{OpenError, Store};
pub use quota::Excess;
pub use reconcile::{Held, Unheard};
pub use replay::{Bulk, Edit, Pace, Replay, Replayed, Route};
pub use revoke::Revocation;
pub use secrets::{Secret, secret_at};
pub use stats::Counts;
pub use task_types::KeptType;
pub use time::Silence;
pub use wake::Wake;
pub use watch::{TooManyWatchers, Watch};

/// Milliseconds since 1970, UTC.
pub type UnixMs = i64;

/// How often the broker may give a task back as lost; at this count it is given up.
pub const MAX_LOST: u32 = 3;

/// A task as accepted.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Its id, the client's or a UUIDv7.
    pub id: String,
    /// The name of the handler.
    pub task: String,
    /// The queue, without the prefix.
    pub queue: String,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// A JSON array.
    pub args: Box<RawValue>,
    /// A JSON object.
    pub kwargs: Box<RawValue>,
    /// What its caller chose of how failed attempts are retried.
    pub retry: RetryOptions,
    /// Seconds.
    pub time_limit: Option<f64>,
    /// Seconds.
    pub soft_time_limit: Option<f64>,
    /// When it was accepted.
    pub created_at: UnixMs,
    /// Not before.
    pub eta: Option<UnixMs>,
    /// Not after.
    pub expires: Option<UnixMs>,
    /// Whose child it is; `None` for a task that came over HTTP.
    pub parent: Option<Parent>,
    /// Where its end is posted.
    pub callback: Option<Callback>,
    /// The API key that it is counted for, and that sees it; a child has its parent's. `None` without keys.
    pub owner: Option<String>,
}

/// Whose tasks are meant: all others are as good as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Whose {
    /// Everybody's.
    #[default]
    Anybody,
    /// Those of an API key.
    Of(std::sync::Arc<str>),
}

impl Whose {
    /// The owner, as a parameter of statements: `(?n IS NULL OR owner = ?n)`.
    fn owner(&self) -> Option<&str> {
        match self {
            Self::Anybody => None,
            Self::Of(owner) => Some(owner),
        }
    }

    /// Whether a task is among them.
    fn includes(&self, task: &NewTask) -> bool {
        self.owner().is_none_or(|owner| task.owner.as_deref() == Some(owner))
    }
}

/// Whose child a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The task that submitted it.
    pub id: String,
    /// The first task of the family.
    pub root_id: String,
}

/// A task that a running one submitted, as it was received.
#[derive(Debug, Clone)]
pub struct Child {
    /// The task; its `parent` and `owner` are filled in from the parent's row.
    pub task: NewTask,
    /// The task that submitted it, by its own account.
    pub parent_id: String,
    /// Why it cannot be accepted: it is FAILURE at once.
    pub fault: Option<ErrorInfo>,
}

impl NewTask {
    /// When the relay may publish it: at once when its `eta` has passed.
    #[must_use]
    pub fn due_at(&self) -> UnixMs {
        self.eta.unwrap_or(self.created_at).max(self.created_at)
    }

    /// Whether it is not due yet when accepted.
    #[must_use]
    pub fn is_scheduled(&self) -> bool {
        self.due_at() > self.created_at
    }
}

/// Where a task is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not due yet.
    Scheduled,
    /// Due, for the relay to publish.
    Waiting,
    /// At the broker, or running.
    Queued,
    /// At the broker, waiting for its next attempt.
    Retrying,
    /// Ended.
    Done,
}

impl Stage {
    /// The word in the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Retrying => "retrying",
            Self::Done => "done",
        }
    }

    fn from_name(name: &str) -> Self {
        let all = [Self::Scheduled, Self::Waiting, Self::Queued, Self::Retrying];
        all.into_iter().find(|stage| stage.name() == name).unwrap_or(Self::Done)
    }
}

/// A task as it stands.
#[derive(Debug, Clone)]
pub struct TaskRow {
    /// What was accepted.
    pub accepted: NewTask,
    /// Where it is.
    pub stage: Stage,
    /// When the relay may publish it.
    pub due_at: UnixMs,
    /// How often the broker lost it.
    pub lost: u32,
    /// Its state.
    pub state: State,
    /// The attempt that was reported last.
    pub retries: u32,
    /// The order among the reports of one attempt and state.
    pub report_seq: u32,
    /// The worker that reported last.
    pub worker: Option<String>,
    /// JSON of a [`protocol::reply::Progress`], or what a worker reports in a state of its own.
    pub progress: Option<Box<RawValue>>,
    /// The handler's result, JSON.
    pub result: Option<Box<RawValue>>,
    /// JSON of a [`protocol::reply::ErrorInfo`].
    pub error: Option<Box<RawValue>>,
    /// When its revocation was first asked for.
    pub revoked_at: Option<UnixMs>,
    /// When the next attempt is due.
    pub retry_at: Option<UnixMs>,
    /// When the latest attempt started.
    pub started_at: Option<UnixMs>,
    /// When it ended.
    pub finished_at: Option<UnixMs>,
    /// What became of its callback, once that was tried.
    pub callback: Option<CallbackStanding>,
    /// How many of its queue come before it, where it stands in line and was read.
    pub ahead: Option<u32>,
}

impl From<NewTask> for TaskRow {
    /// As it stands right after it was accepted.
    fn from(accepted: NewTask) -> Self {
        Self {
            stage: if accepted.is_scheduled() { Stage::Scheduled } else { Stage::Waiting },
            due_at: accepted.due_at(),
            accepted,
            lost: 0,
            state: State::Pending,
            retries: 0,
            report_seq: 0,
            worker: None,
            progress: None,
            result: None,
            error: None,
            revoked_at: None,
            retry_at: None,
            started_at: None,
            finished_at: None,
            callback: None,
            ahead: None,
        }
    }
}

/// A waiting task as the relay publishes it.
#[derive(Debug, Clone)]
pub struct DueTask {
    /// The task's id.
    pub id: String,
    /// The name of the handler.
    pub task: String,
    /// 0 to 9.
    pub priority: u8,
    /// A JSON array.
    pub args: Box<RawValue>,
    /// A JSON object.
    pub kwargs: Box<RawValue>,
    /// What its caller chose of how failed attempts are retried.
    pub retry: RetryOptions,
    /// Seconds.
    pub time_limit: Option<f64>,
    /// Seconds.
    pub soft_time_limit: Option<f64>,
    /// Not after.
    pub expires: Option<UnixMs>,
    /// Whose child it is.
    pub parent: Option<Parent>,
    /// The attempt to publish: the next one when the last was to be retried.
    pub retries: u32,
    /// Which publish of this task this is, from 1.
    pub publish: u32,
    /// When it was accepted, or replayed for the last time.
    pub since: UnixMs,
}

/// What a relay has in its hands.
#[derive(Debug)]
pub struct Taken {
    /// In the order in which they are to be published.
    pub tasks: Vec<DueTask>,
    /// Whether no more waited when these were read.
    pub is_all: bool,
}

/// A task that the broker confirmed, and which of its publishes that was.
#[derive(Debug, Clone)]
pub struct Published(pub String, pub u32);

/// Who has what was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedTo {
    /// Perhaps nobody: the broker did not confirm it.
    Nobody,
    /// Our workers' queue, since then.
    Workers(UnixMs),
    /// A queue of stock Celery workers, since then: what they never report ends by the clock.
    Celery(UnixMs),
}

/// A report about a task with the time to record where the report has none of its own.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// What was reported.
    pub reply: Reply,
    /// When it was received.
    pub at: UnixMs,
    /// Whether the broker may have delivered it before.
    pub redelivered: bool,
}

impl Recorded {
    /// Of this store's own making, at this time.
    fn now(reply: Reply, at: UnixMs) -> Self {
        Self { reply, at, redelivered: false }
    }
}

/// What a batch from the reply queue changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// Children that became rows.
    pub children: u64,
    /// Reports that counted.
    pub reports: u64,
    /// The places among the children of those whose parent is no row of this store: nothing was made of them.
    pub orphans: Vec<usize>,
}

/// What became of a task that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is a row.
    Stored,
    /// Its id was taken.
    Taken,
    /// Its key may not have as much.
    Beyond(Excess),
}

impl Placed {
    fn verdict(self) -> Result<(), StoreError> {
        match self {
            Self::Stored => Ok(()),
            Self::Taken => Err(StoreError::Taken),
            Self::Beyond(excess) => Err(StoreError::Beyond(excess)),
        }
    }
}

/// Why the store did not do it. Nothing was written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A task with that id exists.
    #[error("the task id is taken")]
    Taken,
    /// The key may not have as much.
    #[error("a limit of the API key is reached")]
    Beyond(Excess),
    /// Something else was submitted under that idempotency key.
    #[error("the idempotency key was used for another submit")]
    KeyReused,
    /// The database failed: disk full, read-only, corrupt.
    #[error("the store failed: {0}")]
    Database(std::sync::Arc<sqlx::Error>),
    /// The disk is full, and what is kept free is for what has been accepted.
    #[error("the store's disk is full")]
    Full,
    /// The disk did not answer in time.
    #[error("the store did not answer in time")]
    Slow,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(std::sync::Arc::new(error))
    }
}
