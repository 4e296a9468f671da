//! The life of a task over HTTP: accepted, started with progress, ended, read; retried, given up, expired.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Client, Pair, broker, until};
use serde_json::{Value, json};

pub(crate) const SOON: Duration = Duration::from_mins(1);

fn at(task: &Value, field: &str) -> String {
    task[field].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_task_is_pending_then_started_with_progress_then_a_success() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let wish = json!({"task": "long_running_task", "kwargs": {"data": 21, "seconds": 2}});
    let accepted = pair.client().submit(&wish).await?;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let id = at(&accepted.body, "task_id");
    assert_eq!(accepted.header("location"), Some(format!("/v1/tasks/{id}").as_str()));
    let pending = pair.client().get(&id).await?;
    assert_eq!(pending["state"], "PENDING");
    assert_eq!(pending["kwargs"], json!({"data": 21, "seconds": 2}));
    let why = |task: &Value| at(task, "reason").contains("no worker consumes this queue");
    pair.client().await_state(&id, why, SOON).await.context("the reason names the missing worker")?;

    let mut pair = pair;
    let worker = [("WORKER_NAME", "w1@test")];
    pair.start_consumer(&worker).await?;
    let progressed = |task: &Value| task["state"] == "STARTED" && task["progress"]["current"] == 1;
    let started = pair.client().await_state(&id, progressed, SOON).await?;
    assert_eq!(started["progress"]["total"], 2);
    assert_eq!((&started["worker"], &started["reason"]), (&json!("w1@test"), &Value::Null));
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["result"], &ended["retries"]), (&json!("SUCCESS"), &json!(42), &json!(0)));
    assert_eq!(ended["worker"], "w1@test");
    let times = ["created_at", "started_at", "finished_at"].map(|field| at(&ended, field));
    assert!(times.is_sorted() && times[0].ends_with('Z'), "{times:?}");
    pair.stop().await
}

#[tokio::test]
async fn an_id_never_accepted_is_unknown() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    for id in ["0190a000-0000-7000-8000-000000000000", "nope", "%00"] {
        let answer = pair.client().get_path(&format!("/v1/tasks/{id}")).await?;
        assert_eq!(answer.status, 404, "{id}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    Ok(())
}

#[tokio::test]
async fn a_flaky_task_shows_retry_with_its_next_eta_and_then_succeeds() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let wish = json!({"task": "flaky", "args": [2], "retry": {"backoff": 1.2, "jitter": false}});
    let id = pair.client().accepted(&wish).await?;
    for retries in [0, 1] {
        let retrying = |task: &Value| task["state"] == "RETRY" && task["retries"] == retries;
        let task = pair.client().await_state(&id, retrying, SOON).await?;
        let (eta, created) = (at(&task, "eta"), at(&task, "created_at"));
        assert!(eta > created, "next attempt at {eta}, created at {created}");
        assert_eq!(task["error"]["type"], "Flaky");
        assert!(at(&task, "reason").contains("the next is due at"), "{task:#}");
    }
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["retries"], &ended["error"]), (&json!("SUCCESS"), &json!(2), &Value::Null));
    pair.stop().await
}

#[tokio::test]
async fn a_task_that_always_fails_ends_as_failure_and_as_a_dead_letter() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("WORKER_NAME", "w1@test").start().await?;
    let long = "é".repeat(100_000);
    for message in ["no way", &long] {
        let wish = json!({"task": "always_fails", "args": [message], "retry": {"max_retries": 1, "backoff": 0}});
        let id = pair.client().accepted(&wish).await?;
        let ended = pair.client().await_terminal(&id, SOON).await?;
        assert_eq!((&ended["state"], &ended["retries"]), (&json!("FAILURE"), &json!(1)));
        assert_eq!(ended["error"]["type"], "AlwaysFails");
        assert_eq!(ended["error"]["message"], message);
        let letter = dead_letter_of(&pair, &id).await?;
        assert_eq!((&letter["task"], &letter["errand-dead-type"]), (&json!("always_fails"), &json!("AlwaysFails")));
        assert_eq!((&letter["errand-dead-attempts"], &letter["errand-dead-worker"]), (&json!(2), &json!("w1@test")));
        assert_eq!(letter["errand-dead-queue"], "default");
        let told = at(&letter, "errand-dead-message");
        assert!(message.starts_with(&told) && told.len() > 5, "{} bytes", told.len());
        assert!(at(&letter, "errand-dead-at").ends_with('Z'));
    }
    pair.stop().await
}

/// The headers of the dead letter of a task.
async fn dead_letter_of(pair: &Pair, id: &str) -> Result<Value> {
    let letters = pair.broker().management.peek(pair.vhost(), "errand.dead-letters", 100).await?;
    let letter = letters.iter().find(|letter| letter.headers["id"] == id);
    letter.map(|letter| letter.headers.clone()).context("the task has no dead letter")
}

#[tokio::test]
async fn what_can_never_run_fails_at_once() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let cases = [
        (json!({"task": "no_such_task"}), "NotRegistered", "no_such_task"),
        (json!({"task": "add", "args": [1]}), "InvalidArguments", "y"),
        (json!({"task": "add", "args": [1, 2, 3]}), "InvalidArguments", "3"),
        (json!({"task": "add", "kwargs": {"x": 1, "y": "two"}}), "InvalidArguments", "y"),
        (json!({"task": "add", "args": [1], "kwargs": {"x": 1, "y": 2}}), "InvalidArguments", "x"),
    ];
    // Before a worker has said what it takes: afterwards they would be refused.
    let mut accepted = Vec::new();
    for (wish, kind, named) in cases {
        accepted.push((pair.client().accepted(&wish).await?, kind, named));
    }
    pair.start_consumer(&[]).await?;
    for (id, kind, named) in accepted {
        let ended = pair.client().await_terminal(&id, SOON).await?;
        assert_eq!((&ended["state"], &ended["retries"]), (&json!("FAILURE"), &json!(0)), "{ended:#}");
        assert_eq!(ended["error"]["type"], kind);
        assert!(at(&ended["error"], "message").contains(named), "{ended:#}");
        dead_letter_of(&pair, &id).await?;
    }
    pair.stop().await
}

#[tokio::test]
async fn panics_and_time_limits_end_the_task_and_not_the_worker() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).env("RUST_LOG", "info").consumer_env("ENABLE_FAULT_TASKS", "true");
    let pair = pair.consumer_env("MAX_RESULT_BYTES", "1000").start().await?;
    let none = json!({"max_retries": 0});
    let cases = [
        (json!({"task": "panic", "retry": none}), "Panic"),
        (json!({"task": "sleep", "args": [30], "time_limit": 0.3}), "TimeLimitExceeded"),
        (json!({"task": "sleep", "args": [30], "soft_time_limit": 0.3, "time_limit": 20}), "SoftTimeLimitExceeded"),
        (json!({"task": "echo", "args": ["x".repeat(2000)]}), "ResultTooLarge"),
    ];
    for (wish, kind) in cases {
        let id = pair.client().accepted(&wish).await?;
        let ended = pair.client().await_terminal(&id, SOON).await?;
        assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!(kind)), "{ended:#}");
    }
    let id = pair.client().accepted(&json!({"task": "add", "args": [1, 2]})).await?;
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["result"], 3);
    pair.stop().await
}

#[tokio::test]
async fn a_countdown_is_waited_out_and_an_expiry_revokes() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let later = pair.client().accepted(&json!({"task": "add", "args": [1, 2], "countdown": 3})).await?;
    let brief = json!({"task": "add", "args": [1, 2], "countdown": 60, "expires": 1});
    let brief = pair.client().accepted(&brief).await?;
    assert!(at(&pair.client().get(&later).await?, "reason").contains("not due until"));
    let revoked = pair.client().await_terminal(&brief, SOON).await?;
    assert_eq!((&revoked["state"], &revoked["error"]["message"]), (&json!("REVOKED"), &json!("expired")));
    let ended = pair.client().await_terminal(&later, SOON).await?;
    assert_eq!((&ended["state"], &ended["result"]), (&json!("SUCCESS"), &json!(3)));
    let waited = millis(&at(&ended, "finished_at"))? - millis(&at(&ended, "created_at"))?;
    println!("countdown of 3 s: ended after {waited} ms");
    assert!((3_000..5_000).contains(&waited), "ended after {waited} ms");
    pair.stop().await
}

#[tokio::test]
async fn a_wait_of_several_hops_is_waited_out() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    // Two seconds in one delay queue, and then one more in another.
    let wish = json!({"task": "flaky", "args": [1], "retry": {"backoff": 3, "jitter": false}});
    let id = pair.client().accepted(&wish).await?;
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["retries"]), (&json!("SUCCESS"), &json!(1)));
    let waited = millis(&at(&ended, "finished_at"))? - millis(&at(&ended, "created_at"))?;
    assert!(waited >= 3_000, "ended after {waited} ms");
    pair.stop().await
}

#[tokio::test]
async fn what_is_no_task_of_ours_becomes_a_dead_letter_with_its_reason() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let nothing = r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#;
    let chord = r#"{"chord": {"task": "add", "args": [], "kwargs": {}, "options": {}}}"#;
    let cases = [
        ("short", "[[1, 2], {}]".to_owned(), "DecodeError"),
        ("nan", format!("[[NaN, 2], {{}}, {nothing}]"), "DecodeError"),
        ("chord", format!("[[1, 2], {{}}, {chord}]"), "UnsupportedWorkflow"),
    ];
    for (id, body, kind) in cases {
        let properties = json!({"content_type": "application/json", "headers": {"task": "add", "id": id}});
        let management = &pair.broker().management;
        assert!(management.publish(pair.vhost(), "errand.tasks", "default", &properties, &body).await?);
        let letter = until(id, SOON, async || dead_letter_of(&pair, id).await).await?;
        assert_eq!(letter["errand-dead-type"], kind, "{letter:#}");
    }
    pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 0, SOON).await?;
    pair.stop().await
}

#[tokio::test]
async fn a_task_that_expires_in_the_queue_is_revoked_by_the_worker() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let id = pair.client().accepted(&json!({"task": "add", "args": [1, 2], "expires": 6})).await?;
    pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 1, SOON).await?;
    let expires = millis(&at(&pair.client().get(&id).await?, "expires"))?;
    let late = |_: &Value| now_ms() > expires;
    pair.client().await_state(&id, late, SOON).await?;
    pair.start_consumer(&[]).await?;
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["error"]["message"]), (&json!("REVOKED"), &json!("expired")));
    pair.stop().await
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds of an RFC 3339 time in UTC.
fn millis(text: &str) -> Result<i64> {
    let at = humantime::parse_rfc3339(text)?.duration_since(std::time::UNIX_EPOCH)?;
    Ok(i64::try_from(at.as_millis())?)
}

/// Waits until the task is kept no more.
pub(crate) async fn await_forgotten(client: &Client, id: &str) -> Result<()> {
    until("the end of its keeping", SOON, async || {
        let answer = client.get_path(&format!("/v1/tasks/{id}")).await?;
        anyhow::ensure!(answer.status == 404, "{}", answer.text);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_ended_task_is_forgotten_after_its_time() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).producer_env("RESULT_TTL", "1s").start().await?;
    let id = pair.client().accepted(&json!({"task": "add", "args": [1, 2]})).await?;
    await_forgotten(pair.client(), &id).await?;
    pair.stop().await
}
