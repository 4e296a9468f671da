//! The strict writer of our own producer and, for children, of our workers: every header that a stock client sends, with its type, since a stock worker
//! dies of some that are missing (celery-wire A.5).

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::message::{
    CONTENT_ENCODING, CONTENT_TYPE, Headers, Message, PACKS, PUBLISH, Properties, REPLY, REPLY_DURABLE, RETRY, SINCE,
    SUBMIT, is_of_the_broker, truncate,
};
use crate::pack;
use crate::python_repr::{MAX_CHARS, python_repr};
use crate::retry::RetryOptions;
use crate::task::{Embed, Task};
use crate::timestamp;

/// `origin` is for display only and is cut here.
const MAX_ORIGIN_BYTES: usize = 255;

/// A task to be sent. Start with [`TaskMessage::of`] and overwrite fields.
///
/// Strings are emitted as they are: the caller has checked them against DESIGN section 5 (`id` at most 64 bytes, `task`
/// at most 200), which also keeps the headers under [`crate::message::MAX_HEADERS_BYTES`].
#[derive(Debug, Clone, Copy)]
pub struct TaskMessage<'a> {
    /// The task id, also the correlation id.
    pub id: &'a str,
    /// The name that handlers are registered under.
    pub task: &'a str,
    /// A JSON array.
    pub args: &'a RawValue,
    /// A JSON object.
    pub kwargs: &'a RawValue,
    /// Always sent, as Celery does.
    pub priority: u8,
    /// The attempt, from 0.
    pub retries: u32,
    /// Not to be run before, sent with milliseconds. For what no producer holds back: a child.
    pub eta: Option<OffsetDateTime>,
    /// Not to be run after, sent with milliseconds; no AMQP expiration follows from it.
    pub expires: Option<OffsetDateTime>,
    /// The hard limit.
    pub time_limit: Option<Duration>,
    /// The soft limit.
    pub soft_time_limit: Option<Duration>,
    /// The queue that replies go to.
    pub reply_to: Option<&'a str>,
    /// Whether that queue outlives the producer: header `errand-reply`.
    pub durable_reply: bool,
    /// Whether its reader takes several replies in one message: header `errand-packs`.
    pub packed_replies: bool,
    /// Header `errand-retry`.
    pub retry: RetryOptions,
    /// Header `errand-publish`.
    pub publish: Option<u32>,
    /// Header `errand-since`.
    pub since: Option<i64>,
    /// Header `errand-submit`: the queue of a child that a producer is to take in.
    pub submit: Option<&'a str>,
    /// Who sends it, for display only.
    pub origin: &'a str,
    /// The first task of the workflow; `None` is this one.
    pub root_id: Option<&'a str>,
    /// The task that sends this one.
    pub parent_id: Option<&'a str>,
    /// The group, for its result.
    pub group: Option<&'a str>,
    /// The place in the group.
    pub group_index: Option<i64>,
    /// A name for display only.
    pub shadow: Option<&'a str>,
    /// Whether nobody wants the result; `None` leaves it to the worker.
    pub ignore_result: Option<bool>,
    /// Stamps by name.
    pub stamps: Option<&'a Headers>,
    /// Headers of the sender's own. One of a name that this writer uses does not count.
    pub headers: Option<&'a Headers>,
    /// What is to follow the task.
    pub embed: Option<&'a Embed>,
    /// Leaves out Celery's headers that say nothing: null, empty, or what a reader assumes. A stock worker runs it all the same
    /// (celery-wire A.5), and a broker, which reads the whole table of each message, has a fifth less to do.
    pub terse: bool,
}

impl<'a> TaskMessage<'a> {
    /// The first attempt of a task with priority 0 and nothing else set, whose replies go to a durable queue if any.
    /// `args` must be an array and `kwargs` an object.
    #[must_use]
    pub const fn of(id: &'a str, task: &'a str, args: &'a RawValue, kwargs: &'a RawValue) -> Self {
        Self {
            id,
            task,
            args,
            kwargs,
            priority: 0,
            retries: 0,
            eta: None,
            expires: None,
            time_limit: None,
            soft_time_limit: None,
            reply_to: None,
            durable_reply: true,
            packed_replies: false,
            retry: RetryOptions { max_retries: None, backoff: None, backoff_max: None, jitter: None },
            publish: None,
            since: None,
            submit: None,
            origin: "errand",
            root_id: None,
            parent_id: None,
            group: None,
            group_index: None,
            shadow: None,
            ignore_result: None,
            stamps: None,
            headers: None,
            embed: None,
            terse: false,
        }
    }

    /// A child that `parent` submits for `queue`, with nothing else set. It names the queue only if it goes to the
    /// parent's producer (see [`Task::submit_to`]); else its caller publishes it to that queue. Nobody is replied to:
    /// the producer names its own reply queue when it publishes the child.
    #[must_use]
    pub fn child_of(
        parent: &'a Task,
        queue: &'a str,
        id: &'a str,
        task: &'a str,
        args: &'a RawValue,
        kwargs: &'a RawValue,
    ) -> Self {
        Self {
            submit: parent.submit_to().map(|_| queue),
            parent_id: Some(&parent.id),
            root_id: Some(parent.root_id.as_ref().unwrap_or(&parent.id)),
            ..Self::of(id, task, args, kwargs)
        }
    }

    /// The message: persistent, with correlation id and priority, never with an expiration.
    #[must_use]
    pub fn message(&self) -> Message {
        let properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            content_encoding: Some(CONTENT_ENCODING.to_owned()),
            headers: self.headers(),
            persistent: true,
            priority: Some(self.priority),
            correlation_id: Some(self.id.to_owned()),
            reply_to: self.reply_to.map(str::to_owned),
            expiration: None,
        };
        Message { properties, body: self.body() }
    }

    fn headers(&self) -> Headers {
        let mut headers = self.headers.cloned().unwrap_or_default();
        headers.retain(|name, _| !name.starts_with("errand-") && !is_of_the_broker(name) && name != "compression");
        let mut set = |name: &str, value: Value| {
            if !(self.terse && is_blank(&value)) {
                headers.insert(name.to_owned(), value);
            }
        };
        set("lang", json!("rust"));
        set("task", json!(self.task));
        set("id", json!(self.id));
        set("shadow", json!(self.shadow));
        set("eta", json!(self.eta.map(timestamp::celery)));
        set("expires", json!(self.expires.map(timestamp::celery)));
        set("group", json!(self.group));
        set("group_index", json!(self.group_index));
        set("retries", json!(self.retries));
        set("timelimit", json!([self.time_limit.map(seconds), self.soft_time_limit.map(seconds)]));
        set("root_id", json!(self.root_id.unwrap_or(self.id)));
        set("parent_id", json!(self.parent_id));
        set("argsrepr", json!(python_repr(self.args, MAX_CHARS)));
        set("kwargsrepr", json!(python_repr(self.kwargs, MAX_CHARS)));
        set("origin", json!(truncate(self.origin, MAX_ORIGIN_BYTES)));
        set("ignore_result", json!(self.ignore_result));
        set("replaced_task_nesting", if self.terse { Value::Null } else { json!(0) });
        set("stamped_headers", self.stamps.map(|stamps| stamps.keys().cloned().collect()).unwrap_or_default());
        set("stamps", json!(self.stamps.cloned().unwrap_or_default()));
        if let Some(chosen) = self.retry.header() {
            set(RETRY, chosen);
        }
        if self.durable_reply && self.reply_to.is_some() {
            set(REPLY, json!(REPLY_DURABLE));
            if self.packed_replies {
                set(PACKS, json!(pack::FORM));
            }
        }
        if let Some(publish) = self.publish {
            set(PUBLISH, json!(publish));
        }
        if let Some(since) = self.since {
            set(SINCE, json!(since));
        }
        if let Some(queue) = self.submit {
            set(SUBMIT, json!(queue));
        }
        headers
    }

    fn body(&self) -> Vec<u8> {
        let part = |choose: fn(&Embed) -> Option<&RawValue>| self.embed.and_then(choose).map_or("null", RawValue::get);
        let embed = format!(
            r#"{{"callbacks": {}, "errbacks": {}, "chain": {}, "chord": {}}}"#,
            part(|embed| embed.callbacks.as_deref()),
            part(|embed| embed.errbacks.as_deref()),
            part(|embed| embed.chain.as_deref()),
            part(|embed| embed.chord.as_deref()),
        );
        format!("[{}, {}, {embed}]", self.args, self.kwargs).into_bytes()
    }
}

/// Whether a header's value is what its reader assumes without it.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().all(Value::is_null),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// Whole seconds as integer, as stock clients send them.
fn seconds(limit: Duration) -> Value {
    if limit.subsec_nanos() == 0 { json!(limit.as_secs()) } else { json!(limit.as_secs_f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::any::{any_arguments, any_text};
    use crate::message::{MAX_HEADER_BYTES, MAX_HEADERS_BYTES};
    use crate::retry::RetryPolicy;
    use crate::task::Task;
    use proptest::prelude::*;

    fn any_limit() -> impl Strategy<Value = Option<Duration>> {
        prop::option::of((1..1_000_000_000_u64).prop_map(Duration::from_millis))
    }

    prop_compose! {
        fn any_retry()(
            max_retries: Option<u32>,
            backoff in prop::option::of(0.0..1e9_f64),
            backoff_max in prop::option::of(0.0..1e9_f64),
            jitter: Option<bool>,
        ) -> RetryOptions { RetryOptions { max_retries, backoff, backoff_max, jitter } }
    }

    proptest! {
        #[test]
        fn what_is_emitted_decodes_to_the_same_task(
            (args, kwargs) in any_arguments(),
            (id, task, origin, parent) in (any_text(64), any_text(200), any::<String>(), prop::option::of(any_text(64))),
            (priority, retries, publish, since) in any::<(u8, u32, Option<u32>, Option<i64>)>(),
            expires in prop::option::of(0..253_402_300_800_000_i64),
            (time_limit, soft_time_limit) in (any_limit(), any_limit()),
            (retry, reply_to, packed_replies) in (any_retry(), prop::option::of(any_text(60)), any::<bool>()),
            terse: bool,
        ) {
            let expires = expires.and_then(timestamp::from_unix_ms);
            let sent = TaskMessage {
                priority, retries, publish, since, expires, time_limit, soft_time_limit, retry, packed_replies,
                terse,
                reply_to: reply_to.as_deref(), origin: &origin, parent_id: parent.as_deref(),
                ..TaskMessage::of(&id, &task, &args, &kwargs)
            };
            let read = Task::decode(&sent.message()).unwrap();
            prop_assert_eq!((&read.id, &read.task), (&id, &task));
            prop_assert_eq!((read.args.get(), read.kwargs.get()), (args.get(), kwargs.get()));
            prop_assert_eq!((read.priority, read.retries), (priority, retries));
            prop_assert_eq!((read.publish, read.since), (publish, since));
            prop_assert_eq!((read.eta, read.expires, read.retry), (None, expires, retry));
            prop_assert_eq!((read.time_limit, read.soft_time_limit), (time_limit, soft_time_limit));
            let is_durable = reply_to.is_some();
            prop_assert_eq!((read.durable_reply, read.packed_replies), (is_durable, is_durable && packed_replies));
            prop_assert_eq!((read.reply_to, read.correlation_id), (reply_to, Some(id.clone())));
            prop_assert_eq!((read.root_id, read.parent_id), (Some(id), parent));
            prop_assert!(read.embed.is_empty() && read.delay_left.is_none() && !read.ignore_result);
            prop_assert!(read.submit.is_none());
        }

        #[test]
        fn a_child_decodes_to_its_call_its_queue_and_its_family(
            (args, kwargs) in any_arguments(),
            (id, task, queue) in (any_text(64), any_text(200), "[a-z0-9_-]{1,64}"),
            (parent_id, root_id, reply_to) in
                (any_text(64), prop::option::of(any_text(64)), prop::option::of(any_text(60))),
            (durable_reply, priority) in any::<(bool, u8)>(),
            (eta, expires) in any::<(u32, u32)>(),
            (time_limit, retry) in (any_limit(), any_retry()),
        ) {
            let time = |ms: u32| timestamp::from_unix_ms(ms.into());
            let is_durable = durable_reply && reply_to.is_some();
            let parent = Task { id: parent_id, root_id, reply_to, durable_reply, ..Task::default() };
            let child = TaskMessage {
                priority, eta: time(eta), expires: time(expires), time_limit, retry,
                ..TaskMessage::child_of(&parent, &queue, &id, &task, &args, &kwargs)
            };
            let read = Task::decode(&child.message()).unwrap();
            prop_assert_eq!((&read.id, &read.task, read.args.get(), read.kwargs.get()),
                (&id, &task, args.get(), kwargs.get()));
            prop_assert_eq!((read.priority, read.retry, read.time_limit), (priority, retry, time_limit));
            prop_assert_eq!((read.eta, read.expires), (time(eta), time(expires)));
            prop_assert_eq!(read.submit, is_durable.then_some(queue));
            prop_assert_eq!(read.root_id.as_ref(), Some(parent.root_id.as_ref().unwrap_or(&parent.id)));
            prop_assert_eq!((read.parent_id, read.retries, read.reply_to), (Some(parent.id), 0, None));
            prop_assert!(read.publish.is_none() && !read.durable_reply);
        }

        #[test]
        fn what_is_emitted_keeps_stock_workers_alive_and_the_size_limits(
            (args, kwargs) in any_arguments(), id in any_text(64), task in any_text(200), origin in any::<String>(),
            (retries, publish, since) in any::<(u32, Option<u32>, Option<i64>)>(),
            expires in prop::option::of(0..253_402_300_800_000_i64),
            (time_limit, soft_time_limit) in (any_limit(), any_limit()),
        ) {
            let expires = expires.and_then(timestamp::from_unix_ms);
            let sent = TaskMessage {
                origin: &origin, retry: RetryPolicy::default().into(), retries, publish, since, expires, time_limit,
                soft_time_limit, reply_to: Some("results"), ..TaskMessage::of(&id, &task, &args, &kwargs)
            };
            let Message { properties, body } = sent.message();
            prop_assert_eq!(properties.content_type.as_deref(), Some("application/json"));
            prop_assert_eq!(properties.content_encoding.as_deref(), Some("utf-8"));
            prop_assert!(properties.persistent && properties.priority.is_some() && properties.expiration.is_none());
            let header = |name: &str| properties.headers.get(name).cloned().unwrap_or_default();
            prop_assert_eq!((header("id"), header("task"), header("retries")), (json!(id), json!(task), json!(retries)));
            prop_assert!(header("expires").is_string() == expires.is_some() && header("eta").is_null());
            let is_limit = |limit: &Value| limit.is_null() || limit.as_f64().is_some_and(|limit| limit > 0.0);
            prop_assert!(header("timelimit").as_array().is_some_and(|both| both.len() == 2 && both.iter().all(is_limit)));
            for text in ["argsrepr", "kwargsrepr", "origin", "root_id", "lang"] {
                prop_assert!(header(text).is_string(), "{}", text);
            }
            let elements: Vec<Value> = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(elements.len(), 3);
            prop_assert!(elements[0].is_array() && elements[1].is_object() && elements[2].is_object());
            let bytes = |value: &Value| value.as_str().map_or(value.to_string().len(), str::len);
            prop_assert!(properties.headers.values().all(|value| bytes(value) <= MAX_HEADER_BYTES));
            let total: usize = properties.headers.iter().map(|(name, value)| name.len() + bytes(value) + 8).sum();
            prop_assert!(total <= MAX_HEADERS_BYTES);
        }
    }
}
