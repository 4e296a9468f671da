//! What producers tell all workers, and what a worker asks before it consumes.
//!
//! Producers speak on the exchange `control`. A worker asks on `workers`, and each producer answers straight to its
//! control queue: its revoked tasks, the state of its queues, and then [`Control::Answered`] with the question's
//! correlation id. Nothing here is confirmed or kept: whoever was away asks again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::{CONTENT_ENCODING, CONTENT_TYPE, Message, Properties};

/// How long a worker waits for the first answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often a producer tells all of it again.
pub const TELL_INTERVAL: Duration = Duration::from_hours(1);
/// How long a worker keeps what it was told and hears nothing more of: three times [`TELL_INTERVAL`].
pub const TOLD_TTL: Duration = Duration::from_hours(3);

/// The most ids in one message.
pub const MAX_IDS: usize = 1_000;
/// The longest id, reason or name, bytes.
pub const MAX_TEXT_BYTES: usize = 255;
/// A larger message is none of these.
pub const MAX_BYTES: usize = 1024 * 1024;

/// The reason of a task that was revoked by its id.
pub const REVOKED: &str = "revoked";
/// The reason of a task that went with its queue's purge.
pub const PURGED: &str = "purged";

const VERSION: u8 = 1;

/// A message between producers and workers beside the tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// These tasks are not to be run, and are to be ended where they run.
    Revoke {
        /// At most [`MAX_IDS`].
        task_ids: Vec<String>,
        /// When each was revoked, ms since 1970, in the same order: a life that began later is another ([`SINCE`]). One
        /// without is revoked whenever it began.
        ///
        /// [`SINCE`]: crate::message::SINCE
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        at: Vec<i64>,
        /// What the tasks' REVOKED says.
        #[serde(default = "revoked")]
        reason: String,
    },
    /// The queue is not to be consumed.
    Pause {
        /// Without the prefix.
        queue: String,
        /// The store that it is paused in. A queue is consumed when no store pauses it.
        by: String,
    },
    /// As far as this store is concerned, the queue is to be consumed.
    Resume {
        /// Without the prefix.
        queue: String,
        /// The store.
        by: String,
    },
    /// A worker asks, with its control queue as `reply_to`.
    Ask {
        /// Its name.
        worker: String,
    },
    /// A producer has answered a question in full; to all workers it says with this what time it is.
    Answered {
        /// Its store.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// What its clock shows, ms since 1970: by it the store's etas and expiries are meant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        now: Option<i64>,
    },
}

fn revoked() -> String {
    REVOKED.to_owned()
}

/// Why a message is none of these.
#[derive(Debug, thiserror::Error)]
pub enum BadControl {
    /// Above [`MAX_BYTES`].
    #[error("a control message of {0} bytes")]
    TooLarge(usize),
    /// Not JSON, another type, or a field of the wrong type.
    #[error("no control message: {0}")]
    Json(#[from] serde_json::Error),
    /// Above [`MAX_IDS`].
    #[error("task_ids: {0}, there may be {MAX_IDS}")]
    TooMany(usize),
    /// More times than tasks.
    #[error("at: {0} times")]
    Times(usize),
    /// Above [`MAX_TEXT_BYTES`].
    #[error("{0}: is empty or longer than {MAX_TEXT_BYTES} bytes")]
    Text(&'static str),
}

#[derive(Serialize)]
struct Versioned<'a> {
    version: u8,
    #[serde(flatten)]
    control: &'a Control,
}

impl Control {
    /// As a transient message.
    ///
    /// # Errors
    /// It is beyond a bound.
    pub fn encode(&self) -> Result<Message, BadControl> {
        self.check()?;
        let properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            content_encoding: Some(CONTENT_ENCODING.to_owned()),
            ..Properties::default()
        };
        let body = serde_json::to_vec(&Versioned { version: VERSION, control: self })?;
        Ok(Message { properties, body })
    }

    /// From a received message. Fields that are not known are passed over, so that a later version may add some.
    ///
    /// # Errors
    /// It is none of these, or beyond a bound.
    pub fn decode(message: &Message) -> Result<Self, BadControl> {
        if message.body.len() > MAX_BYTES {
            return Err(BadControl::TooLarge(message.body.len()));
        }
        let control: Self = serde_json::from_slice(&message.body)?;
        control.check().map(|()| control)
    }

    fn check(&self) -> Result<(), BadControl> {
        match self {
            Self::Revoke { task_ids, .. } if task_ids.len() > MAX_IDS => Err(BadControl::TooMany(task_ids.len())),
            Self::Revoke { task_ids, at, .. } if at.len() > task_ids.len() => Err(BadControl::Times(at.len())),
            Self::Revoke { task_ids, reason, .. } => {
                task_ids.iter().try_for_each(|id| text("task_ids", id))?;
                text("reason", reason)
            }
            Self::Pause { queue, by } | Self::Resume { queue, by } => {
                text("queue", queue)?;
                text("by", by)
            }
            Self::Ask { worker } => text("worker", worker),
            Self::Answered { by, .. } => by.as_deref().map_or(Ok(()), |by| text("by", by)),
        }
    }
}

fn text(field: &'static str, text: &str) -> Result<(), BadControl> {
    if text.is_empty() || text.len() > MAX_TEXT_BYTES { Err(BadControl::Text(field)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn of(body: &Value) -> Result<Control, BadControl> {
        Control::decode(&Message { body: body.to_string().into_bytes(), ..Message::default() })
    }

    #[test]
    fn the_wire_is_what_older_and_newer_processes_read() {
        let pause = Control::Pause { queue: "default".to_owned(), by: "s".to_owned() };
        let body: Value = serde_json::from_slice(&pause.encode().unwrap().body).unwrap();
        assert_eq!(body, json!({"version": 1, "type": "pause", "queue": "default", "by": "s"}));
        let newer = json!({"version": 2, "type": "revoke", "task_ids": ["a"], "signal": "KILL"});
        let revoke = Control::Revoke { task_ids: vec!["a".to_owned()], at: vec![], reason: REVOKED.to_owned() };
        assert_eq!(of(&newer).unwrap(), revoke);
        assert_eq!(of(&json!({"type": "answered", "more": 1})).unwrap(), Control::Answered { by: None, now: None });
    }

    #[test]
    fn what_is_beyond_a_bound_is_neither_sent_nor_read() {
        let ids = |count: usize| Control::Revoke {
            task_ids: vec!["x".repeat(64); count],
            at: vec![i64::MAX; count],
            reason: revoked(),
        };
        let full = ids(MAX_IDS).encode().unwrap();
        assert!(full.body.len() < MAX_BYTES && Control::decode(&full).is_ok());
        assert!(matches!(ids(MAX_IDS + 1).encode(), Err(BadControl::TooMany(_))));
        for bad in [
            json!({"type": "revoke", "task_ids": vec!["x"; MAX_IDS + 1]}),
            json!({"type": "revoke", "task_ids": ["x".repeat(256)]}),
            json!({"type": "revoke", "task_ids": [""]}),
            json!({"type": "revoke", "task_ids": ["a"], "at": [1, 2]}),
            json!({"type": "revoke", "task_ids": "a"}),
            json!({"type": "pause", "queue": "q"}),
            json!({"type": "answered", "by": ""}),
            json!({"type": "shutdown"}),
            json!({"worker": "a heartbeat"}),
            json!([]),
        ] {
            assert!(of(&bad).is_err(), "{bad}");
        }
        let large = Message { body: vec![b' '; MAX_BYTES + 1], ..Message::default() };
        assert!(matches!(Control::decode(&large), Err(BadControl::TooLarge(_))));
    }

    fn any_control() -> impl Strategy<Value = Control> {
        let name = || "[a-z0-9_.@-]{1,80}";
        prop_oneof![
            (prop::collection::vec(".{1,20}", 0..20), name()).prop_map(|(task_ids, reason)| Control::Revoke {
                at: vec![7; task_ids.len() / 2],
                task_ids,
                reason
            }),
            (name(), name()).prop_map(|(queue, by)| Control::Pause { queue, by }),
            (name(), name()).prop_map(|(queue, by)| Control::Resume { queue, by }),
            name().prop_map(|worker| Control::Ask { worker }),
            (prop::option::of(name()), any::<Option<i64>>()).prop_map(|(by, now)| Control::Answered { by, now }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read(control in any_control()) {
            prop_assert_eq!(Control::decode(&control.encode().unwrap()).unwrap(), control);
        }

        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Control::decode(&Message { body, ..Message::default() });
        }
    }
}
