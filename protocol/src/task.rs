//! A task on the wire: Celery's message protocol 2, strict JSON (DESIGN section 3, measured in celery-wire A).
//!
//! [`Task::decode`] reads tolerantly, [`TaskMessage`] writes strictly, [`forward`] turns a received message into the
//! one that follows it. Nothing here publishes, and nothing decides whether a task is retried.

use std::time::Duration;

use serde_json::value::RawValue;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::retry::RetryOptions;

mod decode;
mod emit;
mod fault;
pub mod forward;
mod headers;
#[cfg(test)]
mod properties;

pub use emit::TaskMessage;
pub use fault::{DecodeFault, Undecodable};

/// A task as a worker receives it.
#[derive(Debug, Clone, Default)]
pub struct Task {
    /// The task id: any string that is not empty, not always a UUID.
    pub id: String,
    /// The name that handlers are registered under.
    pub task: String,
    /// Positional arguments: a JSON array of which only the syntax is checked.
    pub args: Box<RawValue>,
    /// Arguments by name: a JSON object of which only the syntax is checked.
    pub kwargs: Box<RawValue>,
    /// What is to follow this task.
    pub embed: Embed,
    /// The attempt, from 0.
    pub retries: u32,
    /// Not to be run before.
    pub eta: Option<OffsetDateTime>,
    /// Not to be run after; it counts from the send, not from `eta`.
    pub expires: Option<OffsetDateTime>,
    /// The hard limit; 0 on the wire means none, as Celery has it.
    pub time_limit: Option<Duration>,
    /// The soft limit; 0 on the wire means none.
    pub soft_time_limit: Option<Duration>,
    /// The first task of the workflow.
    pub root_id: Option<String>,
    /// The task that sent this one.
    pub parent_id: Option<String>,
    /// The group, to be copied into results.
    pub group: Option<String>,
    /// The place in the group.
    pub group_index: Option<i64>,
    /// A name for display only.
    pub shadow: Option<String>,
    /// Whether nobody wants the result.
    pub ignore_result: bool,
    /// Who sent it, for display only.
    pub origin: Option<String>,
    /// 0 when the sender set none, Celery's default.
    pub priority: u8,
    /// The queue that replies go to. A stock client names one even if it wants no result and the queue does not exist.
    pub reply_to: Option<String>,
    /// What replies carry back.
    pub correlation_id: Option<String>,
    /// What its caller chose of the retry policy; a client of Celery's cannot choose.
    pub retry: RetryOptions,
    /// What remains to be waited after a delay queue; never zero.
    pub delay_left: Option<Duration>,
    /// Whether `reply_to` outlives its producer, so that replies are persistent.
    pub durable_reply: bool,
    /// Whether who reads `reply_to` takes several replies in one message.
    pub packed_replies: bool,
    /// How many times the producer has published it.
    pub publish: Option<u32>,
    /// Since when this life of it lasts, ms since 1970; none of a client of Celery's says it.
    pub since: Option<i64>,
    /// The queue that it is to run in, when it is a child for a producer to take in; no worker receives one.
    pub submit: Option<String>,
}

impl Task {
    /// The reply queue of the producer that takes in the children of this task. `None` for a task of a client of
    /// Celery's: its children are published to their queues.
    #[must_use]
    pub fn submit_to(&self) -> Option<&str> {
        self.reply_to.as_deref().filter(|_| self.durable_reply)
    }
}

/// The id of what a task sends: the same in every run of it, and another one for everything else that it sends.
#[must_use]
pub fn child_id(parent_id: &str, what: &[u8]) -> Uuid {
    Uuid::new_v5(&Uuid::new_v5(&Uuid::NAMESPACE_OID, parent_id.as_bytes()), what)
}

/// What is to follow a task: signatures, unread. `null` and `[]` are nothing.
#[derive(Debug, Clone, Default)]
pub struct Embed {
    /// To be sent on success (`link`).
    pub callbacks: Option<Box<RawValue>>,
    /// To be sent on final failure (`link_error`).
    pub errbacks: Option<Box<RawValue>>,
    /// The rest of the chain, in reverse order.
    pub chain: Option<Box<RawValue>>,
    /// What waits for the whole group. Whoever cannot count groups must fail the task, not drop this.
    pub chord: Option<Box<RawValue>>,
}

impl Embed {
    /// Whether nothing follows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.callbacks.is_none() && self.errbacks.is_none() && self.chain.is_none() && self.chord.is_none()
    }
}
