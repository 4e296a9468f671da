//! What the broker has lost is found and published again, and nothing that it has, or a worker.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::broker::{Broker, Options};
use e2e::client::http;
use e2e::{Pair, Service, broker, load};
use serde_json::{Value, json};

use crate::life::SOON;
use crate::revoke::runs;

const LONG: Duration = Duration::from_mins(3);
/// Within this every task that was lost has ended.
const FOUND: Duration = Duration::from_mins(1);

async fn metric(service: &Service, name: &str) -> Result<u64> {
    let metrics = http()?.get(service.url("/metrics")).send().await?.text().await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

async fn presumed_lost(pair: &Pair) -> Result<u64> {
    metric(&pair.producer, "errand_presumed_lost_total").await
}

async fn submit(pair: &Pair, count: usize, task: Value) -> Result<Vec<String>> {
    let submitted = load::submit(pair.client().address(), count, 8, move |_| task.clone()).await?;
    Ok(submitted.ids)
}

/// Waits for tasks that run.
async fn await_started(pair: &Pair, ids: &[String]) -> Result<()> {
    for id in ids {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    Ok(())
}

async fn all_succeed(pair: &Pair, ids: &[String]) -> Result<()> {
    let ends = load::await_all(pair.client().address(), ids, 8, LONG).await?;
    assert_eq!(ends, [("SUCCESS".to_owned(), ids.len())].into());
    Ok(())
}

/// Waits until so many wait in a queue for a worker that has its hands full.
async fn await_ready(pair: &Pair, queue: &str, count: usize) -> Result<()> {
    pair.broker().await_depth(pair.vhost(), queue, |depth| depth.ready as usize >= count, SOON).await.map(drop)
}

#[tokio::test]
async fn what_was_in_a_purged_and_in_a_deleted_queue_runs_once_within_a_minute() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).env("QUEUES", "default,other").consumer_env("CONCURRENCY", "4");
    let pair = pair.start().await?;
    let retried = json!({"task": "flaky", "args": [1], "retry": {"backoff": 4, "jitter": false}});
    let retried = pair.client().accepted(&retried).await?;
    pair.client().await_state(&retried, |task| task["state"] == "RETRY", SOON).await?;
    let management = &pair.broker().management;
    management.purge_queue(pair.vhost(), "errand.delay.4s").await?;
    let mut held = submit(&pair, 2, json!({"task": "sleep", "args": [6]})).await?;
    held.extend(submit(&pair, 2, json!({"task": "sleep", "args": [6], "queue": "other"})).await?);
    await_started(&pair, &held).await?;
    let mut lost = submit(&pair, 50, json!({"task": "echo", "args": [1]})).await?;
    let revoked = pair.client().accepted(&json!({"task": "echo", "args": [1]})).await?;
    await_ready(&pair, "errand.default", 51).await?;
    lost.extend(submit(&pair, 50, json!({"task": "echo", "args": [1], "queue": "other"})).await?);
    await_ready(&pair, "errand.other", 50).await?;
    let revoke = pair.client().request(reqwest::Method::POST, &format!("/v1/tasks/{revoked}/revoke"));
    assert_eq!(pair.client().send(revoke).await?.status, 202);
    management.purge_queue(pair.vhost(), "errand.default").await?;
    management.delete_queue(pair.vhost(), "errand.other").await?;
    let start = Instant::now();
    all_succeed(&pair, &lost).await?;
    println!("what was purged and deleted had ended after {:?}", start.elapsed());
    assert!(start.elapsed() < FOUND, "{:?}", start.elapsed());
    all_succeed(&pair, &held).await?;
    assert_eq!(pair.client().await_terminal(&revoked, SOON).await?["state"], "REVOKED");
    let retried = pair.client().await_terminal(&retried, LONG).await?;
    assert_eq!((&retried["state"], &retried["retries"]), (&json!("SUCCESS"), &json!(1)));
    println!("a retry that was purged had ended after {:?}", start.elapsed());
    // Everything once, the retried one twice, the revoked one never.
    assert_eq!((runs(&pair.consumers[0]).await?, presumed_lost(&pair).await?), (106, 102));
    pair.stop().await
}

#[tokio::test]
async fn what_was_in_a_wiped_data_directory_runs_within_a_minute() -> Result<()> {
    let mut node = Broker::start(Options::default()).await?;
    let pair = Pair::on(&node).consumer_env("CONCURRENCY", "2").start().await?;
    let held = submit(&pair, 2, json!({"task": "sleep", "args": [3]})).await?;
    await_started(&pair, &held).await?;
    let lost = submit(&pair, 100, json!({"task": "echo", "args": [1]})).await?;
    await_ready(&pair, "errand.default", 100).await?;
    node.wipe().await?;
    pair.broker().management.add_vhost(pair.vhost()).await?;
    let start = Instant::now();
    all_succeed(&pair, &lost).await?;
    println!("what the data directory held had ended {:?} after the node was back", start.elapsed());
    assert!(start.elapsed() < FOUND, "{:?}", start.elapsed());
    all_succeed(&pair, &held).await?;
    assert_eq!((runs(&pair.consumers[0]).await?, presumed_lost(&pair).await?), (102, 100), "each was started once");
    pair.stop().await
}

#[tokio::test]
async fn what_is_queued_runs_waits_or_is_with_a_stopped_worker_is_not_lost() -> Result<()> {
    // Not below three heartbeats of the broker's.
    const AFTER: Duration = Duration::from_secs(6);
    let shared = broker::shared().await?;
    let pair = Pair::on(shared).env("QUEUES", "default,calm,pages").producer_env("RECONCILE_AFTER", "6s");
    let url = format!("{}?heartbeat=2", shared.amqp_url(pair.vhost()));
    let pair =
        pair.consumer_env("AMQP_URL", &url).consumer_env("QUEUES", "default,calm").consumer_env("CONCURRENCY", "8");
    let mut pair = pair.consumers(2).start().await?;
    let pages = [("QUEUES", "pages"), ("AMQP_URL", &url)].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let pages = Service::start("custom_worker", "pages", pair.dir(), &pages.into()).await?;

    // These run, wait for their next attempt and wait for their rate for much longer than a task must be missed, in queues
    // that tracers get through at once;
    let long = submit(&pair, 2, json!({"task": "sleep", "args": [AFTER.as_secs() * 4], "queue": "calm"})).await?;
    let retry = json!({"backoff": AFTER.as_secs() * 4, "jitter": false});
    let mut ids = submit(&pair, 5, json!({"task": "flaky", "args": [1], "queue": "calm", "retry": retry})).await?;
    ids.extend(submit(&pair, 150, json!({"task": "render_page", "args": [7], "queue": "pages"})).await?);
    // and this queue holds them up for about as long.
    let slow = json!({"task": "sleep", "args": [0.15]});
    ids.extend(submit(&pair, 1_000, slow.clone()).await?);
    all_succeed(&pair, &long).await?;
    assert_eq!(presumed_lost(&pair).await?, 0);

    let stopped = pair.consumers.pop().context("the second worker")?;
    ids.extend(submit(&pair, 500, slow).await?);
    stopped.pause()?;
    all_succeed(&pair, &ids).await?;
    stopped.resume()?;
    assert!(metric(&pages, "errand_sent_back_total{task=\"render_page\"}").await? > 50, "they were sent back to wait");
    assert_eq!(presumed_lost(&pair).await?, 0);
    pair.stop().await
}
