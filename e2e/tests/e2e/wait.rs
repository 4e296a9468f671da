//! Reading a task: waits for its end or its news, validators, and when to look again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::Answer;
use e2e::{Client, Events, Pair, broker, until};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::life::SOON;

/// Submits with a preference: the answer and how long it took.
async fn submit(client: &Client, task: &Value, prefer: &str) -> Result<(Answer, Duration)> {
    let start = Instant::now();
    let request = client.request(Method::POST, "/v1/tasks").header("prefer", prefer).json(task);
    Ok((client.send(request).await?, start.elapsed()))
}

async fn read(client: &Client, id: &str, headers: &[(&str, &str)]) -> Result<(Answer, Duration)> {
    let start = Instant::now();
    let mut request = client.request(Method::GET, &format!("/v1/tasks/{id}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok((client.send(request).await?, start.elapsed()))
}

fn id_of(answer: &Answer) -> String {
    answer.body["task_id"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_submit_that_waits_is_answered_with_the_end_or_after_its_time() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let add = json!({"task": "add", "args": [1, 2]});
    let (ended, took) = submit(pair.client(), &add, "wait=20").await?;
    println!("a submit that waits is answered after {took:?}");
    assert_eq!((ended.status, &ended.body["result"]), (200, &json!(3)), "{}", ended.text);
    assert_eq!(ended.header("preference-applied"), Some("wait=20"));
    assert_eq!(ended.header("location"), Some(format!("/v1/tasks/{}", id_of(&ended)).as_str()));
    assert_eq!(ended.header("retry-after"), None);
    assert!(took < Duration::from_secs(10), "{took:?}");

    let (open, took) = submit(pair.client(), &json!({"task": "sleep", "args": [3]}), "wait=1").await?;
    assert_eq!((open.status, &open.body["state"]), (202, &json!("STARTED")), "{}", open.text);
    assert_eq!((open.header("preference-applied"), open.header("retry-after")), (None, Some("1")));
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "{took:?}");
    let (ended, _) = read(pair.client(), &id_of(&open), &[("prefer", "respond-async, wait=20")]).await?;
    assert_eq!((ended.status, &ended.body["state"]), (200, &json!("SUCCESS")), "{}", ended.text);
    assert_eq!(ended.header("preference-applied"), Some("wait=20"));
    for links in ["self", "events", "attempts", "revoke"] {
        let link = ended.body["links"][links].as_str().unwrap_or_default();
        assert!(link.starts_with(&format!("/v1/tasks/{}", id_of(&open))), "{links}: {link}");
    }
    pair.stop().await
}

#[tokio::test]
async fn what_cannot_be_waited_for_is_answered_at_once() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let (unknown, took) = read(pair.client(), "nope", &[("prefer", "wait=20")]).await?;
    assert_eq!((unknown.status, unknown.header("content-type")), (404, Some("application/problem+json")));
    assert!(took < Duration::from_secs(5), "{took:?}");
    let later = json!({"task": "add", "args": [1, 2], "countdown": 30});
    for prefer in ["wait=0", "wait=61", "wait=soon", "respond-async"] {
        let (accepted, took) = submit(pair.client(), &later, prefer).await?;
        assert_eq!((accepted.status, accepted.header("preference-applied")), (202, None), "{prefer}");
        let (open, again) = read(pair.client(), &id_of(&accepted), &[("prefer", prefer)]).await?;
        assert_eq!((open.status, open.header("preference-applied")), (200, None), "{prefer}");
        assert!(took.max(again) < Duration::from_secs(5), "{prefer}: {took:?}, {again:?}");
        let seconds: u32 = open.header("retry-after").context("an open task says when to look again")?.parse()?;
        assert!((25..=30).contains(&seconds), "due in 30 s, to be looked at in {seconds} s");
    }
    pair.stop().await
}

#[tokio::test]
async fn a_task_that_a_client_has_is_not_sent_again_until_it_is_another() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let id = pair.client().accepted(&json!({"task": "long_running_task", "kwargs": {"data": 1, "seconds": 2}})).await?;
    // The reason is part of what is validated, and says at last that nobody serves the queue.
    let unserved = |task: &Value| task["reason"].as_str().is_some_and(|reason| reason.contains("no worker"));
    pair.client().await_state(&id, unserved, SOON).await?;
    let (first, _) = read(pair.client(), &id, &[]).await?;
    assert_eq!(first.header("cache-control"), Some("no-cache"));
    let mut etag = first.header("etag").context("no ETag")?.to_owned();
    for seen in [etag.as_str(), "*", &format!("\"x\", W/{etag}")] {
        for method in [Method::GET, Method::HEAD] {
            let request = pair.client().request(method, &format!("/v1/tasks/{id}")).header("if-none-match", seen);
            let same = pair.client().send(request).await?;
            assert_eq!(
                (same.status, same.text.as_str(), same.header("etag")),
                (304, "", Some(etag.as_str())),
                "{seen}"
            );
        }
    }
    assert_eq!(read(pair.client(), &id, &[("if-none-match", "\"x\"")]).await?.0.status, 200);
    let (same, took) = read(pair.client(), &id, &[("if-none-match", &etag), ("prefer", "wait=1")]).await?;
    assert_eq!((same.status, same.header("preference-applied")), (304, Some("wait=1")));
    assert!(took >= Duration::from_secs(1), "{took:?}");

    pair.start_consumer(&[]).await?;
    let mut states = Vec::new();
    while states.last() != Some(&json!("SUCCESS")) {
        let (next, took) = read(pair.client(), &id, &[("if-none-match", &etag), ("prefer", "wait=20")]).await?;
        assert_eq!(next.status, 200, "{states:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        next.header("etag").context("no ETag")?.clone_into(&mut etag);
        states.push(next.body["state"].clone());
    }
    println!("a long poll saw {states:?}");
    assert!(states.contains(&json!("STARTED")), "{states:?}");
    let (same, took) = read(pair.client(), &id, &[("if-none-match", &etag), ("prefer", "wait=20")]).await?;
    assert_eq!(same.status, 304, "what has ended is not waited for");
    assert!(took < Duration::from_secs(5), "{took:?}");
    pair.stop().await
}

/// The gauge of those who watch.
async fn watchers(client: &Client) -> Result<usize> {
    let metrics = client.get_path("/metrics").await?.text;
    let line = metrics.lines().find_map(|line| line.strip_prefix("errand_watchers "));
    Ok(line.unwrap_or("0").parse()?)
}

pub(crate) async fn await_watchers(client: &Client, count: usize) -> Result<Duration> {
    let start = Instant::now();
    until(&format!("{count} who watch"), SOON, async || {
        let there_are = watchers(client).await?;
        ensure!(there_are == count, "there are {there_are}");
        Ok(start.elapsed())
    })
    .await
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place_and_a_shutdown_answers_the_rest() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let (client, address) = (pair.client().clone(), pair.client().address());
    let id = client.accepted(&json!({"task": "add", "args": [1, 2], "countdown": 600})).await?;
    let get = format!("GET /v1/tasks/{id} HTTP/1.1\r\nhost: e2e\r\nprefer: wait=60\r\n\r\n");
    let body = json!({"task": "add", "countdown": 600}).to_string();
    let post = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: e2e\r\nprefer: wait=60\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (mut waiting, mut listening) = (Vec::new(), Vec::new());
    for number in 0..40 {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(if number % 2 == 0 { &get } else { &post }.as_bytes()).await?;
        waiting.push(stream);
        listening.push(Events::open(address, &id, None).await?);
    }
    await_watchers(&client, 80).await?;
    waiting.truncate(10);
    listening.truncate(10);
    let freed = await_watchers(&client, 20).await?;
    println!("60 places are free {freed:?} after their clients went");
    assert!(freed < Duration::from_secs(5), "{freed:?}");

    let start = Instant::now();
    let status = pair.producer.terminate(SOON).await?;
    let took = start.elapsed();
    println!("with 20 who wait, the producer ends within {took:?}");
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    for mut stream in waiting {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8(answer)?;
        assert!(answer.starts_with("HTTP/1.1 20") && answer.contains(r#""state":"PENDING""#), "{answer}");
    }
    for mut events in listening {
        assert_eq!(events.rest(SOON).await?.len(), 1);
    }
    Ok(())
}
