//! Idempotency keys: what a client repeats is accepted once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use e2e::client::Answer;
use e2e::{Client, Pair, broker};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::rows;

const CLIENTS: usize = 50;
const KEYS: usize = 200;

async fn submit(client: &Client, key: &str, task: &Value) -> Result<Answer> {
    client.send(client.request(Method::POST, "/v1/tasks").header("idempotency-key", key).json(task)).await
}

fn id(answer: &Answer) -> String {
    answer.body["task_id"].as_str().unwrap_or_default().to_owned()
}

fn is_replay(answer: &Answer) -> bool {
    answer.header("idempotency-replayed") == Some("true")
}

async fn pair() -> Result<Pair> {
    Pair::on(broker::shared().await?).consumers(0).start().await
}

#[tokio::test]
async fn a_repeated_submit_is_the_same_task_as_it_stands() -> Result<()> {
    let mut pair = pair().await?;
    let first = submit(pair.client(), "k-1", &json!({"task": "add", "args": [1, 2], "countdown": 1})).await?;
    assert_eq!((first.status, is_replay(&first)), (202, false), "{}", first.text);
    let other = submit(pair.client(), "k-1", &json!({"task": "add", "args": [1, 3], "countdown": 1})).await?;
    assert_eq!(other.status, 422, "{}", other.text);
    assert_eq!(other.body["type"], "urn:errand:problem:idempotency-key-reused");
    pair.start_consumer(&[]).await?;
    pair.client().await_terminal(&id(&first), crate::life::SOON).await?;
    let again = submit(pair.client(), "k-1", &json!({"args": [1, 2], "task": "add", "countdown": 1})).await?;
    assert_eq!((again.status, is_replay(&again), id(&again)), (202, true, id(&first)), "{}", again.text);
    assert_eq!((&again.body["state"], &again.body["result"]), (&json!("SUCCESS"), &json!(3)));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(rows::count(pair.store()).await?, 1);
    pair.stop().await
}

#[tokio::test]
async fn fifty_clients_with_the_same_keys_make_one_task_a_key() -> Result<()> {
    let mut pair = pair().await?;
    let start = Instant::now();
    let clients = (0..CLIENTS).map(|number| {
        let client = pair.client().clone();
        async move {
            let mut ids = Vec::with_capacity(KEYS);
            for place in 0..KEYS {
                // Not all in the same order, and yet close together.
                let key = format!("key-{}", place ^ (number % 4));
                let answer = submit(&client, &key, &json!({"task": "echo", "args": [key]})).await?;
                anyhow::ensure!(answer.status == 202, "{key}: {} {}", answer.status, answer.text);
                ids.push((key, id(&answer), is_replay(&answer)));
            }
            Ok(ids)
        }
    });
    let answers: Vec<_> = try_join_all(clients).await?.into_iter().flatten().collect();
    println!("{} submits in {:?}", answers.len(), start.elapsed());
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (key, id, _) in &answers {
        ids.entry(key.clone()).or_default().insert(id.clone());
    }
    assert_eq!((ids.len(), rows::count(pair.store()).await?), (KEYS, 200));
    assert!(ids.values().all(|ids| ids.len() == 1));
    assert_eq!(answers.iter().filter(|(.., is_replay)| !is_replay).count(), KEYS);
    pair.restart_producer().await?;
    for (key, known) in ids.iter().take(20) {
        let again = submit(pair.client(), key, &json!({"task": "echo", "args": [key]})).await?;
        assert_eq!((again.status, is_replay(&again), known.contains(&id(&again))), (202, true, true), "{}", again.text);
    }
    Ok(())
}

#[tokio::test]
async fn a_key_outlives_the_producer() -> Result<()> {
    let mut pair = pair().await?;
    let mut repeated = 0;
    for round in 0..5 {
        // Killed with submits under way: some were committed and never answered.
        let client = pair.client().clone();
        let wishes: Vec<String> = (0..40).map(|number| format!("r{round}-{number}")).collect();
        let answers = futures_util::future::join_all(wishes.iter().map(|key| {
            let client = client.clone();
            async move { submit(&client, key, &json!({"task": "echo", "args": [key]})).await.ok() }
        }));
        let kill = async {
            while rows::count(pair.store()).await? <= round * 40 {}
            pair.producer.kill()
        };
        let (answers, killed) = tokio::join!(answers, kill);
        killed?;
        pair.restart_producer().await?;
        for (key, first) in wishes.iter().zip(answers) {
            let again = submit(pair.client(), key, &json!({"task": "echo", "args": [key]})).await?;
            assert_eq!(again.status, 202, "{}", again.text);
            if let Some(first) = first {
                assert_eq!((id(&again), is_replay(&again)), (id(&first), true));
            }
            repeated += i32::from(is_replay(&again));
        }
        assert_eq!(rows::count(pair.store()).await?, (round + 1) * 40);
    }
    println!("{repeated} of 200 were there after the kill");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_a_key_is_named_and_a_taken_id_is_a_conflict() -> Result<()> {
    let pair = pair().await?;
    let task = json!({"task": "echo", "args": [1], "task_id": "mine"});
    for key in ["", "a b", &"x".repeat(256)] {
        let answer = submit(pair.client(), key, &task).await?;
        assert_eq!(answer.status, 400, "{key:?}: {}", answer.text);
        assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("Idempotency-Key")));
    }
    let twice = pair.client().request(Method::POST, "/v1/tasks").json(&task);
    let twice = twice.header("idempotency-key", "a").header("idempotency-key", "b");
    assert_eq!(pair.client().send(twice).await?.status, 400);
    assert_eq!(rows::count(pair.store()).await?, 0);
    assert_eq!(submit(pair.client(), &"x".repeat(255), &task).await?.status, 202);
    assert_eq!(submit(pair.client(), "other", &task).await?.status, 409);
    Ok(())
}

#[tokio::test]
async fn the_key_of_an_expired_result_is_not_free_and_that_of_a_deleted_task_is() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).producer_env("RESULT_TTL", "2s").start().await?;
    let task = json!({"task": "add", "args": [1, 2]});
    let deleted = id(&submit(pair.client(), "deleted", &task).await?);
    pair.client().await_terminal(&deleted, crate::life::SOON).await?;
    let path = format!("/v1/tasks/{deleted}");
    assert_eq!(pair.client().send(pair.client().request(Method::DELETE, &path)).await?.status, 204);
    let anew = submit(pair.client(), "deleted", &task).await?;
    assert_eq!((anew.status, is_replay(&anew)), (202, false));
    assert_ne!(id(&anew), deleted);
    crate::life::await_forgotten(pair.client(), &id(&anew)).await?;
    let gone = submit(pair.client(), "deleted", &task).await?;
    assert_eq!(gone.status, 410, "{}", gone.text);
    assert_eq!(rows::count(pair.store()).await?, 0);
    pair.stop().await
}
