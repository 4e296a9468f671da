//! Bad input has a clear answer that names the field, and leaves no row behind.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Pair, broker};
use serde_json::{Value, json};

use crate::rows;

const JSON: &str = "application/json";

async fn pair() -> Result<Pair> {
    Pair::on(broker::shared().await?).consumers(0).start().await
}

/// Unfinished tasks in the store, by the producer's own account.
async fn outstanding(pair: &Pair) -> Result<u64> {
    pair.client().get_path("/readyz").await?.body["outstanding"].as_u64().context("no count")
}

#[tokio::test]
async fn every_bad_submit_is_a_problem_and_no_row() -> Result<()> {
    let pair = pair().await?;
    let big = json!({"task": "echo", "args": ["x".repeat(300_000)]}).to_string();
    let deep = format!(r#"{{"task": "echo", "args": {}1{}}}"#, "[".repeat(100), "]".repeat(100));
    let brackets = "[".repeat(100_000);
    let cases = [
        (JSON, "", 400, None),
        (JSON, "{\"task\": ", 400, None),
        (JSON, r#"{"task": "echo", "args": [NaN]}"#, 400, None),
        (JSON, brackets.as_str(), 400, None),
        ("text/plain", r#"{"task": "echo"}"#, 415, None),
        ("application/x-www-form-urlencoded", "task=echo", 415, None),
        (JSON, big.as_str(), 413, None),
        (JSON, "[]", 422, Some("")),
        (JSON, "{}", 422, Some("/task")),
        (JSON, r#"{"task": "a\nb"}"#, 422, Some("/task")),
        (JSON, r#"{"task": "echo", "args": 1}"#, 422, Some("/args")),
        (JSON, deep.as_str(), 422, Some("/args")),
        (JSON, r#"{"task": "echo", "args": [["\ud800"]]}"#, 422, Some("/args")),
        (JSON, r#"{"task": "echo", "kwargs": {"s": "\udc00"}}"#, 422, Some("/kwargs")),
        (JSON, r#"{"task": "echo", "kwargs": {"\ud800": 1}}"#, 422, Some("/kwargs")),
        (JSON, r#"{"task": "\ud800"}"#, 422, Some("/task")),
        (JSON, r#"{"task": "echo", "\ud800": 1}"#, 422, Some("")),
        (JSON, "{\"task\": \"a\0b\"}", 400, None),
        (JSON, r#"{"task": "a\u0000b"}"#, 422, Some("/task")),
        (JSON, r#"{"task": "echo", "queue": "nowhere"}"#, 422, Some("/queue")),
        (JSON, r#"{"task": "echo", "priority": "high"}"#, 422, Some("/priority")),
        (JSON, r#"{"task": "echo", "eta": "2026-11-20T15:00:00Z", "countdown": 1}"#, 422, Some("/countdown")),
        (JSON, r#"{"task": "echo", "expires": "soon"}"#, 422, Some("/expires")),
        (JSON, r#"{"task": "echo", "time_limit": 3600}"#, 422, Some("/time_limit")),
        (JSON, r#"{"task": "echo", "task_id": "../etc"}"#, 422, Some("/task_id")),
        (JSON, r#"{"task": "echo", "retry": {"max_retries": 1.5}}"#, 422, Some("/retry")),
        (JSON, r#"{"task": "echo", "prioriti": 1}"#, 422, Some("/prioriti")),
    ];
    for (content_type, body, status, pointer) in cases {
        let shown: String = body.chars().take(80).collect();
        let answer = pair.client().post(content_type, body).await.with_context(|| shown.clone())?;
        assert_eq!(answer.status, status, "{shown}: {}", answer.text);
        assert_problem(&answer.body, status, answer.header("content-type"));
        let named = answer.body["errors"][0]["pointer"].as_str();
        assert_eq!(named, pointer, "{shown}: {}", answer.text);
    }
    assert_eq!(rows::count(pair.store()).await?, 0);
    pair.stop().await
}

fn assert_problem(body: &Value, status: u16, content_type: Option<&str>) {
    assert_eq!(content_type, Some("application/problem+json"), "{body}");
    assert_eq!(body["status"], status);
    for field in ["type", "title", "detail"] {
        assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {body}");
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_problems_too() -> Result<()> {
    let pair = pair().await?;
    let long = format!("/v1/tasks/{}", "x".repeat(60_000));
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("GET", &long, 404),
        ("GET", "/v1/tasks/%ff", 404),
        ("GET", "/v1/tasks/a%00b/events", 404),
        ("GET", "/v1/queues/%ed%a0%80", 404),
        ("GET", "/v1/tasks?task=%00", 400),
        ("GET", "/v1/tasks?queue=", 400),
        ("DELETE", "/v1/tasks", 405),
        ("POST", "/v1/tasks/x", 405),
        ("POST", "/livez", 405),
    ] {
        let answer = pair.client().send(pair.client().request(method.parse()?, path)).await?;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{method} {path}");
        assert_problem(&answer.body, status, answer.header("content-type"));
    }
    let head = pair.client().send(pair.client().request(reqwest::Method::HEAD, "/readyz")).await?;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    Ok(())
}

#[tokio::test]
async fn an_id_that_is_taken_is_a_conflict_and_changes_nothing() -> Result<()> {
    let pair = pair().await?;
    let first = pair.client().submit(&json!({"task": "echo", "args": [1], "task_id": "mine"})).await?;
    assert_eq!(first.status, 202);
    let second = pair.client().submit(&json!({"task": "echo", "args": [2], "task_id": "mine"})).await?;
    assert_eq!((second.status, &second.body["errors"][0]["pointer"]), (409, &json!("/task_id")));
    assert_eq!(pair.client().get("mine").await?["args"], json!([1]));
    assert_eq!(rows::count(pair.store()).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_why_its_body_is_refused() -> Result<()> {
    let pair = pair().await?;
    let mut request = b"POST /v1/tasks HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n".to_vec();
    request.extend(format!("content-length: {}\r\n\r\n", 4_000_000).bytes());
    request.extend(vec![b'x'; 4_000_000]);
    let answer = pair.client().raw(&request, Duration::from_secs(5)).await?;
    let answer = String::from_utf8_lossy(&answer);
    assert_eq!(rows::count(pair.store()).await?, 0);
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body-too-large"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_compressed_body_is_refused_unread() -> Result<()> {
    let pair = pair().await?;
    let request = pair.client().request(reqwest::Method::POST, "/v1/tasks").header("content-type", JSON);
    let answer = pair.client().send(request.header("content-encoding", "gzip").body(vec![0x1f, 0x8b])).await?;
    assert_eq!(answer.status, 415);
    assert_problem(&answer.body, 415, answer.header("content-type"));
    Ok(())
}

#[tokio::test]
async fn beyond_the_cap_submits_wait_outside_and_scheduled_ones_do_not_count() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).producer_env("OUTBOX_CAP", "2").start().await?;
    let later = json!({"task": "echo", "args": [0], "countdown": 600});
    for _ in 0..3 {
        pair.client().accepted(&later).await?;
    }
    for _ in 0..2 {
        pair.client().accepted(&json!({"task": "echo", "args": [0]})).await?;
    }
    let refused = pair.client().submit(&json!({"task": "echo", "args": [0]})).await?;
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true), "{}", refused.text);
    assert_eq!(pair.client().get_path("/readyz").await?.status, 503);
    assert_eq!((outstanding(&pair).await?, rows::count(pair.store()).await?), (2, 5));
    Ok(())
}

#[test]
fn a_bad_setting_is_one_line_that_names_it_and_hides_the_password() -> Result<()> {
    let cases = [
        ("producer", "QUEUES", "a.b"),
        ("producer", "AMQP_URL", "http://alice:s3cret@broker"),
        ("producer", "DATABASE_URL", "sqlite:/nonexistent/errand.db"),
        ("producer", "FOREIGN_QUEUES", "python"),
        ("consumer", "TIME_LIMIT", "1h"),
        ("consumer", "AMQP_URL", "amqp:alice:s3cret@broker"),
    ];
    for (binary, name, value) in cases {
        let run = std::process::Command::new(e2e::service::built(binary)?).env_clear().env(name, value).output()?;
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!((run.status.code(), said.lines().count()), (Some(1), 1), "{name}: {said}");
        assert!(said.contains(name) && !said.contains("s3cret"), "{name}: {said}");
    }
    Ok(())
}
