//! The message of an end: its type, when it was, and the task as the API shows it, within bounds. Pure.

use protocol::retry::RetryPolicy;
use protocol::state::State;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::{TaskView, time};
use crate::store::TaskRow;

/// The longest member of a task that a message holds, in bytes of JSON. What is longer is null, and read by its link.
pub const MAX_MEMBER_BYTES: usize = 64 * 1024;

#[derive(Serialize)]
struct Message {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: Option<String>,
    data: Data,
}

#[derive(Serialize)]
struct Data {
    #[serde(flatten)]
    task: TaskView,
    /// The members that are too long for a message.
    omitted: Vec<&'static str>,
}

/// The body of the message of that end. `own` is how its type is retried when the caller does not say.
pub(super) fn body(mut row: TaskRow, own: RetryPolicy) -> Result<String, serde_json::Error> {
    let omitted = omit(&mut row);
    // How the callback itself stands is another with every attempt.
    row.accepted.callback = None;
    let task = TaskView::new(&row, own, None);
    serde_json::to_string(&Message {
        kind: kind(row.state),
        timestamp: time(row.finished_at),
        data: Data { task, omitted },
    })
}

fn kind(state: State) -> &'static str {
    match state {
        State::Success => "task.succeeded",
        State::Revoked => "task.revoked",
        _ => "task.failed",
    }
}

/// Takes out what is too long.
fn omit(row: &mut TaskRow) -> Vec<&'static str> {
    let is_long = |json: &RawValue| json.get().len() > MAX_MEMBER_BYTES;
    let mut omitted = Vec::new();
    for (name, json) in [("args", &mut row.accepted.args), ("kwargs", &mut row.accepted.kwargs)] {
        if is_long(json) {
            *json = RawValue::NULL.to_owned();
            omitted.push(name);
        }
    }
    for (name, json) in [("progress", &mut row.progress), ("result", &mut row.result), ("error", &mut row.error)] {
        if json.as_deref().is_some_and(is_long) {
            *json = None;
            omitted.push(name);
        }
    }
    omitted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NewTask;
    use crate::store::tests::new_task;
    use serde_json::{Value, json};

    fn raw(json: String) -> Box<RawValue> {
        RawValue::from_string(json).unwrap()
    }

    fn ended(task: NewTask, result: &str) -> TaskRow {
        let finished_at = Some(task.created_at);
        TaskRow { state: State::Success, finished_at, result: Some(raw(result.to_owned())), ..TaskRow::from(task) }
    }

    #[test]
    fn a_message_says_what_ended_when_and_how() {
        let body = body(ended(new_task("a"), "1.10"), RetryPolicy::default()).unwrap();
        assert!(body.contains(r#""result":1.10"#), "digits stay as they are: {body}");
        let message: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&message["type"], &message["timestamp"]),
            (&json!("task.succeeded"), &message["data"]["finished_at"])
        );
        let data = &message["data"];
        assert_eq!((&data["task_id"], &data["state"], &data["omitted"]), (&json!("a"), &json!("SUCCESS"), &json!([])));
    }

    #[test]
    fn what_is_too_long_is_left_out_and_named() {
        let long = |bytes| format!("[\"{}\"]", "x".repeat(bytes - 4));
        let fits = ended(new_task("a"), &long(MAX_MEMBER_BYTES));
        let message: Value = serde_json::from_str(&body(fits, RetryPolicy::default()).unwrap()).unwrap();
        assert_eq!(message["data"]["omitted"], json!([]));
        let task = NewTask { args: raw(long(200_000)), ..new_task("a") };
        let body = body(ended(task, &long(MAX_MEMBER_BYTES + 1)), RetryPolicy::default()).unwrap();
        let message: Value = serde_json::from_str(&body).unwrap();
        let data = &message["data"];
        assert_eq!(
            (&data["omitted"], &data["args"], &data["result"]),
            (&json!(["args", "result"]), &json!(null), &json!(null))
        );
        assert!(body.len() < 2_000);
    }
}
