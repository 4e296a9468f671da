//! What a worker says of itself every five seconds, and how that travels.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::{CONTENT_ENCODING, CONTENT_TYPE, Message, Properties};

/// How often a worker speaks.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A worker that was silent for this long counts as gone: three heartbeats, as the broker keeps them.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(15);

/// The most running tasks that one heartbeat names.
pub const MAX_RUNNING: usize = 1000;

/// One heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    pub tasks: Vec<String>,
    /// How many tasks it runs at once.
    pub concurrency: usize,
    /// What runs just now, at most [`MAX_RUNNING`].
    pub running: Vec<RunningTask>,
    /// Whether it takes no more tasks and only finishes those that run.
    pub stopping: bool,
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
