//! Windows that a plain task does not pass: losses, children, replays, revocations, callbacks.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use e2e::pair::Builder;
use e2e::{Client, Pair, Receiver, broker, until};
use futures_util::future::{try_join, try_join_all};
use reqwest::Method;
use serde_json::{Value, json};

use super::rounds::{IN_FLIGHT, TASKS, arm, await_death, submit};
use crate::life::SOON;
use crate::revoke::runs;
use crate::rows;

async fn pair() -> Result<Builder> {
    let in_flight = IN_FLIGHT.to_string();
    Ok(Pair::on(broker::shared().await?).with_faults().producer_env("RELAY_WINDOW", &in_flight))
}

/// Accepts as many of these as a round has: their ids.
async fn submit_all(client: &Client, window: &str, task: &Value) -> Result<Vec<String>> {
    let keys: Vec<String> = (0..TASKS).map(|number| format!("{window}-{number}")).collect();
    try_join_all(keys.iter().map(|key| submit(client, key, task))).await
}

/// Waits until each has ended in this state.
async fn await_all(client: &Client, ids: &[String], state: &str) -> Result<()> {
    for id in ids {
        let ended = client.await_terminal(id, SOON).await?;
        ensure!(ended["state"] == state, "{ended:#}");
    }
    Ok(())
}

/// Asks this of each task until there is an answer, whatever it is: the first request may have been granted.
async fn ask_of_each(client: &Client, ids: &[String], what: &str) -> Result<()> {
    let asks = ids.iter().map(async |id| {
        until(what, SOON, async || {
            let answer = client.send(client.request(Method::POST, &format!("/v1/tasks/{id}/{what}"))).await?;
            ensure!(answer.status < 500, "{} {}", answer.status, answer.text);
            Ok(())
        })
        .await
    });
    try_join_all(asks).await.map(drop)
}

#[tokio::test]
async fn a_producer_killed_with_notices_of_lost_tasks_in_hand_puts_each_back_once() -> Result<()> {
    let mut pair = pair().await?.start().await?;
    let (client, wish) = (pair.client().clone(), json!({"task": "add", "args": [20, 22]}));
    for faults in ["lost.received=kill", "lost.stored=kill"] {
        arm(&mut pair.producer, faults).await?;
        // Once a result came back, each of its connections has declared what the next line takes away.
        let first = client.accepted(&wish).await?;
        await_all(&client, &[first], "SUCCESS").await?;
        pair.broker().management.unbind(pair.vhost(), "errand.tasks", "errand.default").await?;
        let (ids, ()) = try_join(submit_all(&client, faults, &wish), await_death(&mut pair.producer)).await?;
        await_all(&client, &ids, "SUCCESS").await.context(faults)?;
    }
    let runs = runs(&pair.consumers[0]).await?;
    let tasks = 2 * (TASKS + 1);
    ensure!((tasks..=tasks + 2 * IN_FLIGHT).contains(&runs), "{runs} runs of {tasks} tasks");
    pair.stop().await
}

#[tokio::test]
async fn a_child_is_one_task_whoever_is_killed_before_its_parent_hears_of_it() -> Result<()> {
    const PAGES: usize = 16;
    let mut pair = pair().await?.worker("custom_worker").start().await?;
    let client = pair.client().clone();
    for (faults, is_producer) in [("children.stored=kill", true), ("child.confirmed=kill@5", false)] {
        let victim = if is_producer { &mut pair.producer } else { &mut pair.consumers[0] };
        arm(victim, faults).await?;
        let wish = json!({"task": "report", "args": [PAGES]});
        let (parent, ()) = try_join(submit(&client, faults, &wish), await_death(victim)).await?;
        let ended = client.await_terminal(&parent, SOON).await?;
        let pages: Vec<String> = serde_json::from_value(ended["result"].clone()).with_context(|| ended.to_string())?;
        ensure!(pages.iter().collect::<BTreeSet<_>>().len() == PAGES, "{faults}: {pages:?}");
        await_all(&client, &pages, "SUCCESS").await.context(faults)?;
    }
    assert_eq!(rows::count(pair.store()).await?, i64::try_from(2 * (1 + PAGES))?, "each child once");
    pair.stop().await
}

#[tokio::test]
async fn a_producer_killed_after_a_replay_or_a_revocation_was_stored_keeps_its_word() -> Result<()> {
    let mut pair = pair().await?.start().await?;
    let client = pair.client().clone();
    let once = json!({"task": "flaky", "args": [1], "retry": {"max_retries": 0}});
    let letters = submit_all(&client, "letter", &once).await?;
    await_all(&client, &letters, "FAILURE").await?;
    arm(&mut pair.producer, "replay.stored=kill@3").await?;
    try_join(ask_of_each(&client, &letters, "retry"), await_death(&mut pair.producer)).await?;
    await_all(&client, &letters, "SUCCESS").await?;
    for id in &letters {
        let shown = client.get_path(&format!("/v1/tasks/{id}/attempts")).await?.body;
        assert_eq!(shown["attempts"].as_array().map(Vec::len), Some(2), "it was replayed once: {shown:#}");
    }

    arm(&mut pair.producer, "revoke.stored=kill").await?;
    let endless = submit_all(&client, "endless", &json!({"task": "sleep", "args": [250]})).await?;
    until("tasks that run", SOON, async || {
        let stats = client.get_path("/v1/stats").await?.body;
        ensure!(stats["running"] == IN_FLIGHT, "{stats:#}");
        Ok(())
    })
    .await?;
    try_join(ask_of_each(&client, &endless, "revoke"), await_death(&mut pair.producer)).await?;
    await_all(&client, &endless, "REVOKED").await?;
    pair.stop().await
}

#[tokio::test]
async fn a_producer_killed_around_a_post_makes_every_post_and_the_same_again() -> Result<()> {
    /// What one receiver has under way.
    const EACH: usize = 4;
    let mut pair = pair().await?.producer_env("CALLBACK_ALLOW", "127.0.0.1").start().await?;
    let (client, receiver) = (pair.client().clone(), Receiver::start().await?);
    for faults in ["callback.due=kill@5", "callback.posted=kill@5"] {
        arm(&mut pair.producer, faults).await?;
        let path = format!("/{faults}");
        let wish = json!({"task": "add", "args": [1, 2], "callback": {"url": receiver.url(&path)}});
        let (ids, ()) = try_join(submit_all(&client, faults, &wish), await_death(&mut pair.producer)).await?;
        for id in &ids {
            until(faults, SOON, async || {
                let callback = &client.get(id).await?["callback"];
                ensure!(callback["state"] == "delivered", "{callback:#}");
                Ok(())
            })
            .await?;
        }
        let posts = receiver.posts(&path);
        let tasks: BTreeSet<String> = posts.iter().map(|post| post.json()["data"]["task_id"].to_string()).collect();
        let webhooks: BTreeSet<&str> = posts.iter().map(|post| post.header("webhook-id")).collect();
        assert_eq!((tasks.len(), webhooks.len()), (TASKS, TASKS), "{faults}: the same id whenever it is posted");
        ensure!(posts.len() <= TASKS + EACH, "{faults}: {} posts of {TASKS}", posts.len());
    }
    pair.stop().await
}
