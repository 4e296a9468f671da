//! The life of a task as server-sent events, and what a thousand listeners cost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::broker::{Broker, Options};
use e2e::events::Event;
use e2e::load::{self, Connection};
use e2e::{Events, Pair, broker};
use serde_json::json;
use tokio::task::JoinSet;

use crate::life::SOON;

/// What an event says in short: its name, its state and how far the task has come.
fn short(event: &Event) -> (String, String, u64) {
    let state = event.data["state"].as_str().unwrap_or_default().to_owned();
    (event.name.clone(), state, event.data["progress"]["current"].as_u64().unwrap_or(0))
}

fn told(name: &str, state: &str, current: u64) -> (String, String, u64) {
    (name.to_owned(), state.to_owned(), current)
}

#[tokio::test]
async fn a_listener_is_told_each_state_and_each_progress_once() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let wish = json!({"task": "long_running_task", "kwargs": {"data": 21, "seconds": 3}});
    let id = pair.client().accepted(&wish).await?;
    let address = pair.client().address();
    let mut events = Events::open(address, &id, None).await?;
    assert_eq!(events.status()?, 200);
    for header in ["content-type: text/event-stream", "cache-control: no-cache", "x-accel-buffering: no"] {
        assert!(events.has_header(header), "{header}");
    }
    let first = events.next(SOON).await?.context("the task as it stands")?;
    assert_eq!((short(&first), &first.data["kwargs"]), (told("state", "PENDING", 0), &wish["kwargs"]));
    pair.start_consumer(&[]).await?;
    let rest = events.rest(SOON).await?;
    let seen: Vec<_> = rest.iter().map(short).collect();
    println!("a listener is told {seen:?}");
    let progress = |current| told("progress", "STARTED", current);
    // The last progress comes right before the end, which may be told without it.
    let mut expected = vec![told("state", "STARTED", 0), progress(0), progress(1), progress(2)];
    expected.extend(seen.contains(&progress(3)).then(|| progress(3)));
    expected.push(told("state", "SUCCESS", seen.last().map_or(0, |last| last.2)));
    assert_eq!(seen, expected);
    assert_eq!(rest.last().map(|last| (short(last).1, &last.data["result"])), Some(("SUCCESS".to_owned(), &json!(42))));
    assert_eq!((&rest[1].data["kwargs"], &rest[1].data["task_id"]), (&json!(null), &json!(id)));

    // From any of its ids on, an ended task tells its end alone, and nothing after that.
    let last = rest.last().context("no event")?;
    for before in [None, Some(first.id.as_str()), Some(&rest[1].id), Some("9-9-9"), Some("nonsense")] {
        let again = Events::open(address, &id, before).await?.rest(SOON).await?;
        assert_eq!(again, std::slice::from_ref(last), "{before:?}");
    }
    assert_eq!(Events::open(address, &id, Some(&last.id)).await?.status()?, 204);
    let unknown = pair.client().get_path("/v1/tasks/nope/events").await?;
    assert_eq!((unknown.status, unknown.header("content-type")), (404, Some("application/problem+json")));
    pair.stop().await
}

#[tokio::test]
async fn a_listener_that_comes_again_is_told_what_followed_even_after_a_restart() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let wish = json!({"task": "flaky", "args": [2], "retry": {"backoff": 1, "jitter": false}});
    let id = pair.client().accepted(&wish).await?;
    let address = pair.client().address();
    let mut events = Events::open(address, &id, None).await?;
    let first = events.next(SOON).await?.context("the task as it stands")?;
    pair.restart_producer().await?;
    let mut events = Events::open(address, &id, Some(&first.id)).await?;
    pair.start_consumer(&[]).await?;
    let mut seen = Vec::new();
    while let Some(event) = events.next(SOON).await? {
        let ended = event.data["state"] == "SUCCESS";
        // Cut after each, with the id of the last.
        events = Events::open(address, &id, Some(&event.id)).await?;
        seen.push(event);
        if ended {
            break;
        }
    }
    assert_eq!(events.status()?, 204, "the end is told once");
    let ids: Vec<&str> = seen.iter().map(|event| event.id.as_str()).collect();
    println!("told over {} connections: {ids:?}", seen.len() + 1);
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    let retries = seen.iter().filter(|event| event.data["state"] == "RETRY");
    let retries: Vec<_> = retries.map(|event| event.data["retries"].clone()).collect();
    assert_eq!(retries, [0, 1]);
    pair.stop().await
}

#[tokio::test]
async fn a_silent_stream_is_kept_open_by_comments() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let id = pair.client().accepted(&json!({"task": "add", "args": [1, 2], "countdown": 16})).await?;
    let mut events = Events::open(pair.client().address(), &id, None).await?;
    let all = events.rest(SOON).await?;
    assert_eq!(all.last().map(|last| last.data["state"].clone()), Some(json!("SUCCESS")));
    assert_eq!(events.comments(), 1);
    pair.stop().await
}

/// Sockets that a process may have beside a few hundred for everything else.
fn sockets() -> Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of files")?;
    let soft = line.split_whitespace().next().unwrap_or_default();
    Ok(soft.parse().unwrap_or(usize::MAX).saturating_sub(400))
}

/// Tasks a second that are accepted.
async fn rate(pair: &Pair, count: usize) -> Result<f64> {
    let submitted =
        load::submit(pair.client().address(), count, 16, |n| json!({"task": "add", "args": [n, 1]})).await?;
    Ok(f64::from(u32::try_from(count)?) / submitted.elapsed.as_secs_f64())
}

#[tokio::test]
async fn a_thousand_listeners_and_a_thousand_waits_cost_little_and_slow_no_submit() -> Result<()> {
    let node = Broker::start(Options::default()).await?;
    let mut pair = Pair::on(&node).consumers(0).start().await?;
    let (count, address) = ((sockets()? / 2).min(1_000), pair.client().address());
    ensure!(count >= 100, "too few open files are allowed here");
    let ids = load::submit(address, count, 8, |n| json!({"task": "add", "args": [n, 1]})).await?.ids;
    rate(&pair, 2_000).await?;
    // What the store keeps in memory of what was read is not theirs.
    let mut reader = Connection::open(address).await?;
    for id in &ids {
        assert_eq!(reader.exchange("GET", &format!("/v1/tasks/{id}"), "").await?.0, 200);
    }
    let (alone, before) = (rate(&pair, 2_000).await?, pair.producer.rss()?);
    let (mut listeners, mut waits) = (JoinSet::new(), JoinSet::new());
    let start = Instant::now();
    for id in ids {
        let mut events = Events::open(address, &id, None).await?;
        let first = events.next(SOON).await?.context("the task as it stands")?;
        assert_eq!(first.data["state"], "PENDING");
        let mut connection = Connection::open(address).await?;
        listeners.spawn(async move { events.rest(Duration::from_mins(2)).await });
        waits.spawn(async move { connection.wait(&id, Duration::from_mins(1)).await });
    }
    let opened = start.elapsed();
    crate::wait::await_watchers(pair.client(), 2 * count).await?;
    let cost = pair.producer.rss()?.saturating_sub(before);
    let beside = rate(&pair, 2_000).await?;
    pair.start_consumer(&[]).await?;
    for ended in listeners.join_all().await {
        assert_eq!(ended?.last().map(|last| last.data["state"].clone()), Some(json!("SUCCESS")));
    }
    for ended in waits.join_all().await {
        let (status, task) = ended?;
        assert_eq!((status, &task["state"]), (200, &json!("SUCCESS")), "{task}");
    }
    println!("{count} listeners and {count} waits: opened in {opened:?}, {} KiB", cost / 1024);
    println!("accepted {alone:.0}/s alone, {beside:.0}/s beside them, all told after {:?}", start.elapsed());
    // 28 MiB where this was written, most of it the server's buffers for any connection.
    assert!(cost < 36 << 20, "{cost} bytes");
    assert!(beside > alone / 3.0, "{beside:.0}/s instead of {alone:.0}/s");
    pair.stop().await
}
