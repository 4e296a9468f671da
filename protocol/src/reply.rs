//! What a worker says of a task: Celery's result message (celery-wire B) and a few keys of our own.
//!
//! Encoding is strict, since a stock client raises in its caller on what it does not expect; decoding takes what stock
//! workers send. Which report counts is decided in [`crate::state`].

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::message::ContentFault;
use crate::state::State;

mod decode;
mod encode;

/// The custom state under which [`Progress`] travels.
const PROGRESS: &str = "PROGRESS";

/// An error as clients see it (DESIGN section 5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// A bare name such as `NotRegistered`, without module.
    #[serde(rename = "type")]
    pub kind: String,
    /// Never empty.
    pub message: String,
    /// For people's eyes.
    pub traceback: Option<String>,
}

/// How far a task has come, in the handler's own units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub current: u64,
    /// Units in all, if known.
    pub total: Option<u64>,
    /// For people's eyes.
    pub message: Option<String>,
}

/// What is reported. Equality of JSON is that of its text.
#[derive(Debug, Clone)]
pub enum Report {
    /// The task runs.
    Started,
    /// The task runs and has come so far.
    Progress(Progress),
    /// The task runs, in a state of its handler's own (`update_state`).
    Custom {
        /// Any word that is not one of Celery's states.
        state: String,
        /// Whatever the handler says with it.
        meta: Box<RawValue>,
    },
    /// The attempt failed, another one follows.
    Retry {
        /// Why this one failed.
        error: ErrorInfo,
        /// When the next one is due; a stock worker does not say.
        eta: Option<OffsetDateTime>,
    },
    /// The task returned this.
    Success(Box<RawValue>),
    /// The task was given up.
    Failure(ErrorInfo),
    /// The task was revoked or had expired.
    Revoked {
        /// `revoked`, `expired` or `terminated`.
        reason: String,
    },
}

/// What a task sent, as its result names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Child {
    /// A task, by its id.
    Task(String),
    /// A group, by its id, and its members.
    Group(String, Vec<Child>),
}

/// A report and whom it is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The task.
    pub task_id: String,
    /// What is reported.
    pub report: Report,
    /// The attempt; `None` from a stock worker.
    pub retries: Option<u32>,
    /// The order among the reports of one attempt; `None` from a stock worker.
    pub seq: Option<u32>,
    /// The life of the task that it is about, as in the header [`crate::message::SINCE`]; `None` from a stock worker.
    pub since: Option<i64>,
    /// For how many milliseconds the next attempt's message waits at the broker, from when this was said: no worker's
    /// clock decides where a task must be.
    pub held_ms: Option<u64>,
    /// Who ran it.
    pub worker: Option<String>,
    /// When this attempt began, in milliseconds.
    pub started_at: Option<OffsetDateTime>,
    /// When the task ended, in milliseconds.
    pub date_done: Option<OffsetDateTime>,
    /// The task's group.
    pub group_id: Option<String>,
    /// The task that sent it; of a retried task itself, as Celery has it.
    pub parent_id: Option<String>,
    /// What it sent. Written for clients and not read: whoever keeps children has them from their own messages.
    pub children: Vec<Child>,
}

/// Why a message is no reply. Its correlation id may still tell which task it is about: Python workers can send `NaN`
/// as a result, which is not JSON.
#[derive(Debug, thiserror::Error)]
pub enum ReplyFault {
    /// No JSON, or not to be inflated.
    #[error(transparent)]
    Content(#[from] ContentFault),
    /// Not JSON, or without `status` or `task_id`.
    #[error("the body is not a reply: {0}")]
    Body(#[source] serde_json::Error),
}

impl ErrorInfo {
    /// An error without a traceback.
    #[must_use]
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), message: message.into(), traceback: None }
    }
}

impl Report {
    /// The state that the report puts a task in; a running task's own states count as [`State::Started`].
    #[must_use]
    pub const fn state(&self) -> State {
        match self {
            Self::Started | Self::Progress(_) | Self::Custom { .. } => State::Started,
            Self::Retry { .. } => State::Retry,
            Self::Success(_) => State::Success,
            Self::Failure(_) => State::Failure,
            Self::Revoked { .. } => State::Revoked,
        }
    }
}

impl Reply {
    /// A report and nothing else, as a stock worker's: neither attempt nor order, worker nor times.
    #[must_use]
    pub fn of(task_id: impl Into<String>, report: Report) -> Self {
        Self {
            task_id: task_id.into(),
            report,
            retries: None,
            seq: None,
            since: None,
            held_ms: None,
            worker: None,
            started_at: None,
            date_done: None,
            group_id: None,
            parent_id: None,
            children: Vec::new(),
        }
    }
}

impl PartialEq for Report {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Started, Self::Started) => true,
            (Self::Progress(a), Self::Progress(b)) => a == b,
            (Self::Custom { state: a, meta: x }, Self::Custom { state: b, meta: y }) => a == b && x.get() == y.get(),
            (Self::Retry { error: a, eta: x }, Self::Retry { error: b, eta: y }) => a == b && x == y,
            (Self::Success(a), Self::Success(b)) => a.get() == b.get(),
            (Self::Failure(a), Self::Failure(b)) => a == b,
            (Self::Revoked { reason: a }, Self::Revoked { reason: b }) => a == b,
            _ => false,
        }
    }
}

/// What an error of no type is called: the base of Python's.
const NAMELESS: &str = "Exception";

/// The bare name of an error type: what follows the last `.` or `::` of its path.
fn bare_name(path: &str) -> &str {
    let name = path.rsplit(['.', ':']).next().unwrap_or_default().trim();
    if name.is_empty() { NAMELESS } else { name }
}

/// `message`, or what stands for it when it says nothing.
fn never_empty(message: String, instead: &str) -> String {
    if message.trim().is_empty() { instead.to_owned() } else { message }
}
