//! Pausing, resuming and purging a queue.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use e2e::client::{Answer, is_terminal};
use e2e::{Client, Pair, broker, load, until};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::life::SOON;
use crate::revoke::{ends, runs};

async fn post(client: &Client, queue: &str, verb: &str) -> Result<Answer> {
    client.send(client.request(Method::POST, &format!("/v1/queues/{queue}/{verb}"))).await
}

fn time(task: &Value, field: &str) -> Result<SystemTime> {
    let text = task[field].as_str().with_context(|| format!("no {field} in {task:#}"))?;
    Ok(humantime::parse_rfc3339(text)?)
}

/// A task of the other queue that is due after so many seconds and ends.
async fn pass(client: &Client, seconds: f64) -> Result<()> {
    let wish = json!({"task": "echo", "args": [1], "queue": "other", "countdown": seconds});
    let id = client.accepted(&wish).await?;
    assert_eq!(client.await_terminal(&id, SOON).await?["state"], "SUCCESS");
    Ok(())
}

/// Those that have not ended.
async fn open(client: &Client, ids: &[String]) -> Result<Vec<Value>> {
    let mut open = Vec::new();
    for part in ids.chunks(200) {
        let tasks = try_join_all(part.iter().map(|id| client.get(id))).await?;
        open.extend(tasks.into_iter().filter(|task| !is_terminal(task)));
    }
    Ok(open)
}

#[tokio::test]
async fn a_paused_queue_stops_within_a_second_and_stays_so_over_restarts() -> Result<()> {
    const SECOND: Duration = Duration::from_secs(1);
    let pair = Pair::on(broker::shared().await?).env("QUEUES", "default,other").consumer_env("CONCURRENCY", "8");
    let mut pair = pair.producer_env("RELAY_WINDOW", "100").start().await?;
    let ids = load::submit(pair.client().address(), 200, 4, |_| json!({"task": "sleep", "args": [0.2]})).await?.ids;
    pair.client().await_terminal(&ids[10], SOON).await?;
    let paused = post(pair.client(), "default", "pause").await?;
    assert_eq!((paused.status, &paused.body["paused"]), (200, &json!(true)), "{}", paused.text);
    let paused_at = time(&paused.body, "paused_at")?;
    pass(pair.client(), 1.5).await?;
    let waiting = open(pair.client(), &ids).await?;
    let before = ids.len() - waiting.len();
    assert_eq!(post(pair.client(), "default", "pause").await?.body, paused.body, "paused since the first time");
    for open in &waiting {
        assert_eq!((&open["state"], &open["reason"]), (&json!("PENDING"), &json!("the queue is paused")), "{open:#}");
    }
    pair.restart_producer().await?;
    pair.consumers[0].restart().await?;
    pass(pair.client(), 1.0).await?;
    assert_eq!(open(pair.client(), &ids).await?.len(), waiting.len(), "nothing runs while the queue is paused");
    let resumed_at = SystemTime::now();
    let resumed = post(pair.client(), "default", "resume").await?;
    assert_eq!((resumed.status, &resumed.body["paused"]), (200, &json!(false)));
    let mut late = Duration::ZERO;
    for id in &ids {
        let task = pair.client().await_terminal(id, SOON).await?;
        assert_eq!((&task["state"], &task["retries"]), (&json!("SUCCESS"), &json!(0)), "{task:#}");
        let started_at = time(&task, "started_at")?;
        if started_at < resumed_at {
            late = late.max(started_at.duration_since(paused_at).unwrap_or_default());
        }
    }
    println!("{before} of 200 had ended; the last started {late:?} after the pause");
    assert!(late < SECOND, "{late:?}");
    assert!(before < 200 && runs(&pair.consumers[0]).await? >= 200 - before);
    pair.stop().await
}

#[tokio::test]
async fn what_is_no_queue_of_the_producer_is_unknown() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    for verb in ["pause", "resume", "purge"] {
        let answer = post(pair.client(), "nowhere", verb).await?;
        assert_eq!((answer.status, &answer.body["type"]), (404, &json!("urn:errand:problem:unknown-queue")));
        assert_eq!(pair.client().get_path(&format!("/v1/queues/default/{verb}")).await?.status, 405);
    }
    pair.stop().await
}

#[tokio::test]
async fn a_purge_ends_what_waits_here_and_at_the_broker_and_nothing_else() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).producer_env("RELAY_WINDOW", "100");
    let mut pair = pair.start().await?;
    let later = pair.client().accepted(&json!({"task": "echo", "args": [1], "countdown": 3600})).await?;
    let ids = load::submit(pair.client().address(), 3000, 8, |_| json!({"task": "echo", "args": [1]})).await?.ids;
    pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 100, SOON).await?;
    let nothing = r#"[["theirs"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#;
    let properties = json!({"content_type": "application/json", "headers": {"task": "echo", "id": "theirs"}});
    let management = &pair.broker().management;
    assert!(management.publish(pair.vhost(), "errand.tasks", "default", &properties, nothing).await?);
    let purged = post(pair.client(), "default", "purge").await?;
    let counts = (&purged.body["purged"], &purged.body["at_broker"]);
    assert_eq!((purged.status, counts), (200, (&json!(3000), &json!(100))), "{}", purged.text);
    assert_eq!(open(pair.client(), &ids).await?.len(), 100, "those at the broker");
    let again = post(pair.client(), "default", "purge").await?;
    assert_eq!(again.body["purged"], 0, "{}", again.text);
    pair.restart_producer().await?;
    pair.start_consumer(&[]).await?;
    let (states, started) = ends(pair.client(), &ids).await?;
    assert_eq!((states, started), ([("REVOKED".to_owned(), 3000)].into(), 0));
    let last = pair.client().get(&ids[0]).await?;
    assert_eq!(last["error"]["message"], "purged", "{last:#}");
    pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 0, SOON).await?;
    until("a run of the client's own message", SOON, async || {
        let runs = runs(&pair.consumers[0]).await?;
        ensure!(runs == 1, "{runs} runs");
        Ok(())
    })
    .await?;
    assert_eq!(pair.client().get(&later).await?["state"], "PENDING", "what is not due is in no queue");
    pair.stop().await
}

#[tokio::test]
async fn a_purge_against_delivery_leaves_one_end_each() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("CONCURRENCY", "16").start().await?;
    let ids = load::submit(pair.client().address(), 2000, 8, |_| json!({"task": "sleep", "args": [0.06]})).await?.ids;
    let purged = post(pair.client(), "default", "purge").await?;
    let (states, started) = ends(pair.client(), &ids).await?;
    println!("purged {}; {states:?}, {started} started", purged.body);
    assert!(states.keys().all(|state| state == "REVOKED" || state == "SUCCESS"), "{states:?}");
    assert!(states.get("REVOKED").is_some_and(|count| *count > 0), "{states:?}");
    assert_eq!(runs(&pair.consumers[0]).await?, started);
    pair.stop().await
}
