//! Revoking tasks: before they are published, at the broker, while they run, and against every change between.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::broker::{self, Broker, Options};
use e2e::client::{Answer, http};
use e2e::{Client, Pair, Service};
use futures_util::future::{join, try_join_all};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::life::SOON;

async fn revoke(client: &Client, id: &str) -> Result<Answer> {
    client.send(client.request(Method::POST, &format!("/v1/tasks/{id}/revoke"))).await
}

async fn revoked_with(client: &Client, id: &str, status: u16) -> Result<Value> {
    let answer = revoke(client, id).await?;
    assert_eq!(answer.status, status, "{}", answer.text);
    Ok(answer.body)
}

fn never_started(task: &Value) {
    assert_eq!((&task["state"], &task["started_at"]), (&json!("REVOKED"), &Value::Null), "{task:#}");
    assert_eq!(task["error"]["type"], "TaskRevokedError");
}

/// How many handlers a worker has started.
pub(crate) async fn runs(worker: &Service) -> Result<usize> {
    let metrics = http()?.get(worker.url("/metrics")).send().await?.text().await?;
    let count = metrics.lines().find_map(|line| line.strip_prefix("errand_runs_started_total "));
    Ok(count.map_or(Ok(0), str::parse)?)
}

/// How many ended in which state, and how many of them say that they were started.
pub(crate) async fn ends(client: &Client, ids: &[String]) -> Result<(BTreeMap<String, usize>, usize)> {
    let (mut states, mut started) = (BTreeMap::new(), 0);
    for id in ids {
        let task = client.await_terminal(id, SOON).await?;
        *states.entry(task["state"].as_str().context("a state")?.to_owned()).or_default() += 1;
        started += usize::from(!task["started_at"].is_null());
    }
    Ok((states, started))
}

#[tokio::test]
async fn a_revoked_countdown_never_starts_whoever_is_restarted() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let later = json!({"task": "echo", "args": [1], "countdown": 3});
    let id = pair.client().accepted(&later).await?;
    never_started(&revoked_with(pair.client(), &id, 200).await?);
    assert_eq!(revoked_with(pair.client(), &id, 409).await?["type"], "urn:errand:problem:task-ended");
    revoked_with(pair.client(), "nobody", 404).await?;
    let after = pair.client().accepted(&later).await?;
    pair.restart_producer().await?;
    pair.consumers[0].restart().await?;
    assert_eq!(pair.client().await_terminal(&after, SOON).await?["state"], "SUCCESS");
    never_started(&pair.client().get(&id).await?);
    assert_eq!(runs(&pair.consumers[0]).await?, 1);
    pair.stop().await
}

#[tokio::test]
async fn a_task_revoked_at_the_broker_is_dropped_by_a_worker_that_starts_later() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let id = pair.client().accepted(&json!({"task": "echo", "args": [1]})).await?;
    pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 1, SOON).await?;
    let told = revoked_with(pair.client(), &id, 202).await?;
    assert!(told["reason"].as_str().is_some_and(|reason| reason.starts_with("revoked: it is not run")), "{told:#}");
    pair.producer.kill()?;
    pair.restart_producer().await?;
    assert_eq!(pair.client().get(&id).await?["state"], "PENDING", "nobody has taken it yet");
    pair.start_consumer(&[]).await?;
    never_started(&pair.client().await_terminal(&id, SOON).await?);
    assert_eq!(runs(&pair.consumers[0]).await?, 0);
    pair.stop().await
}

#[tokio::test]
async fn a_running_task_ends_when_it_listens_and_by_force_when_it_does_not() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("ENABLE_FAULT_TASKS", "true").start().await?;
    let cases = [
        (json!({"task": "long_running_task", "args": [1, 300]}), 0..9),
        (json!({"task": "hold_slot", "args": [15]}), 9..20),
    ];
    let wait = |(wish, seconds): (Value, std::ops::Range<u64>)| {
        let client = pair.client();
        async move {
            let id = client.accepted(&wish).await?;
            client.await_state(&id, |task| task["state"] == "STARTED", SOON).await?;
            let start = Instant::now();
            let told = revoked_with(client, &id, 202).await?;
            assert!(told["reason"].as_str().is_some_and(|reason| reason.contains("by force")), "{told:#}");
            let ended = client.await_terminal(&id, SOON).await?;
            let took = start.elapsed();
            println!("{} ended {took:?} after it was revoked", wish["task"]);
            assert_eq!((&ended["state"], &ended["error"]["message"]), (&json!("REVOKED"), &json!("revoked")));
            assert!(seconds.contains(&took.as_secs()), "{took:?}");
            Ok::<_, anyhow::Error>(id)
        }
    };
    let ids = try_join_all(cases.into_iter().map(wait)).await?;
    // What they return later is nobody's result.
    let next = pair.client().accepted(&json!({"task": "hold_slot", "args": [0.1]})).await?;
    assert_eq!(pair.client().await_terminal(&next, SOON).await?["state"], "SUCCESS");
    assert_eq!(ends(pair.client(), &ids).await?.0, [("REVOKED".to_owned(), 2)].into());
    Ok(())
}

#[tokio::test]
async fn a_retry_of_a_revoked_task_is_not_run() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let wish =
        json!({"task": "always_fails", "args": ["no"], "retry": {"max_retries": 9, "backoff": 2, "jitter": false}});
    let id = pair.client().accepted(&wish).await?;
    pair.client().await_state(&id, |task| task["state"] == "RETRY", SOON).await?;
    revoked_with(pair.client(), &id, 202).await?;
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["retries"]), (&json!("REVOKED"), &json!(1)), "{ended:#}");
    assert_eq!(runs(&pair.consumers[0]).await?, 1);
    pair.stop().await
}

#[tokio::test]
async fn of_two_revocations_at_once_one_ends_the_task() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    for _ in 0..20 {
        let id = pair.client().accepted(&json!({"task": "echo", "args": [1], "countdown": 60})).await?;
        let (first, second) = join(revoke(pair.client(), &id), revoke(pair.client(), &id)).await;
        let mut statuses = [first?.status, second?.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409]);
        never_started(&pair.client().get(&id).await?);
    }
    pair.stop().await
}

/// Whether a task was run is what its worker counts: a report about one that has ended changes nothing here.
#[tokio::test]
async fn revocations_against_relay_start_and_finish_leave_one_end_each() -> Result<()> {
    const COUNT: u64 = 400;
    let pair = Pair::on(broker::shared().await?).start().await?;
    let client = pair.client();
    let one = |number: u64| async move {
        let countdown = if number.is_multiple_of(3) { json!(0.05) } else { Value::Null };
        let wish = json!({"task": "sleep", "args": [0.08], "countdown": countdown});
        let id = client.accepted(&wish).await?;
        sleep(Duration::from_millis(number % 40 * 4)).await;
        Ok::<_, anyhow::Error>((revoke(client, &id).await?.status, id))
    };
    let mut answers = Vec::new();
    for round in 0..8 {
        answers.extend(try_join_all((round * COUNT / 8..(round + 1) * COUNT / 8).map(one)).await?);
    }
    let ids: Vec<String> = answers.iter().map(|(_, id)| id.clone()).collect();
    let (states, started) = ends(client, &ids).await?;
    let count = |status: u16| answers.iter().filter(|(answered, _)| *answered == status).count();
    let never = count(200);
    println!("answered 200: {never}, 202: {}, 409: {}; {states:?}, {started} started", count(202), count(409));
    for (_, id) in answers.iter().filter(|(status, _)| *status == 200) {
        never_started(&client.get(id).await?);
    }
    assert_eq!(never + count(202) + count(409), ids.len());
    assert!(states.keys().all(|state| state == "REVOKED" || state == "SUCCESS"), "{states:?}");
    assert_eq!(runs(&pair.consumers[0]).await?, started, "what was run says so, and what says so was run once");
    pair.stop().await
}

#[tokio::test]
async fn a_task_revoked_while_the_broker_is_away_never_starts() -> Result<()> {
    let mut node = Broker::start(Options::default()).await?;
    let pair = Pair::on(&node).start().await?;
    node.stop().await?;
    let id = pair.client().accepted(&json!({"task": "echo", "args": [1]})).await?;
    let answer = revoke(pair.client(), &id).await?;
    assert!(matches!(answer.status, 200 | 202), "{}", answer.text);
    node.start_again().await?;
    let after = pair.client().accepted(&json!({"task": "echo", "args": [2]})).await?;
    assert_eq!(pair.client().await_terminal(&after, SOON).await?["state"], "SUCCESS");
    never_started(&pair.client().await_terminal(&id, SOON).await?);
    assert_eq!(runs(&pair.consumers[0]).await?, 1);
    Ok(())
}
