//! Limits of a task and of the pools that tasks run in, on a worker of one's own and on the stock one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Client, Pair, Service, broker, until};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::life::SOON;

const LONG: Duration = Duration::from_mins(2);

/// A time of the API in milliseconds.
fn ms(task: &Value, field: &str) -> Result<u128> {
    let text = task[field].as_str().with_context(|| format!("no {field} in {task:#}"))?;
    Ok(humantime::parse_rfc3339(text)?.duration_since(std::time::UNIX_EPOCH)?.as_millis())
}

async fn submit(client: &Client, count: usize, task: &Value) -> Result<Vec<String>> {
    try_join_all((0..count).map(|_| client.accepted(task))).await
}

async fn ends(client: &Client, ids: &[String]) -> Result<Vec<Value>> {
    let mut tasks = Vec::with_capacity(ids.len());
    for id in ids {
        tasks.push(client.await_terminal(id, LONG).await?);
    }
    Ok(tasks)
}

fn all_succeeded(tasks: &[Value]) {
    for task in tasks {
        assert_eq!((&task["state"], &task["retries"]), (&json!("SUCCESS"), &json!(0)), "{task:#}");
    }
}

#[tokio::test]
async fn a_tasks_rate_and_concurrency_are_never_exceeded_and_nobody_waits_for_them() -> Result<()> {
    const RENDER: u128 = 300;
    let pair =
        Pair::on(broker::shared().await?).worker("custom_worker").consumer_env("CONCURRENCY", "16").start().await?;
    let pages = submit(pair.client(), 40, &json!({"task": "render_page", "args": [7]})).await?;
    // More of them than the worker has places, and behind them what has no limit.
    let others = submit(pair.client(), 20, &json!({"task": "report", "args": [0]})).await?;
    let others = ends(pair.client(), &others).await?;
    let pages = ends(pair.client(), &pages).await?;
    all_succeeded(&others);
    all_succeeded(&pages);
    let mut starts = pages.iter().map(|task| ms(task, "started_at")).collect::<Result<Vec<_>>>()?;
    starts.sort_unstable();
    println!("40 pages at 5/s and 2 at once took {} ms", starts[39] - starts[0] + RENDER);
    for window in starts.windows(6) {
        assert!(window[5] - window[0] >= 900, "six starts within a second: {window:?}");
    }
    for window in starts.windows(3) {
        assert!(window[2] - window[0] >= RENDER - 100, "three at once: {window:?}");
    }
    let last_other = others.iter().map(|task| ms(task, "finished_at")).collect::<Result<Vec<_>>>()?;
    let last_other = last_other.into_iter().max().context("others")?;
    let still_to_start = starts.iter().filter(|start| **start > last_other).count();
    assert!(still_to_start >= 10, "the others waited: only {still_to_start} pages were left");
    Ok(())
}

#[tokio::test]
async fn five_hundred_sleepers_share_one_worker() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("CONCURRENCY", "512").start().await?;
    let ids = submit(pair.client(), 500, &json!({"task": "sleep", "args": [2], "countdown": 2})).await?;
    let tasks = ends(pair.client(), &ids).await?;
    all_succeeded(&tasks);
    let starts = tasks.iter().map(|task| ms(task, "started_at")).collect::<Result<Vec<_>>>()?;
    let ends = tasks.iter().map(|task| ms(task, "finished_at")).collect::<Result<Vec<_>>>()?;
    let (first, last) = (starts.iter().min().context("starts")?, starts.iter().max().context("starts")?);
    let end = ends.iter().max().context("ends")?;
    println!("500 sleeps of 2 s took {} ms, the last began after {} ms", end - first, last - first);
    assert!(last - first < 2000, "all 500 slept at once");
    Ok(())
}

#[tokio::test]
async fn computing_holds_up_neither_quick_tasks_nor_heartbeats() -> Result<()> {
    let broker = broker::shared().await?;
    let pair = Pair::on(broker).start().await?;
    let (api, vhost) = (broker.management(), pair.vhost().to_owned());
    let queue = json!({"durable": true, "arguments": {"x-queue-type": "quorum"}});
    api.call(reqwest::Method::PUT, &["queues", &vhost, "heard"], Some(&queue)).await?;
    api.bind(&vhost, "errand.workers", "heard", "", &json!({})).await?;
    let slow = submit(pair.client(), 8, &json!({"task": "cpu_bound", "args": [4_000_000]})).await?;
    for id in &slow {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    let quick = submit(pair.client(), 1000, &json!({"task": "echo", "args": ["quick"]})).await?;
    all_succeeded(&ends(pair.client(), &quick).await?);
    let open = try_join_all(slow.iter().map(|id| pair.client().get(id))).await?;
    assert!(open.iter().all(|task| task["state"] == "STARTED"), "all echoes ended while the others still ran");
    let slow = ends(pair.client(), &slow).await?;
    all_succeeded(&slow);
    let from = slow.iter().map(|task| ms(task, "started_at")).collect::<Result<Vec<_>>>()?.into_iter().min();
    let to = slow.iter().map(|task| ms(task, "finished_at")).collect::<Result<Vec<_>>>()?.into_iter().max();
    let seconds = (to.context("to")? - from.context("from")?) / 1000;
    let heard = pair.depth("heard").await?.ready;
    println!("8 times cpu_bound took {seconds} s, {heard} heartbeats meanwhile");
    // One every 5 s; the machine is busy on purpose.
    assert!(u128::from(heard) >= seconds / 10, "{heard} heartbeats in {seconds} s");
    Ok(())
}

#[tokio::test]
async fn a_handler_deaf_to_its_limits_fails_at_the_hard_one_for_good() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("ENABLE_FAULT_TASKS", "true").start().await?;
    for (place, task) in (1..).zip(["hold_slot", "block_thread"]) {
        let wish = json!({"task": task, "args": [4], "soft_time_limit": 0.5, "time_limit": 1});
        let id = pair.client().accepted(&wish).await?;
        let ended = pair.client().await_terminal(&id, SOON).await?;
        let known = (&ended["state"], &ended["error"]["type"], &ended["retries"]);
        assert_eq!(known, (&json!("FAILURE"), &json!("TimeLimitExceeded"), &json!(0)), "{ended:#}");
        await_log(&pair.consumers[0], "a handler ended after its time limit", place).await?;
        // What it returned then is nobody's result. Whatever it might have sent is before this in the reply queue.
        let echo = pair.client().accepted(&json!({"task": "echo", "args": [1]})).await?;
        pair.client().await_terminal(&echo, SOON).await?;
        assert_eq!(pair.client().get(&id).await?, ended);
    }
    Ok(())
}

/// Waits until a worker's log says this so often.
async fn await_log(worker: &Service, text: &str, times: usize) -> Result<()> {
    until(&format!("{text:?} {times} times"), SOON, async || {
        let log = worker.log_tail(500);
        ensure!(log.matches(text).count() == times, "{log}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_worker_without_a_thread_left_starts_again_by_itself() -> Result<()> {
    let pair = Pair::on(broker::shared().await?)
        .consumer_env("ENABLE_FAULT_TASKS", "true")
        .consumer_env("BLOCKING_THREADS", "2")
        .consumer_env("SHUTDOWN_GRACE", "20s")
        .start()
        .await?;
    let pid = pair.consumers[0].pid();
    let running = pair.client().accepted(&json!({"task": "sleep", "args": [6]})).await?;
    let held = submit(pair.client(), 2, &json!({"task": "hold_slot", "args": [600], "time_limit": 1})).await?;
    for task in ends(pair.client(), &held).await? {
        assert_eq!(task["error"]["type"], "TimeLimitExceeded", "{task:#}");
    }
    let after = pair.client().accepted(&json!({"task": "hold_slot", "args": [0.1]})).await?;
    assert_eq!(pair.client().await_terminal(&after, LONG).await?["state"], "SUCCESS");
    let running = pair.client().await_terminal(&running, SOON).await?;
    assert_eq!((&running["state"], &running["result"]), (&json!("SUCCESS"), &json!(6.0)), "it ended in the grace");
    assert!(e2e::procfs::lives(pid), "the same process goes on, for its supervisor nothing happened");
    let log = std::fs::read_to_string(pair.consumers[0].log())?;
    assert_eq!(log.matches("worker serves").count(), 2, "{log}");
    pair.stop().await
}

#[tokio::test]
async fn a_worker_told_to_end_while_it_starts_again_ends() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?)
        .consumer_env("ENABLE_FAULT_TASKS", "true")
        .consumer_env("BLOCKING_THREADS", "1")
        .consumer_env("SHUTDOWN_GRACE", "1m")
        .start()
        .await?;
    let running = pair.client().accepted(&json!({"task": "sleep", "args": [6]})).await?;
    pair.client().accepted(&json!({"task": "hold_slot", "args": [600], "time_limit": 1})).await?;
    await_log(&pair.consumers[0], "worker takes no more tasks", 1).await?;
    assert!(pair.consumers[0].terminate(SOON).await?.success());
    assert_eq!(pair.client().await_terminal(&running, SOON).await?["state"], "SUCCESS", "it had its grace");
    let log = std::fs::read_to_string(pair.consumers[0].log())?;
    assert_eq!(log.matches("worker serves").count(), 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn who_starves_behind_a_blocked_thread_does_not_fail_of_it() -> Result<()> {
    let pair = Pair::on(broker::shared().await?)
        .consumer_env("ENABLE_FAULT_TASKS", "true")
        .consumer_env("SHUTDOWN_GRACE", "2s")
        .start()
        .await?;
    let cpus = std::thread::available_parallelism()?.get();
    let block = json!({"task": "block_thread", "args": [600], "time_limit": 4});
    let blocking = submit(pair.client(), cpus, &block).await?;
    for id in &blocking {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    let starving = submit(pair.client(), 5, &json!({"task": "sleep", "args": [0.1], "time_limit": 1})).await?;
    for task in ends(pair.client(), &blocking).await? {
        assert_eq!(task["error"]["type"], "TimeLimitExceeded", "{task:#}");
    }
    all_succeeded(&ends(pair.client(), &starving).await?);
    Ok(())
}
