//! The limits of a key: requests a second, open tasks, bytes that wait.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::client::Answer;
use e2e::{Client, Pair, broker};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api_keys::client;
use crate::life::SOON;
use crate::rows;

const CLIENTS: usize = 50;

fn later(argument: &str) -> Value {
    json!({"task": "echo", "args": [argument], "countdown": 600})
}

async fn batch(client: &Client, query: &str, tasks: &[Value]) -> Result<Answer> {
    client.send(client.request(Method::POST, &format!("/v1/tasks/batch{query}")).json(&tasks)).await
}

fn assert_limited(answer: &Answer, policy: &str, left: &str) {
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (429, Some("application/problem+json")),
        "{}",
        answer.text
    );
    let seconds = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(seconds.is_some_and(|seconds| (1..=600).contains(&seconds)), "{:?}", answer.headers);
    let all =
        |name: &str| answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default().to_owned());
    assert!(all("ratelimit-policy").any(|line| line.contains(policy)), "{policy}: {:?}", answer.headers);
    assert!(all("ratelimit").any(|line| line.contains(left)), "{left}: {:?}", answer.headers);
}

#[tokio::test]
async fn fifty_clients_at_once_get_no_more_open_tasks_than_their_key_may_have() -> Result<()> {
    const MAX: i64 = 20;
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let (_, limited) = client(&pair, "submit,read", &["--open-tasks", "20"]).await?;
    let (_, other) = client(&pair, "submit,read", &[]).await?;
    let answers = try_join_all((0..CLIENTS).map(|number| {
        let client = limited.clone();
        async move {
            let mut answers = Vec::new();
            for place in 0..4 {
                let task = later(&format!("{number}-{place}"));
                answers.push(match place {
                    0 => client.submit(&task).await?,
                    1 => batch(&client, "", &[task.clone(), task]).await?,
                    2 => batch(&client, "?partial=true", &[task]).await?,
                    _ => {
                        let request = client.request(Method::POST, "/v1/tasks").json(&task);
                        client.send(request.header("idempotency-key", format!("k{number}"))).await?
                    }
                });
            }
            anyhow::Ok(answers)
        }
    }));
    let answers: Vec<Answer> = answers.await?.into_iter().flatten().collect();
    assert_eq!(rows::count(pair.store()).await?, MAX, "all the room is used, and no more");
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(refused.len() > CLIENTS, "{}", refused.len());
    for answer in refused {
        assert_limited(answer, "\"open-tasks\";q=20", "\"open-tasks\";r=0");
    }
    assert!(answers.iter().all(|answer| [202, 429].contains(&answer.status)));
    assert_eq!(other.submit(&later("other")).await?.status, 202);

    pair.restart_producer().await?;
    assert_eq!(limited.submit(&later("again")).await?.status, 429, "what is open is open after a restart");
    let partial = batch(&limited, "?partial=true", &[later("again")]).await?;
    let detail = partial.body["rejected"][0]["errors"][0]["detail"].as_str().unwrap_or_default().to_owned();
    assert!(partial.status == 202 && detail.contains("20 unfinished tasks"), "{}", partial.text);
    let id = limited.get_path("/v1/tasks?limit=1").await?.body["tasks"][0]["task_id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let revoke = limited.request(Method::POST, &format!("/v1/tasks/{id}/revoke"));
    assert_eq!(limited.send(revoke).await?.status, 200);
    let keyed = async || {
        let request = limited.request(Method::POST, "/v1/tasks").header("idempotency-key", "last").json(&later("last"));
        limited.send(request).await
    };
    let first = keyed().await?;
    assert_eq!((first.status, first.header("idempotency-replayed")), (202, None), "one ended, so one has room");
    let again = keyed().await?;
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, Some("true")), "a replay takes none");
    assert_eq!(limited.submit(&later("too many")).await?.status, 429);
    pair.start_consumer(&[]).await?;
    pair.stop().await
}

#[tokio::test]
async fn the_bytes_that_wait_are_those_of_unfinished_tasks() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let (_, limited) = client(&pair, "submit,read", &["--waiting-bytes", "1000"]).await?;
    let large = "x".repeat(400);
    let answers = try_join_all((0..CLIENTS).map(|_| {
        let (client, task) = (limited.clone(), later(&large));
        async move { client.submit(&task).await }
    }));
    let answers = answers.await?;
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 2);
    for refused in answers.iter().filter(|answer| answer.status != 202) {
        assert_limited(refused, "\"waiting-bytes\";q=1000;qu=\"content-bytes\"", "\"waiting-bytes\";r=0");
    }
    let id = limited.accepted(&json!({"task": "echo", "args": ["x".repeat(150)]})).await?;
    limited.await_terminal(&id, SOON).await?;
    assert_eq!(limited.accepted(&later(&"x".repeat(150))).await?.len(), 36, "what has ended waits no more");
    assert_eq!(limited.submit(&later(&"x".repeat(150))).await?.status, 429);
    pair.stop().await
}

#[tokio::test]
async fn a_key_sends_as_many_requests_a_second_as_it_may() -> Result<()> {
    const RATE: u32 = 10;
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let free = pair.client().get_path("/v1/task-types").await?;
    assert!(!free.headers.contains_key("ratelimit") && !free.headers.contains_key("ratelimit-policy"));
    let (_, limited) = client(&pair, "submit,read", &["--requests-per-second", "10"]).await?;
    let start = Instant::now();
    let answers = try_join_all((0..CLIENTS).map(|_| {
        let client = limited.clone();
        async move {
            let mut answers = Vec::new();
            while start.elapsed() < Duration::from_secs(1) {
                answers.push(client.get_path("/v1/tasks?limit=1").await?);
            }
            anyhow::Ok(answers)
        }
    }));
    let answers: Vec<Answer> = answers.await?.into_iter().flatten().collect();
    let let_through = u32::try_from(answers.iter().filter(|answer| answer.status == 200).count())?;
    let most = f64::from(RATE) * (1.0 + start.elapsed().as_secs_f64());
    println!("{let_through} of {} within {:?}", answers.len(), start.elapsed());
    assert!(f64::from(let_through) <= most && let_through >= RATE - 2 && answers.len() > CLIENTS, "{let_through}");
    for answer in &answers {
        if answer.status == 200 {
            assert_eq!(answer.header("ratelimit-policy"), Some("\"requests\";q=10;w=1"));
            assert!(answer.header("ratelimit").is_some_and(|left| left.starts_with("\"requests\";r=")));
        } else {
            assert_limited(answer, "\"requests\";q=10;w=1", "\"requests\";r=0;t=");
        }
    }
    let tasks: Vec<Value> = (0..30).map(|number| later(&number.to_string())).collect();
    let start = Instant::now();
    while batch(&limited, "", &tasks).await?.status == 429 {
        anyhow::ensure!(start.elapsed() < SOON, "a batch never gets in");
    }
    let waited = Instant::now();
    while limited.get_path("/v1/tasks?limit=1").await?.status == 429 {
        anyhow::ensure!(waited.elapsed() < SOON, "nothing gets in after a batch");
    }
    assert!(waited.elapsed() > Duration::from_secs(2), "a batch of 30 counts as 30: {:?}", waited.elapsed());
    Ok(())
}
