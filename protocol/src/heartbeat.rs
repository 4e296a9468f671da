//! What a worker says of itself every five seconds, and how that travels.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::message::{CONTENT_ENCODING, CONTENT_TYPE, Message, Properties};
use crate::retry::RetryPolicy;

/// How often a worker speaks.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A worker that was silent for this long counts as gone: three heartbeats, as the broker keeps them.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(15);

/// The most tasks that one heartbeat names, so that it stays well below a megabyte.
pub const MAX_RUNNING: usize = 4096;

/// One heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The worker's name, unique among the living.
    pub worker: String,
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The queues it serves, without the prefix.
    pub queues: Vec<String>,
    /// The tasks it knows.
    pub tasks: Vec<TaskType>,
    /// How many tasks it runs at once.
    pub concurrency: usize,
    /// What it has received and not settled: what runs, waits for its turn or is being reported; at most [`MAX_RUNNING`].
    pub running: Vec<RunningTask>,
    /// Whether it has more than it names.
    #[serde(default)]
    pub cut: bool,
    /// Whether it takes no more tasks and only finishes those that run.
    pub stopping: bool,
}

/// What a worker says of a task that it knows. Times are seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskType {
    /// The task's name.
    pub name: String,
    /// What it takes, by name: a JSON Schema (draft 2020-12), with the documentation in it.
    pub arguments: Value,
    /// The names that arguments by position are for, in their order; `None` when there are no such names, or when they
    /// cannot be told.
    #[serde(default)]
    pub positional: Option<Vec<String>>,
    /// Names that arguments may have besides those in the schema.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What it returns: a JSON Schema.
    pub result: Value,
    /// Where it runs: `async`, `blocking` or `isolated`.
    pub execution: String,
    /// How it is retried when its caller does not say.
    pub retry: RetryPolicy,
    /// The hard time limit when its caller names none; `None` is the worker's.
    pub time_limit: Option<f64>,
    /// The soft time limit when its caller names none.
    pub soft_time_limit: Option<f64>,
    /// At most so many at once on one worker.
    pub concurrency_limit: Option<u32>,
    /// At most so many starts a period on one worker, as Celery writes it: `10/s`, `30/m`, `5/h`.
    pub rate_limit: Option<String>,
    /// Arguments that are shown to nobody.
    pub redacted: Vec<String>,
}

/// A task that a worker runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// The task's id.
    pub task_id: String,
    /// The attempt.
    pub retries: u32,
}

impl Heartbeat {
    /// As a transient message.
    ///
    /// # Errors
    /// Never for the types here; serialising is fallible by type only.
    pub fn encode(&self) -> Result<Message, serde_json::Error> {
        let properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            content_encoding: Some(CONTENT_ENCODING.to_owned()),
            ..Properties::default()
        };
        Ok(Message { properties, body: serde_json::to_vec(self)? })
    }

    /// From a received message.
    ///
    /// # Errors
    /// The body is not a heartbeat.
    pub fn decode(message: &Message) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(&message.body)
    }
}
