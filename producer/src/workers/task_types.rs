//! The task types that workers have announced, by name. They are remembered when their workers are gone: a task that
//! waits for a worker is still shown with its own defaults.

use std::collections::HashMap;
use std::time::Instant;

use protocol::heartbeat::TaskType;
use protocol::retry::RetryPolicy;

/// The most types remembered, whoever speaks on the exchange.
const MAX_TYPES: usize = 1_000;
/// The most bytes of JSON that they may have together.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The types, within bounds. Beyond them the one that was not announced for longest goes: what a living worker knows is
/// announced every five seconds.
#[derive(Default)]
pub(super) struct TaskTypes {
    types: HashMap<String, Announced>,
    bytes: usize,
}

/// A type as last announced. Parsed, its schemas would take many times their bytes.
struct Announced {
    at: Instant,
    json: Box<str>,
    retry: RetryPolicy,
}

impl TaskTypes {
    /// Takes the latest word on a type.
    pub(super) fn learn(&mut self, task: &TaskType, now: Instant) {
        let Ok(json) = serde_json::to_string(task) else { return };
        if json.len() > MAX_BYTES {
            return;
        }
        self.forget(&task.name);
        self.bytes += json.len();
        self.types.insert(task.name.clone(), Announced { at: now, json: json.into(), retry: task.retry });
        while self.types.len() > MAX_TYPES || self.bytes > MAX_BYTES {
            let oldest = self.types.iter().min_by_key(|(_, announced)| announced.at);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { return };
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(announced) = self.types.remove(name) {
            self.bytes -= announced.json.len();
        }
    }

    /// How tasks of that name are retried when their caller does not say, if a worker has said.
    pub(super) fn retry(&self, name: &str) -> Option<RetryPolicy> {
        self.types.get(name).map(|announced| announced.retry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::tests::task_type;
    use serde_json::Value;
    use std::time::Duration;

    fn of(name: &str, max_retries: u32) -> TaskType {
        TaskType { retry: RetryPolicy { max_retries, ..RetryPolicy::default() }, ..task_type(name) }
    }

    #[test]
    fn the_latest_word_on_a_type_counts() {
        let mut types = TaskTypes::default();
        let now = Instant::now();
        assert_eq!(types.retry("add"), None);
        types.learn(&of("add", 1), now);
        types.learn(&of("add", 2), now);
        assert_eq!(types.retry("add").map(|retry| retry.max_retries), Some(2));
        assert_eq!(types.types.len(), 1);
        types.forget("add");
        assert_eq!(types.bytes, 0);
    }

    #[test]
    fn a_flood_of_types_and_bytes_is_bounded_and_leaves_the_latest() {
        let mut types = TaskTypes::default();
        let start = Instant::now();
        let at = |number: usize| start + Duration::from_millis(number as u64);
        for number in 0..3_000 {
            types.learn(&of(&format!("t{number}"), 0), at(number));
        }
        assert_eq!((types.types.len(), types.retry("t0").is_some()), (MAX_TYPES, false));
        let large = |name: String| TaskType { arguments: Value::from("x".repeat(1024 * 1024)), ..of(&name, 1) };
        for number in 3_000..3_010 {
            types.learn(&large(format!("t{number}")), at(number));
        }
        assert!(types.bytes <= MAX_BYTES && types.retry("t3009").is_some());
        let whole = TaskType { arguments: Value::from("x".repeat(MAX_BYTES)), ..of("t3009", 9) };
        types.learn(&whole, at(3_010));
        assert_eq!(types.retry("t3009").map(|retry| retry.max_retries), Some(1), "it alone is too large");
    }
}
