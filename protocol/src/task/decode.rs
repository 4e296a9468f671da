//! The tolerant reader: it requires only what a worker needs, and says by name what is wrong with the rest.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::headers::Reader;
use super::{DecodeFault, Embed, Task, Undecodable};
use crate::message::{
    Headers, MAX_HEADERS_BYTES, Message, PACKS, PUBLISH, REPLY, REPLY_DURABLE, SINCE, SUBMIT, headers_size,
    is_of_the_broker,
};
use crate::pack;

impl Task {
    /// Reads a task message of Celery's protocol 2. Required are the headers `id` and `task`, the content type, and a
    /// body of [args, kwargs, embed]; unknown headers and unknown keys of embed are ignored.
    ///
    /// # Errors
    /// The message is no such task; see [`DecodeFault`].
    #[expect(clippy::result_large_err, reason = "the task, in the other variant, is larger")]
    pub fn decode(message: &Message) -> Result<Self, Undecodable> {
        decode(message).map_err(|reason| refuse(message, reason))
    }
}

fn decode(message: &Message) -> Result<Task, DecodeFault> {
    let body = message.json_body()?;
    let properties = &message.properties;
    let headers = Reader(&properties.headers);
    if let Some(bytes) = too_large(&properties.headers) {
        return Err(DecodeFault::HeadersTooLarge(bytes));
    }
    if headers.get("task").is_none() && ProtocolOne::read(&body).is_some() {
        return Err(DecodeFault::Protocol1);
    }
    let (time_limit, soft_time_limit) = headers.limits()?;
    let id = headers.required("id")?;
    let task = headers.required("task")?;
    let Body { args, kwargs, embed } = Body::read(&body)?;
    Ok(Task {
        id,
        task,
        args,
        kwargs,
        embed,
        retries: headers.count("retries")?.unwrap_or(0),
        eta: headers.time("eta")?,
        expires: headers.time("expires")?,
        time_limit,
        soft_time_limit,
        root_id: headers.text("root_id")?,
        parent_id: headers.text("parent_id")?,
        group: headers.text("group")?,
        group_index: headers.integer("group_index")?,
        shadow: headers.text("shadow")?,
        ignore_result: headers.flag("ignore_result")?,
        origin: headers.text("origin")?,
        priority: properties.priority.unwrap_or(0),
        reply_to: properties.reply_to.clone(),
        correlation_id: properties.correlation_id.clone(),
        retry: headers.retry()?,
        delay_left: headers.delay_left()?,
        durable_reply: headers.text(REPLY)?.is_some_and(|kind| kind == REPLY_DURABLE),
        packed_replies: headers.count(PACKS)?.is_some_and(|form| form >= pack::FORM),
        publish: headers.count(PUBLISH)?,
        since: headers.integer(SINCE)?,
        submit: headers.text(SUBMIT)?,
    })
}

/// The senders' headers, when they are too large. What is set or cut on the way does not count.
fn too_large(headers: &Headers) -> Option<usize> {
    let theirs = |name: &str| {
        !name.starts_with("errand-") && !is_of_the_broker(name) && !matches!(name, "argsrepr" | "kwargsrepr")
    };
    let bytes = headers_size(headers.iter().filter(|(name, _)| theirs(name)));
    (bytes > MAX_HEADERS_BYTES).then_some(bytes)
}

fn refuse(message: &Message, reason: DecodeFault) -> Undecodable {
    let properties = &message.properties;
    let header = |name| properties.headers.get(name).and_then(Value::as_str).map(str::to_owned);
    let (mut id, mut task) = (header("id"), header("task"));
    if matches!(reason, DecodeFault::Protocol1)
        && let Some(body) = message.json_body().ok().as_deref().and_then(ProtocolOne::read)
    {
        (id, task) = (body.id.or(id), Some(body.task));
    }
    Undecodable {
        // A stock client's correlation id is the task's.
        id: id.filter(|id| !id.is_empty()).or_else(|| properties.correlation_id.clone()),
        task,
        reply_to: properties.reply_to.clone(),
        correlation_id: properties.correlation_id.clone(),
        reason,
    }
}

struct Body {
    args: Box<RawValue>,
    kwargs: Box<RawValue>,
    embed: Embed,
}

impl Body {
    fn read(body: &[u8]) -> Result<Self, DecodeFault> {
        let whole: &RawValue = serde_json::from_slice(body).map_err(DecodeFault::Json)?;
        if !whole.get().starts_with('[') {
            return Err(DecodeFault::BodyType);
        }
        let parts: Vec<&RawValue> = serde_json::from_str(whole.get()).map_err(DecodeFault::Json)?;
        let [args, kwargs, embed] = parts[..] else { return Err(DecodeFault::BodyLength(parts.len())) };
        if !args.get().starts_with('[') {
            return Err(DecodeFault::Args);
        }
        if !kwargs.get().starts_with('{') {
            return Err(DecodeFault::Kwargs);
        }
        Ok(Self { args: args.to_owned(), kwargs: kwargs.to_owned(), embed: Embed::read(embed)? })
    }
}

/// Embed as sent.
#[derive(Deserialize, Default)]
#[serde(default)]
struct EmbedKeys {
    callbacks: Option<Box<RawValue>>,
    errbacks: Option<Box<RawValue>>,
    chain: Option<Box<RawValue>>,
    chord: Option<Box<RawValue>>,
}

impl Embed {
    fn read(raw: &RawValue) -> Result<Self, DecodeFault> {
        if raw.get() == "null" {
            return Ok(Self::default());
        }
        // serde would also read a struct from an array.
        if !raw.get().starts_with('{') {
            return Err(DecodeFault::Embed);
        }
        let keys: EmbedKeys = serde_json::from_str(raw.get()).map_err(|_| DecodeFault::Embed)?;
        Ok(Self {
            callbacks: keys.callbacks.filter(|raw| is_something(raw.get())),
            errbacks: keys.errbacks.filter(|raw| is_something(raw.get())),
            chain: keys.chain.filter(|raw| is_something(raw.get())),
            chord: keys.chord.filter(|raw| is_something(raw.get())),
        })
    }
}

fn is_something(signatures: &str) -> bool {
    let inside = signatures.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inside.is_none_or(|inside| !inside.trim().is_empty())
}

/// The body of protocol 1, which holds everything.
#[derive(Deserialize)]
struct ProtocolOne {
    task: String,
    id: Option<String>,
}

impl ProtocolOne {
    fn read(body: &[u8]) -> Option<Self> {
        let is_object = body.trim_ascii_start().starts_with(b"{");
        if is_object { serde_json::from_slice(body).ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{CONTENT_TYPE, Properties};
    use crate::retry::RetryOptions;
    use proptest::prelude::*;
    use serde_json::json;

    fn message(headers: &Value, body: &[u8]) -> Message {
        let headers = headers.as_object().cloned().unwrap_or_default();
        let properties = Properties { content_type: Some(CONTENT_TYPE.to_owned()), headers, ..Properties::default() };
        Message { properties, body: body.to_vec() }
    }

    fn reason(message: &Message) -> String {
        Task::decode(message).unwrap_err().reason.to_string()
    }

    fn body_reason(body: &str) -> String {
        reason(&message(&json!({"id": "i", "task": "t"}), body.as_bytes()))
    }

    #[test]
    fn the_least_that_a_worker_needs_is_enough() {
        let task =
            Task::decode(&message(&json!({"id": "i", "task": "t"}), br#" [ [1,2] , {"a":1} , null ] "#)).unwrap();
        assert_eq!((task.id.as_str(), task.task.as_str()), ("i", "t"));
        assert_eq!((task.args.get(), task.kwargs.get()), ("[1,2]", r#"{"a":1}"#));
        assert_eq!((task.retries, task.priority, task.ignore_result, task.durable_reply), (0, 0, false, false));
        assert!(
            task.embed.is_empty()
                && task.eta.is_none()
                && task.retry == RetryOptions::default()
                && task.delay_left.is_none()
                && task.submit.is_none()
        );
    }

    #[test]
    fn a_body_of_another_shape_is_named() {
        assert_eq!(body_reason("[[],{}]"), "the body has 2 elements instead of 3");
        assert_eq!(body_reason("[[],{},{},1]"), "the body has 4 elements instead of 3");
        assert_eq!(body_reason("{}"), "the body is not an array");
        assert_eq!(body_reason("[{},{},{}]"), "args is not an array");
        assert_eq!(body_reason("[[],[],{}]"), "kwargs is not an object");
        assert_eq!(body_reason("[[],{},[]]"), "embed is not an object");
        for body in ["", "[[NaN],{},{}]", r#"[[],{"b":Infinity},{}]"#, "[[],{},{}] x", "[[],{},{}"] {
            assert!(body_reason(body).starts_with("the body is not JSON"), "{body}");
        }
        assert!(reason(&message(&json!({"id": "i", "task": "t"}), b"[[\"\xff\"],{},{}]")).contains("not JSON"));
    }

    #[test]
    fn embed_ignores_unknown_keys_and_empty_lists_follow_nothing() {
        let of = |embed: &str| {
            let body = format!("[[],{{}},{embed}]");
            Task::decode(&message(&json!({"id": "i", "task": "t"}), body.as_bytes())).unwrap().embed
        };
        assert!(of(r#"{"callbacks": null, "errbacks": [], "chain": [ ], "new": 1}"#).is_empty());
        let embed = of(r#"{"chord": {"task": "t"}, "callbacks": [1]}"#);
        assert_eq!(embed.chord.unwrap().get(), r#"{"task": "t"}"#);
        assert_eq!(embed.callbacks.unwrap().get(), "[1]");
    }

    #[test]
    fn what_is_known_of_a_refused_message_is_kept() {
        let mut message = message(&json!({"id": "i", "task": "t"}), b"[]");
        message.properties.reply_to = Some("r".to_owned());
        message.properties.correlation_id = Some("c".to_owned());
        for content_type in [CONTENT_TYPE, "application/x-python-serialize"] {
            message.properties.content_type = Some(content_type.to_owned());
            let Undecodable { id, task, reply_to, correlation_id, .. } = Task::decode(&message).unwrap_err();
            assert_eq!([id, task, reply_to, correlation_id].map(Option::unwrap), ["i", "t", "r", "c"]);
        }
    }

    #[test]
    fn large_headers_are_refused_but_for_those_that_are_cut_or_not_the_senders() {
        let of = |name: &str, bytes: usize| {
            message(&json!({"id": "i", "task": "t", name: "x".repeat(bytes)}), b"[[], {}, null]")
        };
        for (name, bytes) in [("x", 30_000), ("argsrepr", 40_000), ("errand-other", 40_000), ("x-death", 40_000)] {
            assert!(Task::decode(&of(name, bytes)).is_ok(), "{name}");
        }
        assert_eq!(reason(&of("x", 40_000)), "the headers have 40009 bytes, 32768 are allowed");
    }

    #[test]
    fn protocol_1_is_refused_as_such_with_its_id() {
        let refused = Task::decode(&message(&json!({}), br#"{"task": "t", "id": "i", "args": []}"#)).unwrap_err();
        assert!(matches!(refused.reason, DecodeFault::Protocol1));
        assert_eq!((refused.id.as_deref(), refused.task.as_deref()), (Some("i"), Some("t")));
    }

    #[test]
    fn a_flood_of_brackets_in_args_is_passed_on_unread() {
        let args = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!("[{args},{{}},{{}}]");
        let task = Task::decode(&message(&json!({"id": "i", "task": "t"}), body.as_bytes())).unwrap();
        assert_eq!(task.args.get().len(), 200_000);
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200), json in r#"[\[\]{}:,"0-9entul ]{0,60}"#) {
            for body in [&body[..], json.as_bytes()] {
                let _ = Task::decode(&message(&json!({"id": "i", "task": "t"}), body));
                let _ = Task::decode(&message(&json!({}), body));
                let mut compressed = message(&json!({"compression": "application/x-gzip"}), body);
                compressed.properties.headers.insert("id".to_owned(), json!("i"));
                let _ = Task::decode(&compressed);
            }
        }
    }
}
