//! The codec against messages recorded from Celery 5.7: what a stock client sends, and what a stock worker replies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::message::{ContentFault, Message, Properties};
use protocol::reply::{Child, ErrorInfo, Progress, Reply, Report};
use protocol::retry::{RetryOptions, RetryPolicy};
use protocol::task::{DecodeFault, Task, TaskMessage};
use protocol::workflow;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::datetime;

const REQUESTS: &str = include_str!("samples/requests.json");
const WORKFLOWS: &str = include_str!("samples/requests-workflows.json");
const RESULTS: &str = include_str!("samples/results.json");

/// A recorded message and the sample's name.
struct Sample {
    name: String,
    recorded: Value,
}

impl Sample {
    /// The message as it was on the wire; the recorder has shown JSON bodies as JSON and others as Python bytes.
    fn message(&self) -> Message {
        let properties = &self.recorded["properties"];
        let text = |name: &str| properties[name].as_str().map(str::to_owned);
        let properties = Properties {
            content_type: text("content_type"),
            content_encoding: text("content_encoding"),
            headers: properties["headers"].as_object().cloned().unwrap_or_default(),
            persistent: properties["delivery_mode"] == 2,
            priority: properties["priority"].as_u64().map(|priority| u8::try_from(priority).unwrap()),
            correlation_id: text("correlation_id"),
            reply_to: text("reply_to"),
            expiration: text("expiration"),
        };
        let body = match &self.recorded["body"] {
            Value::String(bytes) => python_bytes(bytes),
            json => json.to_string().into_bytes(),
        };
        Message { properties, body }
    }

    fn header(&self, name: &str) -> &Value {
        &self.recorded["properties"]["headers"][name]
    }
}

/// The bytes of a Python bytes literal.
fn python_bytes(literal: &str) -> Vec<u8> {
    let quoted = literal.strip_prefix("b'").and_then(|rest| rest.strip_suffix('\'')).unwrap();
    let mut bytes = Vec::new();
    let mut rest = quoted.chars();
    while let Some(c) = rest.next() {
        let byte = match c {
            '\\' => match rest.next().unwrap() {
                'x' => u8::from_str_radix(&rest.by_ref().take(2).collect::<String>(), 16).unwrap(),
                'n' => b'\n',
                'r' => b'\r',
                't' => b'\t',
                other => u8::try_from(other).unwrap(),
            },
            other => u8::try_from(other).unwrap(),
        };
        bytes.push(byte);
    }
    bytes
}

fn requests() -> Vec<Sample> {
    let mut samples = Vec::new();
    for file in [REQUESTS, WORKFLOWS] {
        let by_name: serde_json::Map<String, Value> = serde_json::from_str(file).unwrap();
        for (name, recorded) in by_name {
            // Where the client raised, the recorder noted the exception instead of messages.
            let messages = recorded.as_array().cloned().unwrap_or_default();
            samples.extend(messages.into_iter().map(|recorded| Sample { name: name.clone(), recorded }));
        }
    }
    assert_eq!(samples.len(), 32, "samples are missing");
    samples
}

fn request(name: &str) -> Sample {
    requests().into_iter().find(|sample| sample.name == name).unwrap()
}

fn decode(name: &str) -> Task {
    Task::decode(&request(name).message()).unwrap()
}

fn json_of(raw: &RawValue) -> Value {
    serde_json::from_str(raw.get()).unwrap()
}

#[test]
fn every_recorded_request_decodes_but_pickle_and_protocol_1() {
    for sample in requests().iter().filter(|sample| !["pickle", "protocol1"].contains(&&*sample.name)) {
        let task = Task::decode(&sample.message()).unwrap_or_else(|refused| panic!("{}: {refused}", sample.name));
        let properties = &sample.recorded["properties"];
        let text = |value: Option<&str>| json!(value);
        assert_eq!([&json!(task.id), &json!(task.task)], [sample.header("id"), sample.header("task")]);
        assert_eq!(&json!(task.retries), sample.header("retries"));
        assert_eq!(&text(task.root_id.as_deref()), sample.header("root_id"));
        assert_eq!(&text(task.parent_id.as_deref()), sample.header("parent_id"));
        assert_eq!(&text(task.group.as_deref()), sample.header("group"));
        assert_eq!(&json!(task.group_index), sample.header("group_index"));
        assert_eq!(&text(task.shadow.as_deref()), sample.header("shadow"));
        assert_eq!(&text(task.origin.as_deref()), sample.header("origin"));
        assert_eq!(task.ignore_result, *sample.header("ignore_result") == true);
        assert_eq!(json!(task.priority), properties["priority"]);
        assert_eq!(text(task.reply_to.as_deref()), properties["reply_to"]);
        assert_eq!(text(task.correlation_id.as_deref()), properties["correlation_id"]);
        assert_eq!(task.eta.is_some(), !sample.header("eta").is_null(), "{}", sample.name);
        assert_eq!(task.expires.is_some(), !sample.header("expires").is_null(), "{}", sample.name);
        assert!(
            task.retry == RetryOptions::default()
                && task.delay_left.is_none()
                && task.publish.is_none()
                && !task.durable_reply
        );
    }
}

#[test]
fn arguments_and_embed_are_the_recorded_ones() {
    for sample in requests().iter().filter(|sample| sample.recorded["body"].is_array()) {
        let task = Task::decode(&sample.message()).unwrap();
        let [args, kwargs, embed] = sample.recorded["body"].as_array().unwrap().as_slice() else { panic!() };
        assert_eq!([&json_of(&task.args), &json_of(&task.kwargs)], [args, kwargs]);
        let read = [&task.embed.callbacks, &task.embed.errbacks, &task.embed.chain, &task.embed.chord];
        let sent = ["callbacks", "errbacks", "chain", "chord"].map(|key| &embed[key]);
        assert_eq!(read.map(|raw| raw.as_deref().map_or(Value::Null, json_of)), sent.map(Value::clone));
        assert_eq!(task.embed.is_empty(), sent.iter().all(|value| value.is_null()));
    }
}

#[test]
fn chords_are_seen_and_not_dropped() {
    let chords: Vec<Sample> = requests().into_iter().filter(|s| s.name == "chord_cache_backend").collect();
    assert_eq!(chords.len(), 2);
    for sample in chords {
        let task = Task::decode(&sample.message()).unwrap();
        assert_eq!(json_of(task.embed.chord.as_deref().unwrap())["task"], "tasks.xsum");
    }
    let chain = json_of(decode("chain_group_task_is_chord").embed.chain.as_deref().unwrap());
    assert_eq!(chain[0]["subtask_type"], "chord");
}

#[test]
fn recorded_workflows_are_followed_by_what_they_name() {
    for sample in requests().iter().filter(|sample| sample.recorded["body"].is_array()) {
        let task = Task::decode(&sample.message()).unwrap();
        let embed = &sample.recorded["body"][2];
        let followed = workflow::check(&task)
            .and_then(|()| workflow::after_success(&task, RawValue::NULL, OffsetDateTime::UNIX_EPOCH));
        let Ok(following) = followed else {
            assert!(sample.name.contains("chord"), "{}: {:?}", sample.name, followed.unwrap_err());
            continue;
        };
        assert!(!sample.name.contains("chord"), "{}", sample.name);
        let next = embed["chain"].as_array().and_then(|chain| chain.last()).map(|next| &next["options"]["task_id"]);
        let named = following.children.iter().any(|child| match child {
            Child::Task(id) | Child::Group(id, _) => next == Some(&json!(id)),
        });
        assert_eq!(named, next.is_some(), "{}", sample.name);
        let callbacks = embed["callbacks"].as_array().map_or(0, Vec::len);
        assert!(following.successors.len() >= callbacks + usize::from(next.is_some()), "{}", sample.name);
        let errbacks = workflow::after_failure(&task, OffsetDateTime::UNIX_EPOCH).successors.len();
        assert_eq!(errbacks, embed["errbacks"].as_array().map_or(0, Vec::len), "{}", sample.name);
    }
}

#[test]
fn recorded_times_are_read_as_utc() {
    for (name, eta, expires) in [
        ("plain_args", None, None),
        ("countdown30", Some(datetime!(2026-11-20 14:52:19.507514 UTC)), None),
        ("eta_aware", Some(datetime!(2030-01-01 12:00 UTC)), None),
        ("eta_naive", Some(datetime!(2030-01-01 12:00 UTC)), None),
        ("expires60", None, Some(datetime!(2026-11-20 14:52:49.963056 UTC))),
        ("expires_dt", None, Some(datetime!(2030-01-01 00:00 UTC))),
        (
            "everything",
            Some(datetime!(2026-11-20 15:30:13.845307 UTC)),
            Some(datetime!(2026-11-20 15:30:16.845307 UTC)),
        ),
    ] {
        let task = decode(name);
        assert_eq!((task.eta, task.expires), (eta, expires), "{name}");
    }
}

#[test]
fn recorded_limits_are_hard_first() {
    let limits = |name| {
        let task = decode(name);
        (task.time_limit.map(|limit| limit.as_secs()), task.soft_time_limit.map(|limit| limit.as_secs()))
    };
    assert_eq!(limits("timelimits"), (Some(30), Some(20)));
    assert_eq!(limits("everything"), (Some(9), Some(8)));
    assert_eq!(limits("plain_args"), (None, None));
}

#[test]
fn a_compressed_body_is_inflated() {
    let task = decode("compressed_zlib");
    assert_eq!((task.args.get(), task.kwargs.get(), task.embed.is_empty()), ("[2, 3]", "{}", true));
}

#[test]
fn pickle_and_protocol_1_are_refused_by_name_and_can_be_answered() {
    let pickle = Task::decode(&request("pickle").message()).unwrap_err();
    assert!(matches!(pickle.reason, DecodeFault::Content(ContentFault::Serializer("pickle"))));
    let protocol1 = Task::decode(&request("protocol1").message()).unwrap_err();
    assert!(matches!(protocol1.reason, DecodeFault::Protocol1));
    for (refused, id) in
        [(pickle, "23b449fe-6787-4127-af01-3e80200ddb2f"), (protocol1, "be99392d-06ea-44d6-83eb-aae0229e6042")]
    {
        assert_eq!((refused.id.as_deref(), refused.correlation_id.as_deref()), (Some(id), Some(id)));
        assert_eq!(refused.task.as_deref(), Some("tasks.add"));
        assert!(refused.reply_to.is_some());
    }
}

/// The JSON type of a header, which decides its AMQP type.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "float",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn emitted(args: &str, kwargs: &str) -> Message {
    let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
    let (args, kwargs) = (raw(args), raw(kwargs));
    let task = TaskMessage {
        reply_to: Some("r"),
        packed_replies: true,
        retry: RetryPolicy::default().into(),
        publish: Some(1),
        since: Some(1),
        ..TaskMessage::of("i", "tasks.add", &args, &kwargs)
    };
    task.message()
}

#[test]
fn what_is_emitted_has_a_stock_clients_headers_and_ours() {
    let stock = request("plain_args").message();
    let ours = emitted("[2,3]", "{}");
    let names = |message: &Message| message.properties.headers.keys().cloned().collect::<BTreeSet<_>>();
    let added: Vec<String> = names(&ours).difference(&names(&stock)).cloned().collect();
    assert_eq!(added, ["errand-packs", "errand-publish", "errand-reply", "errand-retry", "errand-since"]);
    assert!(names(&ours).is_superset(&names(&stock)));
    for (name, value) in &stock.properties.headers {
        assert_eq!(kind(&ours.properties.headers[name]), kind(value), "{name}");
    }
    let ours_of_retry = &ours.properties.headers["errand-retry"];
    assert_eq!(*ours_of_retry, json!({"max_retries": 3, "backoff": 1.0, "backoff_max": 600.0, "jitter": true}));
}

#[test]
fn what_is_emitted_has_a_stock_clients_properties_and_body() {
    let stock = request("plain_args").message();
    let ours = emitted("[2,3]", "{}");
    let plain = |message: &Message| Properties {
        headers: serde_json::Map::new(),
        correlation_id: None,
        reply_to: None,
        ..message.properties.clone()
    };
    assert_eq!(plain(&ours), plain(&stock));
    let body = |message: &Message| serde_json::from_slice::<Value>(&message.body).unwrap();
    assert_eq!(body(&ours), body(&stock));
    assert_eq!(ours.properties.headers["argsrepr"], stock.properties.headers["argsrepr"]);
    assert_eq!(ours.properties.headers["kwargsrepr"], stock.properties.headers["kwargsrepr"]);
}

#[test]
fn limits_and_expiry_are_emitted_as_a_stock_client_does() {
    let task = TaskMessage {
        expires: Some(datetime!(2030-01-01 00:00 UTC)),
        time_limit: Some(Duration::from_secs(30)),
        soft_time_limit: Some(Duration::from_secs(20)),
        ..TaskMessage::of("i", "t", RawValue::NULL, RawValue::NULL)
    };
    let headers = task.message().properties.headers;
    assert_eq!(headers["timelimit"], *request("timelimits").header("timelimit"));
    assert_eq!(headers["expires"], "2030-01-01T00:00:00.000+00:00");
}

fn replies() -> Vec<(Value, Reply)> {
    let results: Vec<Value> = serde_json::from_str(RESULTS).unwrap();
    results
        .into_iter()
        .map(|recorded| {
            let sample = Sample { name: "result".to_owned(), recorded };
            let reply = Reply::decode(&sample.message()).unwrap();
            (sample.recorded["body"].clone(), reply)
        })
        .collect()
}

fn error(kind: &str, message: &str, body: &Value) -> ErrorInfo {
    let traceback = body["traceback"].as_str().map(str::to_owned);
    assert!(traceback.is_some());
    ErrorInfo { kind: kind.to_owned(), message: message.to_owned(), traceback }
}

#[test]
fn every_recorded_result_decodes_to_its_report() {
    let replies = replies();
    let success = |body: &Value| Report::Success(RawValue::from_string(body["result"].to_string()).unwrap());
    let failure = |kind, message, body| Report::Failure(error(kind, message, body));
    let retry = |body| Report::Retry { error: error("ValueError", "try again", body), eta: None };
    let progress = Report::Progress(Progress { current: 1, total: Some(3), message: None });
    let revoked = |reason: &str| Report::Revoked { reason: reason.to_owned() };
    let body = |at: usize| &replies[at].0;
    let expected = [
        Report::Started,
        success(body(1)),
        success(body(2)),
        failure("ValueError", "bad value, 42", body(3)),
        failure("KeyError", "k", body(4)),
        failure("MyErr", r#"mine, {"a":1}"#, body(5)),
        retry(body(6)),
        success(body(7)),
        retry(body(8)),
        failure("ValueError", "try again", body(9)),
        progress.clone(),
        success(body(11)),
        revoked("expired"),
        revoked("terminated"),
        revoked("revoked"),
        progress,
    ];
    assert_eq!(replies.len(), expected.len());
    for (at, ((_, reply), expected)) in replies.iter().zip(expected).enumerate() {
        assert_eq!(reply.report, expected, "result {at}");
    }
}

#[test]
fn a_stock_workers_reply_has_neither_attempt_nor_order() {
    for (body, reply) in replies() {
        assert_eq!(json!(reply.task_id), body["task_id"]);
        assert_eq!(json!(reply.parent_id), *body.get("parent_id").unwrap_or(&Value::Null));
        assert_eq!((reply.retries, reply.seq, reply.started_at, reply.group_id), (None, None, None, None));
        assert_eq!(reply.date_done.is_some(), !body["date_done"].is_null());
    }
    let done: OffsetDateTime = datetime!(2026-11-20 14:57:05.133037 UTC);
    assert_eq!(replies()[1].1.date_done, Some(done));
    assert_eq!(replies()[0].1.worker.as_deref(), Some("w1@h1"));
}
