//! Tests of the fields: what is taken, and how each bad one is named.

use std::time::Duration;

use proptest::prelude::*;
use protocol::retry::RetryPolicy;
use serde_json::{Value, json};

use super::*;

const NOW: UnixMs = 1_800_000_000_000;

fn limits() -> Limits {
    Limits {
        queues: vec!["mail".into(), "default".into()],
        max_time_limit: Duration::from_mins(15),
        ..Limits::default()
    }
}

fn accept(body: &Value) -> NewTask {
    parse(body.to_string().as_bytes(), &limits(), NOW).unwrap()
}

/// The pointers of the answer, or its status when it is not about fields.
fn refuse(body: &str) -> Vec<String> {
    let problem = serde_json::to_value(parse(body.as_bytes(), &limits(), NOW).unwrap_err()).unwrap();
    match problem["errors"].as_array() {
        Some(errors) => errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect(),
        None => vec![problem["status"].to_string()],
    }
}

#[test]
fn only_the_task_is_required() {
    let task = accept(&json!({"task": "add"}));
    assert_eq!((task.queue.as_str(), task.priority, task.args.get(), task.kwargs.get()), ("default", 0, "[]", "{}"));
    assert_eq!(task.retry, RetryOptions::default());
    assert_eq!(task.id.len(), 36);
}

#[test]
fn every_field_is_taken() {
    let task = accept(&json!({
        "task": "add", "args": [1], "kwargs": {"y": 2}, "queue": "mail", "priority": 9, "countdown": 1.5,
        "expires": 60, "time_limit": 60, "soft_time_limit": 50, "task_id": "my-id_1",
        "retry": {"max_retries": 0, "backoff": 2},
    }));
    assert_eq!((task.id.as_str(), task.queue.as_str(), task.priority), ("my-id_1", "mail", 9));
    assert_eq!((task.eta, task.expires), (Some(NOW + 1_500), Some(NOW + 60_000)));
    assert_eq!((task.time_limit, task.soft_time_limit), (Some(60.0), Some(50.0)));
    let chosen = RetryOptions { max_retries: Some(0), backoff: Some(2.0), ..RetryOptions::default() };
    assert_eq!(task.retry, chosen, "the rest is the task's own");
    assert!(task.is_scheduled());
}

#[test]
fn a_null_is_as_good_as_absent() {
    assert_eq!(accept(&json!({"task": "add", "eta": null, "countdown": null, "queue": null})).eta, None);
}

#[test]
fn numbers_and_escapes_stay_as_they_were_sent() {
    let body = br#"{"task": "echo", "args": [123456789012345678901234567890, 1.10, "\u00e9\u0000"]}"#;
    let task = parse(body, &limits(), NOW).unwrap();
    assert_eq!(task.args.get(), r#"[123456789012345678901234567890, 1.10, "\u00e9\u0000"]"#);
}

#[test]
fn each_bad_field_is_named() {
    let cases = [
        ("{}", "/task"),
        (r#"{"task": ""}"#, "/task"),
        (r#"{"task": 7}"#, "/task"),
        (r#"{"task": "a\u0000b"}"#, "/task"),
        (r#"{"task": "a", "args": {}}"#, "/args"),
        (r#"{"task": "a", "args": ["\ud800"]}"#, "/args"),
        (r#"{"task": "a", "kwargs": []}"#, "/kwargs"),
        (r#"{"task": "a", "queue": "nowhere"}"#, "/queue"),
        (r#"{"task": "a", "priority": 10}"#, "/priority"),
        (r#"{"task": "a", "priority": 1.5}"#, "/priority"),
        (r#"{"task": "a", "countdown": -1}"#, "/countdown"),
        (r#"{"task": "a", "eta": "2026-11-20T15:00:00"}"#, "/eta"),
        (r#"{"task": "a", "eta": "tomorrow"}"#, "/eta"),
        (r#"{"task": "a", "countdown": 1, "eta": "2026-11-20T15:00:00Z"}"#, "/countdown"),
        (r#"{"task": "a", "expires": 0}"#, "/expires"),
        (r#"{"task": "a", "expires": []}"#, "/expires"),
        (r#"{"task": "a", "time_limit": 901}"#, "/time_limit"),
        (r#"{"task": "a", "time_limit": 5, "soft_time_limit": 6}"#, "/soft_time_limit"),
        (r#"{"task": "a", "task_id": "a b"}"#, "/task_id"),
        (r#"{"task": "a", "retry": {"max_retries": -1}}"#, "/retry"),
        (r#"{"task": "a", "retry": {"max_retries": null}}"#, "/retry"),
        (r#"{"task": "a", "retry": {"max_retries": 1001}}"#, "/retry"),
        (r#"{"task": "a", "retry": {"tries": 1}}"#, "/retry"),
        (r#"{"task": "a", "retry": [3, 1]}"#, "/retry"),
        (r#"{"task": "a", "retry": {"backoff": 1e9}}"#, "/retry"),
        (r#"{"task": "a", "qeue": "mail"}"#, "/qeue"),
        (r#"{"task": "a", "a/b~c": 1}"#, "/a~1b~0c"),
        (r#"{"task": "a", "task": "b"}"#, "/task"),
        (r#"{"task": "\udfff"}"#, "/task"),
        (r#"{"task": "a", "kwargs": {"\ud800": 1}}"#, "/kwargs"),
        (r#"{"task": "a", "retry": {"\ud800": 1}}"#, "/retry"),
        (r#"{"task": "a", "task_id": "a\u0000"}"#, "/task_id"),
        (r#"{"task": "a", "\u0000": 1}"#, "/\0"),
        (r#"{"task": "a", "\ud800": 1}"#, ""),
        ("[]", ""),
        ("7", ""),
    ];
    for (body, pointer) in cases {
        assert_eq!(refuse(body), [pointer], "{body}");
    }
}

#[test]
fn all_bad_fields_are_named_together() {
    assert_eq!(refuse(r#"{"args": 1, "priority": -1, "what": 2}"#), ["/task", "/args", "/priority", "/what"]);
}

#[test]
fn of_many_unknown_fields_some_are_named() {
    let many: Vec<String> = (0..10_000).map(|number| format!(r#""f{number}": 0"#)).collect();
    assert_eq!(refuse(&format!("{{{}}}", many.join(","))).len(), 1 + MAX_UNKNOWN);
}

#[test]
fn what_is_not_json_is_400() {
    for body in ["", "{", "{\"task\": NaN}", "{'task': 'a'}", "{\"task\": \"a\"} x"] {
        assert_eq!(refuse(body), ["400"], "{body}");
    }
    assert_eq!(refuse(&"[".repeat(100_000)), ["400"]);
}

#[test]
fn nesting_is_bounded_for_the_whole_body() {
    let nested = |depth: usize| {
        let list = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"task": "a", "args": {list}}}"#)
    };
    assert!(parse(nested(63).as_bytes(), &limits(), NOW).is_ok());
    assert_eq!(refuse(&nested(64)), ["/args"]);
    assert_eq!(refuse(&nested(50_000)), ["/args"]);
}

proptest! {
    #[test]
    fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&body, &limits(), NOW);
    }

    #[test]
    fn whatever_is_accepted_can_be_shown(task in "\\PC{0,20}", queue in "[a-z]{0,5}", seconds in -10.0..1e10) {
        let body = json!({"task": task, "queue": queue, "countdown": seconds}).to_string();
        if let Ok(task) = parse(body.as_bytes(), &limits(), NOW) {
            let view = super::super::view::TaskView::new(&task.into(), RetryPolicy::default(), None);
            prop_assert!(serde_json::to_string(&view).is_ok());
        }
    }
}

#[test]
fn a_callback_is_taken_and_each_bad_part_of_it_is_named() {
    let url = "https://example.com/hook";
    let task = accept(&json!({"task": "add", "callback": {"url": url}}));
    let callback = task.callback.unwrap();
    assert_eq!(
        (callback.url.as_str(), callback.events, callback.receiver.as_str()),
        (url, ENDS.to_vec(), "example.com")
    );
    let some = accept(&json!({"task": "add", "callback": {"url": url, "events": ["FAILURE", "REVOKED"]}}));
    assert_eq!(some.callback.unwrap().events, [State::Failure, State::Revoked]);
    assert!(accept(&json!({"task": "add", "callback": null})).callback.is_none());
    for (callback, pointers) in [
        (json!([]), vec!["/callback"]),
        (json!({}), vec!["/callback/url"]),
        (json!({"url": null}), vec!["/callback/url"]),
        (json!({"url": 1}), vec!["/callback/url"]),
        (json!({"url": "http://127.0.0.1/"}), vec!["/callback/url"]),
        (
            json!({"url": "https://127.0.0.1/", "events": [], "secret": 1}),
            vec!["/callback/events", "/callback/url", "/callback/secret"],
        ),
        (json!({"url": url, "events": ["STARTED"]}), vec!["/callback/events"]),
        (json!({"url": url, "events": ["SUCCESS", "SUCCESS"]}), vec!["/callback/events"]),
        (json!({"url": url, "events": "SUCCESS"}), vec!["/callback/events"]),
    ] {
        assert_eq!(refuse(&json!({"task": "add", "callback": callback}).to_string()), pointers, "{callback}");
    }
}
