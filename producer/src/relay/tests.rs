//! The way of a submit from its body to the message that a worker reads, through a real store. A failing case is kept in
//! `proptest-regressions` beside `src` and run first from then on.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use protocol::reply::{Reply, Report};
use protocol::task::Task;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use super::*;
use crate::api::parse;
use crate::rules::Limits;
use crate::store::{NewTask, Recorded, Whose};

const NOW: i64 = 1_800_000_000_000;

fn limits() -> Limits {
    let queues = vec!["default".to_owned(), "mail".to_owned()];
    Limits { queues, max_time_limit: Duration::from_mins(15), ..Limits::default() }
}

/// JSON as its text: a client's numbers, escapes and spaces are not only those that a library writes.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        select(vec![
            "null",
            "true",
            "1e2",
            "-0.0",
            "1.10",
            "123456789012345678901234567890",
            r#""\u00e9\u0000""#,
            r#""\ud800""#
        ])
        .prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| json!(text).to_string()),
    ];
    leaf.prop_recursive(4, 32, 4, |within| {
        let member = (any::<String>(), within.clone()).prop_map(|(name, value)| format!("{} : {value}", json!(name)));
        prop_oneof![
            prop::collection::vec(within, 0..4).prop_map(|items| format!("[{}]", items.join(" ,\n"))),
            prop::collection::vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(", "))),
        ]
    })
}

fn text_of(pattern: &'static str) -> BoxedStrategy<String> {
    pattern.prop_map(|text: String| json!(text).to_string()).boxed()
}

fn seconds_up_to(most: f64) -> BoxedStrategy<String> {
    (0.0..most).prop_map(|seconds| json!(seconds).to_string()).boxed()
}

fn any_time() -> BoxedStrategy<String> {
    (0..253_402_300_800_000_i64)
        .prop_map(|at| json!(from_unix_ms(at).map(protocol::timestamp::rfc3339)).to_string())
        .boxed()
}

/// A field's name with what it may be, mostly.
fn any_field(name: &'static str) -> impl Strategy<Value = String> {
    let items = || prop::collection::vec(any_json(), 0..4).prop_map(|items| format!("[{}]", items.join(",")));
    let members = || {
        let member = (any::<String>(), any_json()).prop_map(|(name, value)| format!("{}:{value}", json!(name)));
        prop::collection::vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(",")))
    };
    let good = match name {
        "task" => text_of("\\PC{1,50}"),
        "args" => items().boxed(),
        "kwargs" => members().boxed(),
        "queue" => text_of("default|mail"),
        "priority" => text_of("[0-9]").prop_map(|text| text.replace('"', "")).boxed(),
        "countdown" => seconds_up_to(1e8),
        "eta" => any_time(),
        "expires" => prop_oneof![seconds_up_to(1e8), any_time()].boxed(),
        "time_limit" => seconds_up_to(900.0),
        "soft_time_limit" => seconds_up_to(0.1),
        "task_id" => text_of("[A-Za-z0-9_-]{1,64}"),
        _ => (0..1000_u32, 0.0..1e6_f64, any::<bool>())
            .prop_map(|(max_retries, backoff, jitter)| {
                json!({"max_retries": max_retries, "backoff": backoff, "jitter": jitter}).to_string()
            })
            .boxed(),
    };
    prop_oneof![60 => good, 1 => any_json()].prop_map(move |value| format!("{} : {value}", json!(name)))
}

/// An object with a task, some of the other fields and now and then a strange one, or anything.
fn any_body() -> impl Strategy<Value = String> {
    const REST: [&str; 11] = [
        "args",
        "kwargs",
        "queue",
        "priority",
        "countdown",
        "eta",
        "expires",
        "time_limit",
        "soft_time_limit",
        "task_id",
        "retry",
    ];
    let rest = subsequence(&REST[..], 0..=REST.len())
        .prop_flat_map(|names| names.into_iter().map(|name| any_field(name).boxed()).collect::<Vec<_>>());
    let strange = prop::option::weighted(0.05, (any::<String>(), any_json()));
    let whole = (any_field("task"), rest, strange).prop_map(|(task, mut members, strange)| {
        members.push(task);
        members.extend(strange.map(|(name, value)| format!("{}: {value}", json!(name))));
        format!("{{{}}}", members.join(", "))
    });
    prop_oneof![30 => whole, 1 => any_json()]
}

/// Stores the task as if it were due, reads it as a worker would, and forgets it.
async fn sent(store: &Store, task: NewTask) -> Task {
    let (id, queue) = (task.id.clone(), task.queue.clone());
    store.insert(NewTask { eta: None, ..task }).await.unwrap();
    let due = store.due(&queue, 10, usize::MAX).await.unwrap();
    let [due] = &due[..] else { panic!("{due:?}") };
    let message = envelope(due, &Route { queue, foreign: false }, "results", "producer-1");
    let end = Reply::of(&id, Report::Revoked { reason: "read".to_owned() });
    store.record(Arc::default(), [Recorded { reply: end, at: NOW, redelivered: false }].into()).await.unwrap();
    store.forget(&id, &Whose::Anybody).await.unwrap();
    Task::decode(&message).unwrap()
}

/// JSON without the spaces between its tokens, which the store does not keep.
fn compact(json: &RawValue) -> String {
    let (mut in_string, mut is_escaped) = (false, false);
    let is_kept = |sign: &char| {
        in_string ^= *sign == '"' && !is_escaped;
        is_escaped = in_string && *sign == '\\' && !is_escaped;
        in_string || !sign.is_ascii_whitespace()
    };
    json.get().chars().filter(is_kept).collect()
}

#[test]
fn whatever_body_is_accepted_a_worker_reads_the_same_task() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::TempDir::new().unwrap());
    let url = format!("sqlite:{}", dir.path().join("errand.db").display());
    let store = runtime.block_on(Store::open(&url, &TaskTracker::new())).unwrap();
    let counts = std::cell::Cell::new((0, 0));
    let outcome = TestRunner::new(Config::with_source_file(file!())).run(&any_body(), |body| {
        let (accepted, refused) = counts.get();
        let task = match parse(body.as_bytes(), &limits(), NOW) {
            Ok(task) => task,
            Err(problem) => {
                counts.set((accepted, refused + 1));
                let problem = serde_json::to_value(problem).unwrap();
                let named = problem["errors"].as_array().is_some_and(|errors| !errors.is_empty());
                prop_assert!(named && problem["status"] == 422, "{body}: {problem}");
                return Ok(());
            }
        };
        counts.set((accepted + 1, refused));
        let read = runtime.block_on(sent(&store, task.clone()));
        prop_assert_eq!((&read.id, &read.task), (&task.id, &task.task));
        prop_assert_eq!(
            [&read.args, &read.kwargs].map(|json| compact(json)),
            [&task.args, &task.kwargs].map(|json| compact(json))
        );
        prop_assert_eq!((read.priority, read.retries, read.retry), (task.priority, 0, task.retry));
        let limits = [task.time_limit, task.soft_time_limit].map(|limit| limit.map(Duration::from_secs_f64));
        prop_assert_eq!([read.time_limit, read.soft_time_limit], limits);
        prop_assert_eq!((read.expires, read.eta), (task.expires.and_then(from_unix_ms), None));
        prop_assert_eq!(read.expires.is_some(), task.expires.is_some());
        prop_assert_eq!((read.since, read.publish, read.reply_to.as_deref()), (Some(NOW), Some(1), Some("results")));
        prop_assert!(read.packed_replies);
        // Handlers read it as a value.
        prop_assert!(serde_json::from_str::<Value>(read.args.get()).is_ok());
        Ok(())
    });
    outcome.unwrap();
    let (accepted, refused) = counts.get();
    assert!(accepted > 50 && refused > 20, "{accepted} were accepted and {refused} refused");
}
