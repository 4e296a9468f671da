//! Dead letters and replays over HTTP: who may, who may not, and what a crash between leaves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use e2e::client::Answer;
use e2e::{Client, Events, Pair, broker};
use futures_util::future::{join_all, try_join_all};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api_keys;
use crate::catalog::announced;
use crate::life::SOON;
use crate::revoke::runs;

const ONCE: &str = r#"{"max_retries": 0}"#;

async fn call(client: &Client, method: Method, path: &str) -> Result<Answer> {
    client.send(client.request(method, path)).await
}

async fn post(client: &Client, path: &str, body: &Value) -> Result<Answer> {
    client.send(client.request(Method::POST, path).json(body)).await
}

fn problem(answer: &Answer) -> (u16, &str) {
    let kind = answer.body["type"].as_str().unwrap_or_default();
    (answer.status, kind.strip_prefix("urn:errand:problem:").unwrap_or(kind))
}

/// A task that fails at its first attempt and is given up.
async fn given_up(client: &Client, wish: Value) -> Result<Value> {
    let mut wish = wish;
    wish["retry"] = serde_json::from_str(ONCE)?;
    let id = client.accepted(&wish).await?;
    let ended = client.await_terminal(&id, SOON).await?;
    ensure!(ended["state"] == "FAILURE", "{ended:#}");
    Ok(ended)
}

fn ids(list: &Value) -> Vec<&str> {
    list["dead_letters"].as_array().into_iter().flatten().filter_map(|task| task["task_id"].as_str()).collect()
}

async fn letters(client: &Client, query: &str) -> Result<Value> {
    let answer = client.get_path(&format!("/v1/dead-letters?{query}")).await?;
    ensure!(answer.status == 200, "{query}: {}", answer.text);
    Ok(answer.body)
}

async fn attempts(client: &Client, id: &str) -> Result<Vec<Value>> {
    let answer = client.get_path(&format!("/v1/tasks/{id}/attempts")).await?;
    Ok(answer.body["attempts"].as_array().cloned().unwrap_or_default())
}

/// The sum of `/v1/stats`, which must be what was accepted.
async fn assert_sum(client: &Client) -> Result<()> {
    let stats = client.get_path("/v1/stats").await?.body;
    let places = ["scheduled", "waiting", "queued", "running", "retrying", "success", "failure", "revoked"];
    let sum: u64 = places.iter().filter_map(|place| stats[*place].as_u64()).sum();
    ensure!(stats["accepted"].as_u64() == Some(sum), "{stats}");
    Ok(())
}

/// Publishes a worker's word about an attempt.
async fn report(pair: &Pair, id: &str, status: &str, retries: u32) -> Result<()> {
    let management = &pair.broker().management;
    let queues = management.queues(pair.vhost()).await?;
    let results = queues.iter().find(|queue| queue.starts_with("errand.results.")).context("no reply queue")?;
    let properties = json!({"content_type": "application/json", "correlation_id": id});
    let body = json!({"status": status, "result": 99, "task_id": id, "retries": retries, "seq": 0, "traceback": null});
    let routed = management.publish(pair.vhost(), "", results, &properties, &body.to_string()).await?;
    ensure!(routed, "{results} did not take it");
    Ok(())
}

/// The task after a late report about it was heard, and one about another task after that.
async fn after_late(pair: &Pair, id: &str, status: &str) -> Result<Value> {
    let marker = pair.client().accepted(&json!({"task": "echo", "args": [0]})).await?;
    report(pair, id, status, 0).await?;
    report(pair, &marker, "SUCCESS", 0).await?;
    pair.client().await_terminal(&marker, SOON).await?;
    pair.client().get(id).await
}

#[tokio::test]
async fn what_is_no_dead_letter_is_not_replayed() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let client = pair.client();
    for (method, path, expected) in [
        (Method::GET, "/v1/dead-letters/ghost", (404, "unknown-dead-letter")),
        (Method::DELETE, "/v1/dead-letters/ghost", (404, "unknown-dead-letter")),
        (Method::POST, "/v1/dead-letters/ghost/replay", (404, "unknown-dead-letter")),
        (Method::POST, "/v1/tasks/ghost/retry", (404, "unknown-task")),
        (Method::GET, "/v1/dead-letters?state=FAILURE", (400, "invalid-parameters")),
        (Method::GET, "/v1/dead-letters?cursor=1ff", (400, "invalid-parameters")),
        (Method::GET, "/v1/dead-letters?limit=1001", (400, "invalid-parameters")),
        (Method::POST, "/v1/dead-letters/replay?rate=0", (400, "invalid-parameters")),
        (Method::POST, "/v1/dead-letters/replay?dry_run=yes", (400, "invalid-parameters")),
        (Method::POST, "/v1/dead-letters/replay?limit=5", (400, "invalid-parameters")),
        (Method::POST, "/v1/tasks/ghost/retry?edti=true", (400, "invalid-parameters")),
    ] {
        assert_eq!(problem(&call(client, method, path).await?), expected, "{path}");
    }
    let done = client.accepted(&json!({"task": "echo", "args": [1]})).await?;
    client.await_terminal(&done, SOON).await?;
    assert_eq!(
        problem(&call(client, Method::POST, &format!("/v1/tasks/{done}/retry")).await?),
        (409, "task-succeeded")
    );
    let later = client.accepted(&json!({"task": "echo", "args": [1], "countdown": 600})).await?;
    assert_eq!(problem(&call(client, Method::POST, &format!("/v1/tasks/{later}/retry")).await?), (409, "task-open"));
    let as_letter = call(client, Method::POST, &format!("/v1/dead-letters/{later}/replay")).await?;
    assert_eq!(problem(&as_letter), (404, "unknown-dead-letter"));
    pair.stop().await
}

#[tokio::test]
async fn dead_letters_are_listed_at_once_found_by_what_they_are_and_dismissed() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).env("QUEUES", "default,mail").start().await?;
    let client = pair.client();
    let cases = [("a", "always_fails", "default"), ("b", "always_fails", "mail"), ("c", "no_such_task", "mail")];
    for (id, task, queue) in cases {
        let ended = given_up(client, json!({"task": task, "args": ["no"], "queue": queue, "task_id": id})).await?;
        let start = Instant::now();
        let list = letters(client, "limit=1").await?;
        assert_eq!((ids(&list), &list["dead_letters"][0]), (vec![id], &ended), "{list:#}");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    let second = client.get("b").await?["finished_at"].as_str().unwrap_or_default().to_owned();
    for (query, expected) in [
        (String::new(), vec!["c", "b", "a"]),
        ("task=always_fails".to_owned(), vec!["b", "a"]),
        ("queue=mail".to_owned(), vec!["c", "b"]),
        ("error_type=NotRegistered".to_owned(), vec!["c"]),
        ("error_type=AlwaysFails&queue=mail".to_owned(), vec!["b"]),
        ("error_type=Other".to_owned(), vec![]),
        (format!("since={second}"), vec!["c", "b"]),
        (format!("until={second}"), vec!["b", "a"]),
    ] {
        assert_eq!(ids(&letters(client, &query).await?), expected, "{query}");
    }
    let (mut query, mut seen) = ("limit=1".to_owned(), Vec::new());
    loop {
        let page = letters(client, &query).await?;
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=1&cursor={cursor}");
    }
    assert_eq!(seen, ["c", "b", "a"]);
    assert_eq!(call(client, Method::GET, "/v1/dead-letters/b").await?.body, client.get("b").await?);
    assert_eq!(call(client, Method::DELETE, "/v1/dead-letters/b").await?.status, 204);
    for (method, path) in [(Method::DELETE, ""), (Method::GET, ""), (Method::POST, "/replay")] {
        let answer = call(client, method, &format!("/v1/dead-letters/b{path}")).await?;
        assert_eq!(problem(&answer), (404, "unknown-dead-letter"));
    }
    assert_eq!(
        (ids(&letters(client, "").await?), &client.get("b").await?["state"]),
        (vec!["c", "a"], &json!("FAILURE"))
    );
    pair.stop().await
}

#[tokio::test]
async fn of_many_replays_of_a_letter_one_runs_and_no_late_report_ends_it() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("WORKER_NAME", "w1@test").start().await?;
    let client = pair.client();
    given_up(client, json!({"task": "flaky", "args": [1], "task_id": "a"})).await?;
    let told = Events::open(client.address(), "a", None).await?.rest(SOON).await?;
    let end = told.last().context("no event")?;
    call(client, Method::POST, "/v1/queues/default/pause").await?;
    let all = join_all((0..40).map(|_| call(client, Method::POST, "/v1/dead-letters/a/replay"))).await;
    let all: Vec<Answer> = all.into_iter().collect::<Result<_>>()?;
    let count = |status: u16| all.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(202), count(200)), (1, 39), "the others see it as it stands");
    assert!(all.iter().all(|answer| answer.body["state"] == "PENDING" && answer.body["retries"] == 1));
    assert_eq!(ids(&letters(client, "").await?), Vec::<&str>::new());
    let edited = post(client, "/v1/dead-letters/a/replay?edit=true", &json!({"args": [0]})).await?;
    assert_eq!(problem(&edited), (409, "task-open"), "an edit that is not made is not answered with success");
    for status in ["SUCCESS", "FAILURE", "REVOKED", "STARTED"] {
        let task = after_late(&pair, "a", status).await?;
        assert_eq!((&task["state"], &task["retries"]), (&json!("PENDING"), &json!(1)), "after a late {status}");
    }
    assert_sum(client).await?;
    let mut events = Events::open(client.address(), "a", Some(&end.id)).await?;
    assert_eq!(events.next(SOON).await?.context("nothing follows")?.data["state"], "PENDING");
    call(client, Method::POST, "/v1/queues/default/resume").await?;
    assert_eq!(events.rest(SOON).await?.last().context("no end")?.data["state"], "SUCCESS");
    let ended = client.await_terminal("a", SOON).await?;
    assert_eq!((&ended["state"], &ended["result"], &ended["retries"]), (&json!("SUCCESS"), &json!(1), &json!(1)));
    assert_eq!(runs(&pair.consumers[0]).await?, 2);
    let told = attempts(client, "a").await?;
    assert_eq!(told.len(), 2, "{told:#?}");
    assert_eq!((&told[0]["state"], &told[0]["replay"]), (&json!("FAILURE"), &Value::Null));
    assert_eq!((&told[0]["error"]["type"], &told[0]["worker"]), (&json!("Flaky"), &json!("w1@test")));
    let replay = &told[1]["replay"];
    assert_eq!((&told[1]["attempt"], &told[1]["state"]), (&json!(1), &json!("SUCCESS")));
    assert_eq!((&replay["route"], &replay["edited"]), (&json!("dead-letter"), &json!(false)));
    let times = [&told[0]["ended_at"], &replay["at"], &told[1]["ended_at"]].map(|at| at.as_str().unwrap_or_default());
    assert!(times.is_sorted() && !times[0].is_empty(), "{times:?}");
    assert_eq!(problem(&call(client, Method::POST, "/v1/dead-letters/a/replay").await?), (404, "unknown-dead-letter"));
    assert_sum(client).await?;
    pair.stop().await
}

#[tokio::test]
async fn a_task_is_called_with_something_else_only_when_that_is_said_and_both_are_kept() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let client = pair.client();
    announced(&pair).await?;
    given_up(client, json!({"task": "always_fails", "args": ["no"], "task_id": "a"})).await?;
    let before = client.get("a").await?;
    for (path, body, status, pointer) in [
        ("/v1/tasks/a/retry", json!({"args": ["other"]}), 422, "/args"),
        ("/v1/dead-letters/a/replay?edit=false", json!({"kwargs": {}}), 422, "/kwargs"),
        ("/v1/dead-letters/a/replay?edit=true", json!({}), 422, ""),
        ("/v1/dead-letters/a/replay?edit=true", json!({"args": ["x"], "queue": "mail"}), 422, "/queue"),
        ("/v1/tasks/a/retry?edit=true", json!({"args": [1]}), 422, "/args/0"),
        ("/v1/tasks/a/retry?edit=true", json!({"args": ["x", "y"]}), 422, "/args"),
    ] {
        let answer = post(client, path, &body).await?;
        assert_eq!((answer.status, &answer.body["errors"][0]["pointer"]), (status, &json!(pointer)), "{}", answer.text);
    }
    let html = client.request(Method::POST, "/v1/tasks/a/retry").header("content-type", "text/html").body("{}");
    assert_eq!(client.send(html).await?.status, 415);
    assert_eq!(client.get("a").await?, before, "nothing changed");
    let answer = post(client, "/v1/tasks/a/retry?edit=true", &json!({"args": ["other"]})).await?;
    assert_eq!((answer.status, &answer.body["args"]), (202, &json!(["other"])), "{}", answer.text);
    let ended = client.await_terminal("a", SOON).await?;
    assert_eq!((&ended["error"]["message"], &ended["retries"]), (&json!("other"), &json!(1)), "{ended:#}");
    let told = attempts(client, "a").await?;
    let expected = json!({"route": "task", "edited": true, "before": {"args": ["no"], "kwargs": {}}});
    let replay = told[1]["replay"].as_object().context("no replay")?;
    for (name, value) in expected.as_object().context("an object")? {
        assert_eq!(&replay[name], value);
    }
    assert_eq!((&told[0]["error"]["message"], ids(&letters(client, "").await?)), (&json!("no"), vec!["a"]));
    pair.stop().await
}

/// Its worker remembers the revocation for hours.
#[tokio::test]
async fn a_revoked_task_that_is_retried_runs_and_so_does_another_of_its_id() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let client = pair.client();
    let started = |task: &Value| task["state"] == "STARTED";
    client.accepted(&json!({"task": "long_running_task", "args": [1, 300], "task_id": "a"})).await?;
    client.await_state("a", started, SOON).await?;
    assert_eq!(call(client, Method::POST, "/v1/tasks/a/revoke").await?.status, 202);
    assert_eq!(client.await_terminal("a", SOON).await?["state"], "REVOKED");
    let as_letter = call(client, Method::POST, "/v1/dead-letters/a/replay").await?;
    assert_eq!(problem(&as_letter), (404, "unknown-dead-letter"), "it was not given up");
    let retried = post(client, "/v1/tasks/a/retry?edit=true", &json!({"args": [2, 1]})).await?;
    assert_eq!(retried.status, 202, "{}", retried.text);
    let ended = client.await_terminal("a", SOON).await?;
    assert_eq!((&ended["state"], &ended["result"], &ended["retries"]), (&json!("SUCCESS"), &json!(4), &json!(1)));
    assert_eq!(runs(&pair.consumers[0]).await?, 2);

    client.accepted(&json!({"task": "sleep", "args": [300], "task_id": "b"})).await?;
    client.await_state("b", started, SOON).await?;
    call(client, Method::POST, "/v1/tasks/b/revoke").await?;
    client.await_terminal("b", SOON).await?;
    assert_eq!(call(client, Method::DELETE, "/v1/tasks/b").await?.status, 204);
    client.accepted(&json!({"task": "sleep", "args": [300], "task_id": "b"})).await?;
    client.await_state("b", started, SOON).await?;
    // A life that began later may be revoked, too.
    call(client, Method::POST, "/v1/tasks/b/revoke").await?;
    assert_eq!(client.await_terminal("b", SOON).await?["state"], "REVOKED");
    assert_sum(client).await?;
    pair.stop().await
}

#[tokio::test]
async fn a_key_sees_and_replays_its_own_dead_letters_only() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let (_, one) = api_keys::client(&pair, "submit,read", &[]).await?;
    let (_, other) = api_keys::client(&pair, "submit,read", &[]).await?;
    let (_, admin) = api_keys::client(&pair, "admin", &[]).await?;
    for (client, id) in [(&one, "a"), (&other, "b")] {
        given_up(client, json!({"task": "flaky", "args": [1], "task_id": id})).await?;
    }
    for (method, path, kind) in [
        (Method::GET, "/v1/dead-letters/b", "unknown-dead-letter"),
        (Method::DELETE, "/v1/dead-letters/b", "unknown-dead-letter"),
        (Method::POST, "/v1/dead-letters/b/replay", "unknown-dead-letter"),
        (Method::POST, "/v1/tasks/b/retry", "unknown-task"),
    ] {
        assert_eq!(problem(&call(&one, method, path).await?), (404, kind), "{path}");
    }
    assert_eq!((ids(&letters(&one, "").await?), ids(&letters(&admin, "").await?)), (vec!["a"], vec!["b", "a"]));
    assert_eq!(ids(&letters(&one, "task=flaky").await?), ["a"]);
    let replayed = call(&one, Method::POST, "/v1/dead-letters/replay").await?;
    assert_eq!(replayed.body["replayed"], 1, "{}", replayed.text);
    assert_eq!(one.await_terminal("a", SOON).await?["state"], "SUCCESS");
    assert_eq!(other.get("b").await?["state"], "FAILURE");
    assert_eq!(call(&admin, Method::POST, "/v1/dead-letters/b/replay").await?.status, 202);
    assert_eq!(other.await_terminal("b", SOON).await?["retries"], 1);
    pair.stop().await
}

#[tokio::test]
async fn a_producer_killed_in_a_replay_of_many_goes_on_with_it_at_its_rate() -> Result<()> {
    const COUNT: usize = 60;
    const RATE: f64 = 15.0;
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let client = pair.client().clone();
    let wish = |number: usize| json!({"task": "flaky", "args": [1], "task_id": format!("t{number:02}")});
    try_join_all((0..COUNT).map(|number| given_up(&client, wish(number)))).await?;
    given_up(&client, json!({"task": "always_fails", "args": ["no"], "task_id": "other"})).await?;
    let many = async |query: &str| call(&client, Method::POST, &format!("/v1/dead-letters/replay?{query}")).await;
    let listed = letters(&client, "limit=1000").await?;
    let dry = many("task=flaky&error_type=Flaky&dry_run=true&rate=5").await?;
    assert_eq!(dry.body, json!({"dry_run": true, "replayed": COUNT, "more": false}));
    assert_eq!(letters(&client, "limit=1000").await?, listed, "nothing changed");
    let (start, asked) = (Instant::now(), SystemTime::now());
    let replayed = many(&format!("task=flaky&rate={RATE}")).await?;
    assert_eq!(replayed.body, json!({"dry_run": false, "replayed": COUNT, "more": false}), "{}", replayed.text);
    client.await_terminal(ids(&listed)[COUNT / 2], SOON).await?;
    pair.producer.kill()?;
    pair.restart_producer().await?;
    let again = many("task=flaky").await?;
    assert_eq!(again.body["replayed"], 0, "none of them is a dead letter any more");
    assert_sum(&client).await?;
    let mut ends = Vec::new();
    for number in 0..COUNT {
        let id = format!("t{number:02}");
        let ended = client.await_terminal(&id, SOON).await?;
        assert_eq!((&ended["state"], &ended["retries"]), (&json!("SUCCESS"), &json!(1)), "{ended:#}");
        let told = attempts(&client, &id).await?;
        assert_eq!((told.len(), &told[1]["replay"]["route"]), (2, &json!("dead-letters")), "{told:#?}");
        ends.push(humantime::parse_rfc3339(ended["finished_at"].as_str().context("no end")?)?);
    }
    println!("{COUNT} at {RATE} a second in {:?}", start.elapsed());
    ends.sort();
    for (number, end) in (0_u32..).zip(ends) {
        // Times are cut to the millisecond on both sides.
        let least = Duration::from_secs_f64(f64::from(number) / RATE).saturating_sub(Duration::from_millis(2));
        let after = end.duration_since(asked).unwrap_or_default();
        assert!(after >= least, "number {number} ended {after:?} after the request");
    }
    assert_eq!(ids(&letters(&client, "").await?), ["other"]);
    let ran = runs(&pair.consumers[0]).await?;
    // What the dead producer had published and not marked is published again, as ever: with this rate, a few at most.
    assert!((2 * COUNT + 1..2 * COUNT + 5).contains(&ran), "{ran} runs");
    let distinct: BTreeSet<&str> = ids(&listed).into_iter().collect();
    assert_eq!(distinct.len(), COUNT + 1);
    assert_sum(&client).await?;
    pair.stop().await
}
