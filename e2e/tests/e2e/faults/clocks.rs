//! One machine's clock is wrong.

use anyhow::{Result, ensure};
use e2e::{Pair, broker, clocks};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

use super::{LONG, accepted, echo};
use crate::life::SOON;

fn seconds(task: &Value, field: &str) -> Result<f64> {
    let text = task[field].as_str().unwrap_or_default();
    let at = humantime::parse_rfc3339(text)?.duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(at.as_secs_f64())
}

/// What happens by time on a worker: nothing too soon, nothing too late, and what is told has happened when it did.
async fn on_a_worker_that_is_off(by: &str) -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let env = clocks::off(by)?;
    pair.start_consumer(&env.each_ref().map(|(name, value)| (*name, value.as_str()))).await?;
    let client = pair.client();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    let near = |task: &Value, field: &str| -> Result<()> {
        let at = seconds(task, field)?;
        ensure!((-5.0..120.0).contains(&(at - now)), "{field} is {} s from now on a worker {by}: {task:#}", at - now);
        Ok(())
    };
    let expiring = |number| json!({"task": "long_running_task", "args": [number, 1], "expires": 600});
    let expiring = accepted(client, 3, expiring).await?;
    let flaky = json!({"task": "flaky", "args": [1], "retry": {"backoff": 3, "jitter": false}});
    let flaky = client.accepted(&flaky).await?;
    let waiting = client.await_state(&flaky, |task| task["state"] == "RETRY", SOON).await?;
    near(&waiting, "eta")?;
    for id in &expiring {
        let ended = client.await_terminal(id, LONG).await?;
        ensure!(ended["state"] == "SUCCESS", "{ended:#}");
        near(&ended, "started_at")?;
        near(&ended, "finished_at")?;
    }
    let ended = client.await_terminal(&flaky, LONG).await?;
    let waited = seconds(&ended, "finished_at")? - seconds(&waiting, "eta")?;
    assert!((-1.0..30.0).contains(&waited), "the retry was {waited} s late");
    expires(&pair).await?;
    pair.stop().await
}

/// What has expired in the queue is not run, however early the worker thinks it is.
async fn expires(pair: &Pair) -> Result<()> {
    let (client, worker) = (pair.client(), &pair.consumers[0]);
    worker.pause()?;
    let late = client.accepted(&json!({"task": "echo", "args": [1], "expires": 1})).await?;
    let after = client.accepted(&json!({"task": "echo", "args": [2], "countdown": 3})).await?;
    client.await_state(&after, |task| task["reason"].as_str().is_some_and(|why| !why.contains("due")), SOON).await?;
    worker.resume()?;
    let ended = client.await_terminal(&late, SOON).await?;
    assert_eq!((&ended["state"], &ended["started_at"]), (&json!("REVOKED"), &Value::Null), "{ended:#}");
    assert_eq!(client.await_terminal(&after, SOON).await?["state"], "SUCCESS");
    Ok(())
}

#[tokio::test]
async fn on_a_worker_an_hour_ahead_nothing_expires_too_soon() -> Result<()> {
    on_a_worker_that_is_off("+1h").await
}

#[tokio::test]
async fn on_a_worker_an_hour_behind_nothing_waits_too_long() -> Result<()> {
    on_a_worker_that_is_off("-1h").await
}

/// Its own clock is the one that counts, for what it accepts and for what it shows.
#[tokio::test]
async fn a_producer_an_hour_off_agrees_with_itself() -> Result<()> {
    let env = clocks::off("-1h")?;
    let builder = Pair::on(broker::shared().await?);
    let builder = env.iter().fold(builder, |builder, (name, value)| builder.producer_env(name, value));
    let pair = builder.start().await?;
    let expiring =
        accepted(pair.client(), 3, |number| json!({"task": "echo", "args": [number], "expires": 60})).await?;
    let later = pair.client().accepted(&json!({"task": "echo", "args": [1], "countdown": 2})).await?;
    for id in expiring.iter().chain([&later]).chain(&accepted(pair.client(), 1, echo).await?) {
        let ended = pair.client().await_terminal(id, LONG).await?;
        assert_eq!(ended["state"], "SUCCESS", "{ended:#}");
        let took = seconds(&ended, "finished_at")? - seconds(&ended, "created_at")?;
        assert!((0.0..Duration::from_mins(1).as_secs_f64()).contains(&took), "{took} s by its clock");
    }
    pair.stop().await
}
