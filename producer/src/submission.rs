//! From a message that a running task submitted to a child for the store. Pure.
//!
//! Its fields obey the rules of a submit over HTTP. The submitting task has gone on and reads no answer, so a child that
//! cannot be accepted is taken in with the fault that ends it, and with those of its fields that can be kept.

use std::time::Duration;

use protocol::message::{Message, SUBMIT, truncate};
use protocol::reply::ErrorInfo;
use protocol::retry::RetryOptions;
use protocol::task::Task;
use protocol::timestamp::unix_ms;
use serde_json::Value;

use crate::rules::{self, Limits, MAX_BYTES, MAX_QUEUE_BYTES, MAX_TASK_BYTES};
use crate::store::{Child, NewTask, UnixMs};

/// Larger bodies are not read: the arguments alone may be [`MAX_BYTES`].
const MAX_BODY_BYTES: usize = 2 * MAX_BYTES;

/// Whether the message is a submission; [`read`] says whether it can be used.
pub fn is_submission(message: &Message) -> bool {
    message.properties.headers.contains_key(SUBMIT)
}

/// Reads a submission.
///
/// # Errors
/// It names no parent, or its id can be no row's: what is wrong with it cannot be shown to anybody.
pub fn read(message: &Message, limits: &Limits, now: UnixMs) -> Result<Child, String> {
    let header = |name| message.properties.headers.get(name).and_then(Value::as_str).unwrap_or_default();
    let (id, parent_id) = (header("id"), header("parent_id"));
    rules::task_id(id).map_err(|detail| format!("a submission whose id {detail}"))?;
    if parent_id.is_empty() {
        return Err("a submission without parent_id".to_owned());
    }
    let mut task = NewTask {
        id: id.to_owned(),
        task: truncate(header("task"), MAX_TASK_BYTES).to_owned(),
        queue: truncate(header(SUBMIT), MAX_QUEUE_BYTES).to_owned(),
        priority: 0,
        args: rules::no_args(),
        kwargs: rules::no_kwargs(),
        retry: RetryOptions::default(),
        time_limit: None,
        soft_time_limit: None,
        created_at: now,
        eta: None,
        expires: None,
        parent: None,
        owner: None,
        callback: None,
    };
    let mut faults = Faults::default();
    if let Some(read) = faults.keep("message", decode(message)) {
        faults.fill(&mut task, &read, limits);
    }
    Ok(Child { task, parent_id: parent_id.to_owned(), fault: faults.error() })
}

fn decode(message: &Message) -> Result<Task, String> {
    let bytes = message.body.len();
    if bytes > MAX_BODY_BYTES {
        return Err(format!("{bytes} bytes are too large: args and kwargs may have {MAX_BYTES} together"));
    }
    Task::decode(message).map_err(|undecodable| undecodable.reason.to_string())
}

/// What is wrong, each by its field.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn keep<T>(&mut self, field: &str, checked: Result<T, String>) -> Option<T> {
        checked.map_err(|detail| self.0.push(format!("{field}: {detail}"))).ok()
    }

    /// Fills in the fields that obey the rules.
    fn fill(&mut self, task: &mut NewTask, read: &Task, limits: &Limits) {
        self.keep("task", rules::task_name(&read.task));
        self.keep("queue", limits.queue(read.submit.as_deref().unwrap_or_default()));
        task.priority = self.keep("priority", rules::priority(Some(read.priority.into()))).unwrap_or(0);
        self.arguments(task, read);
        if !read.embed.is_empty() {
            self.0.push("embed: callbacks, chains and chords cannot be submitted".to_owned());
        }
        let mut limit =
            |field, limit: Option<Duration>| self.keep(field, limits.time_limit(Some(limit?.as_secs_f64())));
        task.time_limit = limit("time_limit", read.time_limit);
        task.soft_time_limit = limit("soft_time_limit", read.soft_time_limit);
        self.keep("soft_time_limit", rules::soft_time_limit(task.time_limit, task.soft_time_limit));
        let chosen = self.keep("retry", rules::retry(&read.retry));
        task.retry = chosen.map(|()| read.retry).unwrap_or_default();
        task.expires = read.expires.map(unix_ms);
        // One that has failed is not scheduled.
        task.eta = read.eta.map(unix_ms).filter(|_| self.0.is_empty());
    }

    fn arguments(&mut self, task: &mut NewTask, read: &Task) {
        let bytes = read.args.get().len() + read.kwargs.get().len();
        if bytes > MAX_BYTES {
            self.0.push(format!("args and kwargs: {bytes} bytes, they may have {MAX_BYTES} together"));
            return;
        }
        for (field, json, kept) in [("args", &read.args, &mut task.args), ("kwargs", &read.kwargs, &mut task.kwargs)] {
            if self.keep(field, rules::json(json.get())).is_some() {
                kept.clone_from(json);
            }
        }
    }

    fn error(self) -> Option<ErrorInfo> {
        (!self.0.is_empty()).then(|| ErrorInfo::new("InvalidSubmission", self.0.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::task::TaskMessage;
    use protocol::timestamp::from_unix_ms;
    use serde_json::json;
    use serde_json::value::RawValue;

    const NOW: UnixMs = 1_800_000_000_000;

    fn limits() -> Limits {
        Limits {
            queues: vec!["default".into(), "mail".into()],
            max_time_limit: Duration::from_mins(15),
            ..Limits::default()
        }
    }

    fn parent() -> Task {
        let (id, reply_to) = ("p".to_owned(), Some("errand.results.s".to_owned()));
        Task { id, reply_to, durable_reply: true, ..Task::default() }
    }

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn with(args: &str, change: impl FnOnce(&mut TaskMessage<'_>)) -> Message {
        let (parent, args, kwargs) = (parent(), raw(args), raw(r#"{"y": 2.50}"#));
        let mut child = TaskMessage::child_of(&parent, "mail", "c", "add", &args, &kwargs);
        change(&mut child);
        child.message()
    }

    #[test]
    fn a_submission_becomes_a_child_with_every_field() {
        let chosen = RetryOptions { max_retries: Some(0), ..RetryOptions::default() };
        let message = with("[1]", |child| {
            child.priority = 9;
            child.eta = from_unix_ms(NOW + 1_500);
            child.expires = from_unix_ms(NOW + 60_000);
            child.time_limit = Some(Duration::from_mins(1));
            child.soft_time_limit = Some(Duration::from_secs(50));
            child.retry = chosen;
        });
        assert!(is_submission(&message));
        let Child { task, parent_id, fault } = read(&message, &limits(), NOW).unwrap();
        assert_eq!((parent_id.as_str(), fault), ("p", None));
        assert_eq!((task.id.as_str(), task.task.as_str(), task.queue.as_str()), ("c", "add", "mail"));
        assert_eq!((task.args.get(), task.kwargs.get(), task.priority), ("[1]", r#"{"y": 2.50}"#, 9));
        assert_eq!((task.eta, task.expires, task.created_at), (Some(NOW + 1_500), Some(NOW + 60_000), NOW));
        assert_eq!((task.time_limit, task.soft_time_limit, task.retry), (Some(60.0), Some(50.0), chosen));
        assert!(!is_submission(&TaskMessage::of("c", "add", &raw("[]"), &raw("{}")).message()));
    }

    fn fault(message: &Message) -> String {
        let child = read(message, &limits(), NOW).unwrap();
        assert!(!child.task.is_scheduled() && child.task.args.get().len() < MAX_BYTES);
        let fault = child.fault.unwrap();
        assert_eq!(fault.kind, "InvalidSubmission");
        fault.message
    }

    #[test]
    fn what_cannot_be_accepted_is_named_by_its_field() {
        let deep = "[".repeat(64) + &"]".repeat(64);
        let large = |bytes| format!("[\"{}\"]", "x".repeat(bytes));
        let cases: [(Message, &str); 9] = [
            (with("[]", |child| child.submit = Some("nowhere")), "queue: \"nowhere\" is none of"),
            (with("[]", |child| child.task = "a\nb"), "task: must not contain"),
            (with("[]", |child| child.priority = 10), "priority: must be"),
            (with("[]", |child| child.time_limit = Some(Duration::from_hours(1))), "time_limit: is above"),
            (with(&deep, |child| child.eta = from_unix_ms(NOW + 1)), "args: nests deeper"),
            (with(&large(MAX_BYTES), |_| ()), "args and kwargs: "),
            (with(&large(MAX_BODY_BYTES), |_| ()), "message: "),
            (with(r#"["\ud800"]"#, |_| ()), "args: "),
            (
                with("[]", |child| child.retry = RetryOptions { max_retries: Some(9_999), ..RetryOptions::default() }),
                "retry: max_retries must be",
            ),
        ];
        for (message, named) in cases {
            let fault = fault(&message);
            assert!(fault.starts_with(named), "{fault}");
        }
        let both = fault(&with("[]", |child| (child.priority, child.submit) = (99, Some("x"))));
        assert!(both.contains("QUEUES: default, mail; priority: "), "{both}");
    }

    #[test]
    fn what_is_no_task_is_a_child_with_the_fault_if_it_can_be_shown() {
        let mut message = with("[]", |_| ());
        message.body = b"[[],{}]".to_vec();
        assert_eq!(fault(&message), "message: the body has 2 elements instead of 3");
        let chain = br#"[[], {}, {"chain": [{"task": "t"}]}]"#;
        message.body = chain.to_vec();
        assert!(fault(&message).starts_with("embed: "));
        for (header, value) in [("id", json!("a b")), ("id", json!(1)), ("parent_id", Value::Null)] {
            let mut message = message.clone();
            message.properties.headers.insert(header.to_owned(), value);
            assert!(read(&message, &limits(), NOW).unwrap_err().contains(header));
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(
            body in prop::collection::vec(any::<u8>(), 0..200), queue in any::<String>(), id in "[a-z]{1,3}|.*",
            task in any::<String>(),
        ) {
            let mut message = with("[]", |_| ());
            message.body = body;
            for (header, value) in [("id", &id), ("task", &task), (SUBMIT, &queue)] {
                message.properties.headers.insert(header.to_owned(), json!(value));
            }
            if let Ok(child) = read(&message, &limits(), NOW) {
                prop_assert!(child.fault.is_some());
            }
        }
    }
}
