//! What a submit costs while the broker takes nothing, and what waits for it meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::broker::{Broker, Options};
use e2e::load::{self, Connection};
use e2e::{Client, Pair};
use reqwest::Method;
use serde_json::{Value, json};

use crate::faults::runs_started;
use crate::life::SOON;

const LONG: Duration = Duration::from_mins(3);
/// Tasks that wait at once, all in all.
const WAITING: usize = 100_000;
const MAX_MEMORY: u64 = 50 * 1024 * 1024;
/// Submits that are timed, one after the other.
const TIMED: usize = 300;
/// On a busy machine a median may be so many times another one of the same, and no more.
const SAME_ORDER: u32 = 10;
/// Below this a median says nothing.
const LEAST: Duration = Duration::from_millis(2);

/// How long submits took.
struct Times {
    p50: Duration,
    p99: Duration,
    ids: Vec<String>,
}

impl Times {
    #[expect(clippy::print_stdout, reason = "the figures are what the test is for")]
    async fn take(client: &Client, when: &str) -> Result<Self> {
        let mut connection = Connection::open(client.address()).await?;
        let (mut times, mut ids) = (Vec::with_capacity(TIMED), Vec::with_capacity(TIMED));
        for number in 0..TIMED {
            let start = Instant::now();
            ids.push(connection.submit(&json!({"task": "echo", "args": [number]})).await?);
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let (p50, p99) = (times[TIMED / 2], times[TIMED * 99 / 100]);
        println!("a submit while the broker is {when}: p50 {p50:?}, p99 {p99:?}");
        Ok(Self { p50, p99, ids })
    }

    fn assert_as_fast_as(&self, up: &Self) {
        assert!(self.p50 <= up.p50.max(LEAST) * SAME_ORDER, "p50 {:?}, {:?} with the broker", self.p50, up.p50);
        assert!(self.p99 <= up.p99.max(LEAST) * SAME_ORDER * 5, "p99 {:?}, {:?} with the broker", self.p99, up.p99);
    }
}

/// Tasks of a queue that no worker serves, so that what waited for the broker need not run for the test to end.
#[expect(clippy::print_stdout, reason = "it says what a slow run waited for")]
async fn fill(client: &Client, count: usize) -> Result<()> {
    let start = Instant::now();
    let batch: Vec<Value> = (0..1_000)
        .map(|number| json!({"task": "echo", "args": [[number, "x".repeat(200)]], "queue": "bulk"}))
        .collect();
    let (batch, mut connection) = (json!(batch).to_string(), Connection::open(client.address()).await?);
    for _ in 0..count / 1_000 {
        let (status, answer) = connection.exchange("POST", "/v1/tasks/batch", &batch).await?;
        ensure!(status == 202, "{status}: {answer}");
    }
    println!("{count} more tasks wait after {:?}", start.elapsed());
    Ok(())
}

async fn await_reason(client: &Client, id: &str, is_it: impl Fn(&str) -> bool) -> Result<()> {
    let named = |task: &Value| {
        task["reason"].as_str().and_then(|why| why.strip_prefix("waiting for the broker: ")).is_some_and(&is_it)
    };
    client.await_state(id, named, SOON).await.map(drop)
}

/// A submit, and a batch of which a part would fit, beyond the cap: refused as a whole, with a time to try again.
async fn are_refused(client: &Client) -> Result<()> {
    let one = json!({"task": "echo", "args": ["refused"], "task_id": "refused"});
    let two = json!([one, {"task": "echo", "args": ["refused"], "task_id": "refused-too"}]);
    for (path, body) in [("/v1/tasks", &one), ("/v1/tasks/batch", &two), ("/v1/tasks/batch?partial=true", &two)] {
        let answer = client.send(client.request(Method::POST, path).json(body)).await?;
        let wait: u32 = answer.header("retry-after").context("no Retry-After")?.parse()?;
        assert_eq!(
            (answer.status, &answer.body["type"]),
            (503, &json!("urn:errand:problem:outbox-full")),
            "{}",
            answer.text
        );
        assert!(wait >= 1, "{wait}");
    }
    Ok(())
}

#[tokio::test]
async fn submits_go_on_as_fast_while_the_broker_takes_nothing_and_a_hundred_thousand_wait_in_little_memory()
-> Result<()> {
    let mut node = Broker::start(Options::default()).await?;
    let pair = Pair::on(&node).producer_env("QUEUES", "default,bulk").producer_env("RELAY_WINDOW", "1000");
    let cap = WAITING + 2 * TIMED;
    let pair = pair.producer_env("OUTBOX_CAP", &cap.to_string()).start().await?;
    let (client, address) = (pair.client(), pair.client().address());
    // The first submits of a process are not its usual ones.
    let mut ids = load::submit(address, 100, 1, |n| json!({"task": "echo", "args": [n]})).await?.ids;
    let up = Times::take(client, "up").await?;
    ids.extend_from_slice(&up.ids);
    load::await_all(address, &ids, 4, LONG).await?;

    node.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await?;
    let probe = client.accepted(&json!({"task": "echo", "args": [0]})).await?;
    await_reason(client, &probe, |why| why.contains("blocks publishers")).await?;
    let before = pair.producer.rss()?;
    let blocked = Times::take(client, "blocked").await?;
    fill(client, WAITING / 2).await?;
    node.stop().await?;
    await_reason(client, &probe, |why| !why.contains("blocks publishers")).await?;
    let down = Times::take(client, "down").await?;
    fill(client, WAITING / 2 - 1_000).await?;
    ids.extend(load::submit(address, 1_000 - 1, 4, |n| json!({"task": "echo", "args": [n]})).await?.ids);
    let after = pair.producer.rss()?;
    println!("{cap} tasks wait in {} KiB of memory, {} KiB without them", after / 1024, before / 1024);
    let grown = after.saturating_sub(before);
    assert!(grown < MAX_MEMORY, "{grown} bytes");
    blocked.assert_as_fast_as(&up);
    down.assert_as_fast_as(&up);
    are_refused(client).await?;

    node.start_again().await?;
    ids.extend(blocked.ids.into_iter().chain(down.ids).chain([probe]));
    let ends = load::await_all(address, &ids, 4, LONG).await?;
    assert_eq!(ends, [("SUCCESS".to_owned(), ids.len())].into());
    assert_eq!(runs_started(&pair).await?, ids.len() as u64, "what was accepted ran once, and nothing else did");
    for refused in ["refused", "refused-too"] {
        assert_eq!(client.get_path(&format!("/v1/tasks/{refused}")).await?.status, 404);
    }
    pair.stop().await
}
