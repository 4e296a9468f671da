//! What tells a producer where its tasks are: tracers, which go through a task queue and come back over the reply queue,
//! and notes of what waits at the broker.
//!
//! A queue is first in, first out. So once a tracer is back, whatever lay in its queue before it has been handed to a
//! worker. Quorum queues of RabbitMQ 4 have lanes by priority, and a pair of the lowest and the highest goes through all.

use std::time::Duration;

use serde_json::Value;

use crate::message::{HELD_MS, Headers, Message, Properties, TRACE, TRACED};

/// The priorities of the two tracers of a round.
pub const PRIORITIES: [u8; 2] = [0, 9];

/// A longer mark is none: a worker copies it unread.
const MAX_MARK_BYTES: usize = 255;
/// No task is held for longer: the sum of all delay levels.
const MAX_HELD: Duration = Duration::from_secs(1 << 20);

/// One tracer, as its mark names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracer {
    /// The process that sent it: an earlier one's are of no use.
    pub process: String,
    /// The queue that it goes through, without the prefix.
    pub queue: String,
    /// Which of that queue's rounds.
    pub round: u64,
    /// Which of the round's pair.
    pub priority: u8,
}

/// What a message in a reply queue says of the way of messages; anything else there is of a task's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A worker has met the tracer.
    Traced(Tracer),
    /// The task waits at the broker, in no task queue and in nobody's hands.
    Held {
        /// The task.
        task_id: String,
        /// For how long from when this was said.
        wait: Duration,
    },
    /// A tracer that the broker gave up, or a mark that cannot be read: nothing follows from it.
    Nothing,
}

impl Tracer {
    /// The message, for the task queue. It is persistent as all there are; nothing depends on it.
    #[must_use]
    pub fn message(&self, reply_to: &str) -> Message {
        let Self { process, queue, round, priority } = self;
        let mark = format!("{process}/{queue}/{round}/{priority}");
        let mut message = of(TRACE, mark.into());
        message.properties.priority = Some(self.priority);
        message.properties.reply_to = Some(reply_to.to_owned());
        message
    }

    fn parse(mark: &str) -> Option<Self> {
        let mut parts = mark.split('/');
        let (process, queue) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let (round, priority) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { process, queue, round, priority })
    }
}

/// Whether a message in a task queue is a tracer, which is no task.
#[must_use]
pub fn is_tracer(message: &Message) -> bool {
    message.properties.headers.contains_key(TRACE)
}

/// A worker's answer to a tracer and the queue that it goes to; `None` when there is nobody to answer.
#[must_use]
pub fn answer(tracer: &Message) -> Option<(String, Message)> {
    let mark = tracer.properties.headers.get(TRACE)?;
    let fits = mark.as_str().is_some_and(|mark| mark.len() <= MAX_MARK_BYTES);
    let reply_to = tracer.properties.reply_to.clone().filter(|_| fits)?;
    Some((reply_to, of(TRACED, mark.clone())))
}

/// A worker's note of a task that it sends back to wait at the broker, for the reply queue of the task's producer.
#[must_use]
pub fn held(task_id: &str, wait: Duration) -> Message {
    let mut message = of(HELD_MS, milliseconds(wait).into());
    message.properties.correlation_id = Some(task_id.to_owned());
    message
}

/// A wait as it travels.
#[must_use]
pub fn milliseconds(wait: Duration) -> u64 {
    u64::try_from(wait.min(MAX_HELD).as_millis()).unwrap_or(u64::MAX)
}

/// A wait as it was received, within what there is.
#[must_use]
pub fn wait(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds).min(MAX_HELD)
}

impl Said {
    /// Reads it; `None` for a message that is about something else.
    #[must_use]
    pub fn read(message: &Message) -> Option<Self> {
        let Properties { headers, correlation_id, .. } = &message.properties;
        if let Some(mark) = headers.get(TRACED) {
            return Some(mark.as_str().and_then(Tracer::parse).map_or(Self::Nothing, Self::Traced));
        }
        if let Some(held) = headers.get(HELD_MS) {
            let note = held.as_u64().zip(correlation_id.clone());
            let said = note.map(|(held, task_id)| Self::Held { task_id, wait: wait(held) });
            return Some(said.unwrap_or(Self::Nothing));
        }
        is_tracer(message).then_some(Self::Nothing)
    }
}

/// A message that is all in one header.
fn of(header: &str, value: Value) -> Message {
    let headers = Headers::from_iter([(header.to_owned(), value)]);
    let properties = Properties { headers, persistent: true, priority: Some(0), ..Properties::default() };
    Message { properties, body: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn said(headers: &Value) -> Option<Said> {
        let headers = headers.as_object().unwrap().clone();
        let properties = Properties { headers, correlation_id: Some("t".to_owned()), ..Properties::default() };
        Said::read(&Message { properties, body: Vec::new() })
    }

    #[test]
    fn a_tracer_that_is_answered_is_known_again() {
        let tracer = Tracer { process: "p".to_owned(), queue: "a-b_c".to_owned(), round: 7, priority: 9 };
        let message = tracer.message("errand.results.x");
        assert!(is_tracer(&message) && message.properties.priority == Some(9));
        assert_eq!(Said::read(&message), Some(Said::Nothing), "one that comes back is no answer");
        let (reply_to, answer) = answer(&message).unwrap();
        // The lane of all replies: it must not overtake them.
        assert_eq!((reply_to.as_str(), answer.properties.priority), ("errand.results.x", Some(0)));
        assert_eq!(Said::read(&answer), Some(Said::Traced(tracer)));
    }

    #[test]
    fn a_note_says_for_how_long_within_what_there_is() {
        let read = |wait| Said::read(&held("t", wait)).unwrap();
        let of = |wait| Said::Held { task_id: "t".to_owned(), wait };
        assert_eq!(read(Duration::from_millis(1500)), of(Duration::from_millis(1500)));
        assert_eq!(read(Duration::MAX), of(MAX_HELD));
        assert_eq!(said(&json!({"errand-held-ms": u64::MAX})), Some(of(MAX_HELD)));
    }

    #[test]
    fn what_is_malformed_says_nothing_and_what_is_no_trace_is_left_to_others() {
        for bad in ["", "a", "a/b/c/d", "a/b/1", "a/b/1/0/2", "a/b/-1/0", "a/b/1/256"] {
            assert_eq!(said(&json!({"errand-traced": bad})), Some(Said::Nothing), "{bad}");
        }
        for bad in [json!({"errand-traced": 1}), json!({"errand-held-ms": "1"}), json!({"errand-held-ms": -1})] {
            assert_eq!(said(&bad), Some(Said::Nothing), "{bad}");
        }
        assert_eq!(said(&json!({"task": "add", "errand-since": 1})), None);
    }

    #[test]
    fn only_a_short_mark_with_an_address_is_answered() {
        let mut message = Tracer::parse("p/q/1/0").unwrap().message("r");
        message.properties.headers.insert(TRACE.to_owned(), "x".repeat(MAX_MARK_BYTES + 1).into());
        assert_eq!(answer(&message), None);
        message.properties.headers.insert(TRACE.to_owned(), json!({"a": []}));
        assert_eq!(answer(&message), None);
        assert_eq!(answer(&of(TRACE, "p/q/1/0".into())), None);
    }

    proptest! {
        #[test]
        fn no_mark_makes_it_panic(mark in ".{0,40}") {
            let _ = said(&json!({"errand-traced": mark}));
        }
    }
}
