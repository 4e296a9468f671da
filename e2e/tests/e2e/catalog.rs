//! What is known of queues, workers and task types, and what follows from it for a submit.

use anyhow::{Result, ensure};
use e2e::{Pair, broker, until};
use serde_json::{Value, json};

use crate::life::SOON;

/// Reads the path until it is as wanted.
async fn await_answer(pair: &Pair, path: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    until(path, SOON, async || {
        let answer = pair.client().get_path(path).await?;
        ensure!(answer.status == 200 && wanted(&answer.body), "{} {:#}", answer.status, answer.body);
        Ok(answer.body)
    })
    .await
}

fn knows_tasks(types: &Value) -> bool {
    types["task_types"].as_array().is_some_and(|types| types.iter().any(|task| task["workers"] == 1))
}

/// The task types, once the worker's announcement of them was heard. Until then no arguments are checked.
pub(crate) async fn announced(pair: &Pair) -> Result<Value> {
    await_answer(pair, "/v1/task-types", knows_tasks).await
}

fn of<'a>(types: &'a Value, name: &str) -> Option<&'a Value> {
    types["task_types"].as_array()?.iter().find(|task| task["task"] == name)
}

#[tokio::test]
async fn a_living_worker_is_shown_with_what_it_runs() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("WORKER_NAME", "w1@test");
    let mut pair = pair.consumer_env("CONCURRENCY", "7").start().await?;
    let id = pair.client().accepted(&json!({"task": "sleep", "args": [8]})).await?;
    let runs = |answer: &Value| answer["workers"][0]["running"][0]["task_id"] == id.as_str();
    let shown = await_answer(&pair, "/v1/workers", runs).await?;
    let worker = &shown["workers"][0];
    assert_eq!(shown["workers"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&worker["worker"], &worker["concurrency"], &worker["queues"]),
        (&json!("w1@test"), &json!(7), &json!(["default"]))
    );
    assert_eq!((&worker["stopping"], &worker["running"][0]["retries"]), (&json!(false), &json!(0)));
    assert!(worker["pid"].as_u64() > Some(0) && worker["last_seen"].as_str().is_some_and(|at| at.ends_with('Z')));
    assert!(worker["tasks"].as_array().is_some_and(|tasks| tasks.contains(&json!("sleep"))));
    let queue = await_answer(&pair, "/v1/queues/default", |queue| queue["running"] == 1).await?;
    assert_eq!((&queue["consumers"], &queue["waiting"], &queue["paused"]), (&json!(1), &json!(0), &json!(false)));
    let status = pair.consumers[0].terminate(SOON).await?;
    assert!(status.success());
    await_answer(&pair, "/v1/workers", |answer| answer["workers"] == json!([])).await?;
    Ok(())
}

#[tokio::test]
async fn queues_say_what_waits_where_and_others_are_unknown() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).producer_env("QUEUES", "default,mail,py");
    let pair = pair.producer_env("FOREIGN_QUEUES", "py").producer_env("RELAY_WINDOW", "2").start().await?;
    for number in 0..5 {
        pair.client().accepted(&json!({"task": "add", "args": [number, 1]})).await?;
    }
    let last = pair.client().accepted(&json!({"task": "add", "args": [9, 9]})).await?;
    pair.client().accepted(&json!({"task": "add", "queue": "mail", "countdown": 600})).await?;
    let queue = await_answer(&pair, "/v1/queues/default", |queue| queue["queued"] == 2).await?;
    let counts =
        ["scheduled", "waiting", "queued", "running", "retrying", "consumers"].map(|name| queue[name].as_u64());
    assert_eq!(counts, [0, 4, 2, 0, 0, 0].map(Some), "{queue:#}");
    assert!(queue["oldest_waiting"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)), "{queue:#}");
    let all = await_answer(&pair, "/v1/queues", |_| true).await?;
    let named =
        |field: &str| all["queues"].as_array().unwrap().iter().map(|queue| queue[field].clone()).collect::<Vec<_>>();
    assert_eq!(
        (named("queue"), named("foreign")),
        (vec![json!("default"), json!("mail"), json!("py")], vec![json!(false), json!(false), json!(true)])
    );
    assert_eq!(named("scheduled"), [0, 1, 0]);
    assert_eq!(pair.client().get_path("/v1/queues/other").await?.status, 404);
    let unserved = |task: &Value| task["reason"] == "no worker consumes this queue";
    pair.client().await_state(&last, unserved, SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_task_in_line_says_how_many_are_ahead() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("CONCURRENCY", "1").producer_env("RELAY_WINDOW", "1");
    let pair = pair.start().await?;
    let first = pair.client().accepted(&json!({"task": "sleep", "args": [5]})).await?;
    pair.client().await_state(&first, |task| task["state"] == "STARTED", SOON).await?;
    let mut last = String::new();
    for _ in 0..3 {
        last = pair.client().accepted(&json!({"task": "add", "args": [1, 2]})).await?;
    }
    let told = |task: &Value| task["reason"] == "waiting for its turn to be published, with 2 ahead of it";
    pair.client().await_state(&last, told, SOON).await?;
    pair.client().await_terminal(&last, SOON).await?;
    pair.stop().await
}

#[tokio::test]
async fn what_tasks_take_is_remembered_over_restarts() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).worker("custom_worker").consumers(0).start().await?;
    let wish = json!({"task": "flaky", "countdown": 600});
    let before = pair.client().submit(&wish).await?.body;
    pair.start_consumer(&[]).await?;
    let types = announced(&pair).await?;
    println!(
        "{} types, before any the default of {} retries",
        types["task_types"].as_array().map_or(0, Vec::len),
        before["max_retries"]
    );
    let kept = types["task_types"].clone();
    let status = pair.consumers[0].terminate(SOON).await?;
    assert!(status.success());
    pair.restart_producer().await?;
    let again = await_answer(&pair, "/v1/task-types", |_| true).await?;
    for task in kept.as_array().unwrap() {
        let mut expected = task.clone();
        expected["workers"] = json!(0);
        assert_eq!(of(&again, task["task"].as_str().unwrap()), Some(&expected));
    }
    Ok(())
}

#[tokio::test]
async fn arguments_that_no_living_worker_takes_are_refused_by_pointer() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let types = announced(&pair).await?;
    assert_eq!(of(&types, "add").map(|add| &add["positional"]), Some(&json!(["x", "y"])));
    for (wish, pointer) in [
        (json!({"task": "add", "args": [1]}), "/kwargs/y"),
        (json!({"task": "add", "args": [1, 2, 3]}), "/args"),
        (json!({"task": "add", "args": [1, "s3cret"]}), "/args/1"),
        (json!({"task": "add", "kwargs": {"x": 1, "y": "s3cret"}}), "/kwargs/y"),
        (json!({"task": "add", "args": [1], "kwargs": {"x": 1, "y": 2}}), "/kwargs/x"),
        (json!({"task": "add", "args": [1, 2], "kwargs": {"z": 2}}), "/kwargs/z"),
    ] {
        let answer = pair.client().submit(&wish).await?;
        assert_eq!((answer.status, &answer.body["errors"][0]["pointer"]), (422, &json!(pointer)), "{}", answer.text);
        assert!(!answer.text.contains("s3cret"), "{}", answer.text);
    }
    let unknown = pair.client().accepted(&json!({"task": "no_such_task", "args": [1]})).await?;
    assert_eq!(pair.client().await_terminal(&unknown, SOON).await?["error"]["type"], "NotRegistered");
    pair.stop().await
}

#[tokio::test]
async fn only_announced_tasks_are_accepted_when_that_is_required() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).producer_env("REQUIRE_KNOWN_TASKS", "true");
    let mut pair = pair.start().await?;
    let wish = json!({"task": "add", "args": [1, 2]});
    let refused = pair.client().submit(&wish).await?;
    assert_eq!((refused.status, &refused.body["errors"][0]["pointer"]), (422, &json!("/task")));
    pair.start_consumer(&[]).await?;
    announced(&pair).await?;
    assert_eq!(pair.client().submit(&wish).await?.status, 202);
    assert_eq!(pair.client().submit(&json!({"task": "ad"})).await?.status, 422);
    pair.stop().await
}

const TAKES: [(&str, &[&str]); 8] = [
    ("add", &["x", "y"]),
    ("echo", &["value"]),
    ("always_fails", &["message"]),
    ("flaky", &["failures"]),
    ("long_running_task", &["data", "seconds"]),
    ("sleep", &["seconds"]),
    ("cpu_bound", &["n"]),
    ("process_file", &["source", "kind", "delimiter", "header"]),
];

/// Calls of tasks without side effects, many of them wrong in some way.
fn calls() -> Vec<Value> {
    let values = json!([
        1, 2, 7.5, 10.0, -1, 1e30, u64::MAX, true, false, null, "a", "", "csv", "0.01", [1], [], {"csv": null}, {},
    ]);
    let values = values.as_array().cloned().unwrap_or_default();
    // A generator of its own: the same calls in every run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap_or(0) % below
    };
    let mut calls = Vec::new();
    for _ in 0..600 {
        let (task, names) = TAKES[next(TAKES.len())];
        let by_position = next(names.len() + 1) + usize::from(next(16) == 0);
        let args: Vec<&Value> = (0..by_position).map(|_| &values[next(values.len())]).collect();
        let mut kwargs = serde_json::Map::new();
        for name in names.iter().skip(by_position).chain(if next(8) == 0 { ["more"].as_slice() } else { &[] }) {
            if next(8) > 0 {
                kwargs.insert((*name).to_owned(), values[next(values.len())].clone());
            }
        }
        calls.push(json!({"task": task, "args": args, "kwargs": kwargs, "time_limit": 1, "retry": {"max_retries": 0}}));
    }
    calls
}

#[tokio::test]
async fn what_a_worker_takes_is_never_refused() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let calls = calls();
    let mut ids = Vec::new();
    for call in &calls {
        ids.push(pair.client().accepted(call).await?);
    }
    pair.start_consumer(&[]).await?;
    announced(&pair).await?;
    let (mut taken, mut refused, mut let_through) = (0, 0, 0);
    for (call, id) in calls.iter().zip(&ids) {
        let ended = pair.client().await_terminal(id, SOON).await?;
        let fits = ended["error"]["type"] != "InvalidArguments";
        let mut again = call.clone();
        // Only the answer is wanted.
        again["countdown"] = json!(3600);
        let answer = pair.client().submit(&again).await?;
        assert!(!fits || answer.status == 202, "the worker took {call}, and then it was answered {}", answer.text);
        match (fits, answer.status) {
            (true, _) => taken += 1,
            (false, 422) => refused += 1,
            (false, _) => let_through += 1,
        }
    }
    println!(
        "of {} calls workers took {taken}; {refused} others were refused at the submit, {let_through} were not",
        calls.len()
    );
    assert!(taken > 50 && refused > 2 * let_through, "{taken} {refused} {let_through}");
    pair.stop().await
}
