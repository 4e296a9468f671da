//! What the broker says, by its headers, of a message that it gave up on.

use serde_json::Value;

use crate::message::{Headers, Message, PUBLISH};
use crate::topology::Topology;

/// Why the broker gave a message up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostReason {
    /// No queue took it: a binding or a queue is missing.
    Unroutable,
    /// It came back too often: each time its worker died or its connection was lost.
    DeliveryLimit,
    /// Its `expiration` passed before a worker took it.
    Expired,
    /// Rejected or dropped by a queue's limit.
    Rejected,
}

/// A task message that came back over the `lost` exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostNotice {
    /// The task's id.
    pub task_id: String,
    /// The attempt that was lost.
    pub retries: u32,
    /// Which of its producer's publishes was lost, so that a notice is counted once.
    pub publish: Option<u32>,
    /// Why.
    pub reason: LostReason,
}

impl LostNotice {
    /// Reads the notice, `None` for a message that is no task: a reply.
    #[must_use]
    pub fn read(message: &Message, topology: &Topology) -> Option<Self> {
        let headers = &message.properties.headers;
        headers.get("task")?.as_str()?;
        let number = |name: &str| headers.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        Some(Self {
            task_id: headers.get("id")?.as_str()?.to_owned(),
            retries: number("retries").unwrap_or(0),
            publish: number(PUBLISH),
            reason: reason(headers, topology),
        })
    }
}

/// `x-death` has the newest death first. A message that an alternate exchange took has none of its own (measured), so
/// neither `x-death` nor one whose newest entry is the delay queue that sent it on means that it could not be routed.
fn reason(headers: &Headers, topology: &Topology) -> LostReason {
    let newest = headers.get("x-death").and_then(|deaths| deaths.get(0));
    let Some(death) = newest else { return LostReason::Unroutable };
    let text = |name: &str| death.get(name).and_then(Value::as_str).unwrap_or_default();
    if topology.is_delay_queue(text("queue")) {
        return LostReason::Unroutable;
    }
    match text("reason") {
        "delivery_limit" => LostReason::DeliveryLimit,
        "expired" => LostReason::Expired,
        _ => LostReason::Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Properties;
    use serde_json::json;

    fn read(headers: &Value) -> Option<LostNotice> {
        let headers = headers.as_object().unwrap().clone();
        let message = Message { properties: Properties { headers, ..Properties::default() }, body: Vec::new() };
        LostNotice::read(&message, &Topology::new("errand."))
    }

    #[test]
    fn without_a_death_of_its_own_it_was_unroutable() {
        let notice = read(&json!({"task": "add", "id": "a", "retries": 2, "errand-publish": 3})).unwrap();
        assert_eq!(notice.reason, LostReason::Unroutable);
        assert_eq!((notice.retries, notice.publish), (2, Some(3)));
        let delayed = json!([{"queue": "errand.delay.4s", "reason": "expired"}]);
        assert_eq!(
            read(&json!({"task": "add", "id": "a", "x-death": delayed})).unwrap().reason,
            LostReason::Unroutable
        );
    }

    #[test]
    fn the_newest_death_decides() {
        let deaths = json!([{"queue": "errand.default", "reason": "delivery_limit"},
                            {"queue": "errand.delay.4s", "reason": "expired"}]);
        assert_eq!(
            read(&json!({"task": "add", "id": "a", "x-death": deaths})).unwrap().reason,
            LostReason::DeliveryLimit
        );
        let expired = json!([{"queue": "errand.default", "reason": "expired"}]);
        assert_eq!(read(&json!({"task": "add", "id": "a", "x-death": expired})).unwrap().reason, LostReason::Expired);
    }

    #[test]
    fn a_reply_is_no_notice() {
        assert_eq!(read(&json!({})), None);
    }
}
