//! Batches over HTTP: in one commit, whole or as far as they can be.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::client::Answer;
use e2e::{Client, Pair, broker, load};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::life::SOON;
use crate::rows;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

async fn post(client: &Client, query: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Result<Answer> {
    let request = client.request(Method::POST, &format!("/v1/tasks/batch{query}"));
    client.send(request.header("content-type", content_type).body(body)).await
}

fn echoes(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!({"task": "echo", "args": [number]})).collect()
}

fn pointers(answer: &Value) -> Vec<&str> {
    answer["errors"].as_array().into_iter().flatten().filter_map(|error| error["pointer"].as_str()).collect()
}

async fn pair() -> Result<Pair> {
    Pair::on(broker::shared().await?).consumers(0).start().await
}

#[tokio::test]
async fn a_thousand_tasks_in_one_request_all_run() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let lines: Vec<String> = echoes(1_000).iter().map(Value::to_string).collect();
    for (content_type, body) in [(JSON, json!(echoes(1_000)).to_string()), (NDJSON, lines.join("\n"))] {
        let start = Instant::now();
        let answer = post(pair.client(), "", content_type, body).await?;
        println!("{content_type}: 1,000 tasks accepted in {:?}", start.elapsed());
        assert_eq!(answer.status, 202, "{}", answer.text);
        let tasks = answer.body["tasks"].as_array().cloned().unwrap_or_default();
        let order: Vec<Option<u64>> = tasks.iter().map(|task| task["args"][0].as_u64()).collect();
        assert_eq!(order, (0..1_000).map(Some).collect::<Vec<_>>());
        let ids: Vec<String> =
            tasks.iter().map(|task| task["task_id"].as_str().unwrap_or_default().to_owned()).collect();
        let ends = load::await_all(pair.client().address(), &ids, 4, SOON).await?;
        assert_eq!(ends, [("SUCCESS".to_owned(), 1_000)].into());
    }
    pair.stop().await
}

#[tokio::test]
async fn one_bad_task_keeps_the_whole_batch_out_and_every_bad_one_is_named() -> Result<()> {
    let pair = pair().await?;
    pair.client().accepted(&json!({"task": "echo", "args": [0], "task_id": "taken"})).await?;
    let mut bad = echoes(20);
    bad[17] = json!({"task": "echo", "priority": 10});
    bad[3] = json!("echo");
    bad[5] = json!({"task": "echo", "task_id": "twice"});
    bad[6] = json!({"task": "echo", "task_id": "twice"});
    let answer = post(pair.client(), "", JSON, json!(bad).to_string()).await?;
    assert_eq!((answer.status, pointers(&answer.body)), (422, vec!["/3", "/6/task_id", "/17/priority"]));
    let mut taken = echoes(5);
    taken[2] = json!({"task": "echo", "task_id": "taken"});
    let answer = post(pair.client(), "?partial=false", JSON, json!(taken).to_string()).await?;
    assert_eq!((answer.status, pointers(&answer.body)), (422, vec!["/2/task_id"]), "{}", answer.text);
    assert_eq!(rows::count(pair.store()).await?, 1);
    bad[9] = json!({"task": "echo", "task_id": "taken"});
    let answer = post(pair.client(), "?partial=true", JSON, json!(bad).to_string()).await?;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let rejected = answer.body["rejected"].as_array().cloned().unwrap_or_default();
    let named: Vec<_> = rejected.iter().map(|one| (one["index"].as_u64(), pointers(one))).collect();
    let expected = [(3, "/3"), (6, "/6/task_id"), (9, "/9/task_id"), (17, "/17/priority")];
    assert_eq!(named, expected.map(|(index, pointer)| (Some(index), vec![pointer])));
    let accepted = answer.body["accepted"].as_array().cloned().unwrap_or_default();
    assert_eq!((accepted.len(), rows::count(pair.store()).await?), (16, 17));
    let stands = |one: &Value| one["index"] == one["task"]["args"][0] || one["task"]["task_id"] == "twice";
    assert!(accepted.iter().all(stands), "{accepted:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_batch_is_a_problem() -> Result<()> {
    let pair = pair().await?;
    let large = "x".repeat(8 * 1024 * 1024 + 1);
    let cases = [
        ("", JSON, "[{}", 400),
        ("", JSON, "{}", 422),
        ("", JSON, "[]", 422),
        ("", NDJSON, "\n\n", 422),
        ("", "text/plain", "[]", 415),
        ("", JSON, large.as_str(), 413),
        ("?partial=yes", JSON, r#"[{"task": "echo"}]"#, 400),
        ("?parts=true", JSON, r#"[{"task": "echo"}]"#, 400),
    ];
    for (query, content_type, body, status) in cases {
        let answer = post(pair.client(), query, content_type, body.to_owned()).await?;
        assert_eq!(answer.status, status, "{query} {content_type}: {}", answer.text);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let keyed = pair.client().request(Method::POST, "/v1/tasks/batch").header("idempotency-key", "a");
    assert_eq!(pair.client().send(keyed.json(&echoes(1))).await?.status, 400);
    assert_eq!(pair.client().get_path("/v1/tasks/batch").await?.status, 404, "an id like any other");
    pair.client().accepted(&json!({"task": "echo", "task_id": "batch"})).await?;
    assert_eq!(pair.client().get("batch").await?["task_id"], "batch");
    assert_eq!(rows::count(pair.store()).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_batch_counts_whole_against_the_cap() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).producer_env("OUTBOX_CAP", "10").start().await?;
    let answer = post(pair.client(), "", JSON, json!(echoes(11)).to_string()).await?;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.text);
    assert_eq!(rows::count(pair.store()).await?, 0);
    assert_eq!(post(pair.client(), "", JSON, json!(echoes(10)).to_string()).await?.status, 202);
    Ok(())
}

#[tokio::test]
async fn a_producer_killed_in_a_batch_has_stored_all_of_it_or_nothing() -> Result<()> {
    let mut pair = pair().await?;
    let wide: Vec<Value> = (0..1_000).map(|_| json!({"task": "echo", "args": ["x".repeat(4_000)]})).collect();
    let body = json!(wide).to_string();
    let start = Instant::now();
    assert_eq!(post(pair.client(), "", JSON, body.clone()).await?.status, 202);
    let usual = start.elapsed();
    let (mut before, mut stored) = (1_000, 0);
    for round in 0..8_u32 {
        let request = post(pair.client(), "", JSON, body.clone());
        let answered = {
            let mut request = std::pin::pin!(request);
            // Spread over the whole of it, and a little beyond.
            let moment = usual.mul_f64(f64::from(round + 1) / 7.0) + Duration::from_millis(1);
            tokio::time::timeout(moment, &mut request).await.is_ok_and(|answer| answer.is_ok_and(|it| it.status == 202))
        };
        pair.producer.kill()?;
        let rows = rows::count(pair.store()).await?;
        assert!([0, 1_000].contains(&(rows - before)), "{} rows of a batch of 1,000", rows - before);
        assert!(!answered || rows - before == 1_000, "answered and not stored");
        stored += i32::from(rows > before);
        before = rows;
        pair.restart_producer().await?;
    }
    println!("a batch takes {usual:?}; of 8 killed ones {stored} were stored whole, the others not at all");
    Ok(())
}

#[tokio::test]
async fn a_task_called_batch_is_read_and_forgotten_like_any_other() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let ask = async |method| pair.client().send(pair.client().request(method, "/v1/tasks/batch")).await;
    for method in [Method::GET, Method::HEAD, Method::DELETE] {
        assert_eq!(ask(method.clone()).await?.status, 404, "{method}");
    }
    let wish = json!({"task": "echo", "args": [1], "task_id": "batch", "countdown": 600});
    assert_eq!(pair.client().accepted(&wish).await?, "batch");
    assert_eq!(ask(Method::DELETE).await?.status, 409, "it has not ended");
    let revoke = pair.client().request(Method::POST, "/v1/tasks/batch/revoke");
    assert_eq!(pair.client().send(revoke).await?.body["state"], "REVOKED");
    assert_eq!(ask(Method::GET).await?.body["task_id"], "batch");
    assert_eq!((ask(Method::HEAD).await?.status, ask(Method::DELETE).await?.status), (200, 204));
    assert_eq!(ask(Method::GET).await?.status, 404);
    assert_eq!(ask(Method::PUT).await?.header("allow"), Some("POST"));
    pair.stop().await
}

#[tokio::test]
async fn batches_that_are_sent_slowly_hold_up_no_other() -> Result<()> {
    let pair = pair().await?;
    let head =
        "POST /v1/tasks/batch HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n[";
    let mut slow = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(pair.client().address()).await?;
        stream.write_all(head.as_bytes()).await?;
        slow.push(stream);
    }
    let answer = post(pair.client(), "", JSON, json!(echoes(3)).to_string()).await?;
    assert_eq!(answer.status, 202, "{:?}", answer.body);
    drop(slow);
    pair.stop().await
}
