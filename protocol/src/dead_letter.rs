//! The message that a worker leaves for the operator when it gives a task up.
//!
//! The original body stays; headers say in the management UI which task, why, after how many attempts, where and when.

use serde_json::json;

use crate::message::{MAX_HEADERS_BYTES, Message, headers_size, is_of_the_broker, truncate};
use crate::reply::ErrorInfo;

/// A header value longer than this is cut: 140 KB of headers closes the connection, and everything in flight comes back.
const MAX_VALUE_BYTES: usize = 1024;

/// Why and where a task was given up.
#[derive(Debug, Clone, Copy)]
pub struct Verdict<'a> {
    /// The last error.
    pub error: &'a ErrorInfo,
    /// Attempts made, the last included.
    pub attempts: u32,
    /// Who gave up.
    pub worker: &'a str,
    /// The queue it came from, without the prefix.
    pub queue: &'a str,
    /// When, RFC 3339.
    pub at: &'a str,
}

/// The dead letter of a received message.
#[must_use]
pub fn dead_letter(original: &Message, verdict: &Verdict<'_>) -> Message {
    let mut letter = original.clone();
    let properties = &mut letter.properties;
    // Its time to live would also run in the operator's queue.
    properties.expiration = None;
    properties.persistent = true;
    properties.headers.retain(|name, _| !is_of_the_broker(name));
    if headers_size(&properties.headers) > MAX_HEADERS_BYTES - 8 * MAX_VALUE_BYTES {
        properties.headers.retain(|name, _| matches!(name.as_str(), "task" | "id" | "retries" | "lang"));
        properties.headers.retain(|_, value| value.to_string().len() <= MAX_VALUE_BYTES);
    }
    let cut = |text: &str| json!(truncate(text, MAX_VALUE_BYTES));
    let ours = [
        ("errand-dead-type", cut(&verdict.error.kind)),
        ("errand-dead-message", cut(&verdict.error.message)),
        ("errand-dead-attempts", json!(verdict.attempts)),
        ("errand-dead-worker", cut(verdict.worker)),
        ("errand-dead-queue", cut(verdict.queue)),
        ("errand-dead-at", cut(verdict.at)),
    ];
    properties.headers.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    letter
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Properties;
    use serde_json::Value;

    fn letter(headers: Value, message: &str) -> Message {
        let Value::Object(headers) = headers else { unreachable!() };
        let original = Message {
            properties: Properties { headers, expiration: Some("5".into()), ..Properties::default() },
            body: b"[[],{},null]".to_vec(),
        };
        let error = ErrorInfo::new("ValueError", message);
        let verdict = Verdict { error: &error, attempts: 4, worker: "w@h", queue: "default", at: "now" };
        dead_letter(&original, &verdict)
    }

    #[test]
    fn it_tells_why_and_keeps_the_message() {
        let letter = letter(json!({"task": "add", "id": "a", "x-death": []}), "bad value");
        let headers = &letter.properties.headers;
        assert_eq!(headers["errand-dead-type"], "ValueError");
        assert_eq!(headers["errand-dead-message"], "bad value");
        assert_eq!(headers["errand-dead-attempts"], 4);
        assert_eq!(headers["task"], "add");
        assert!(!headers.contains_key("x-death") && letter.properties.expiration.is_none());
        assert_eq!(letter.body, b"[[],{},null]");
    }

    #[test]
    fn headers_stay_small_whatever_came_in() {
        let huge = "ä".repeat(100_000);
        let letter = letter(json!({"task": "add", "id": "a", "junk": huge}), &huge);
        assert!(headers_size(&letter.properties.headers) < MAX_HEADERS_BYTES);
        assert_eq!(letter.properties.headers["id"], "a");
    }
}
