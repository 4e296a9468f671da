//! Callbacks: signatures that a standard verifier takes, receivers inside, slow ones and those that are away, and the
//! producer's death.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::receiver::{Answer, Posted, verify};
use e2e::{NameServer, Pair, Receiver, broker, keys, ports, service};
use serde_json::{Value, json};

use crate::api_keys;
use crate::life::SOON;

const INSIDE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Loopback too, so that no test leaves the machine; `CALLBACK_ALLOW` makes it the outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const AWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// What an attempt has, and what a receiver has of them at once.
const DEADLINE: Duration = Duration::from_secs(15);
const EACH: usize = 4;

/// What an operator is shown beside the running producer.
fn secret(pair: &Pair, args: &[&str]) -> Result<String> {
    let url = format!("sqlite:{}", pair.store().display());
    let shown = Command::new(service::built("producer")?)
        .args(["callbacks", "secret"])
        .args(args)
        .env_clear()
        .env("DATABASE_URL", url)
        .output()?;
    ensure!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let secret = String::from_utf8(shown.stdout)?.trim().to_owned();
    ensure!(secret.starts_with("whsec_") && secret.len() == 50, "not a secret");
    Ok(secret)
}

async fn pair() -> Result<Pair> {
    Pair::on(broker::shared().await?).producer_env("CALLBACK_ALLOW", &INSIDE.to_string()).start().await
}

fn add(url: &str) -> Value {
    json!({"task": "add", "args": [1, 2], "callback": {"url": url}})
}

/// Waits until the task's callback is as wanted.
async fn await_callback(pair: &Pair, id: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let start = std::time::Instant::now();
    loop {
        let callback = pair.client().get(id).await?["callback"].take();
        if wanted(&callback) {
            return Ok(callback);
        }
        ensure!(start.elapsed() < SOON, "the callback is still {callback:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn await_state(pair: &Pair, id: &str, state: &str) -> Result<Value> {
    await_callback(pair, id, |callback| callback["state"] == state).await
}

fn with(post: &Posted, change: impl FnOnce(&mut Posted)) -> Posted {
    let mut forged = post.clone();
    change(&mut forged);
    forged
}

fn header(post: &Posted, name: &str, value: &str) -> Posted {
    with(post, |post| drop(post.headers.insert(name.to_owned(), value.to_owned())))
}

#[tokio::test]
async fn a_standard_verifier_refuses_what_is_forged_and_takes_what_is_genuine_through_a_rotation() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).producer_env("CALLBACK_ALLOW", &INSIDE.to_string());
    let (pair, receiver) = (pair.producer_env("RUST_LOG", "trace").start().await?, Receiver::start().await?);
    let first = secret(&pair, &[])?;
    let url = receiver.url("/hook?token=hidden");
    let id = pair.client().accepted(&add(&url)).await?;
    let genuine = receiver.await_posts("/hook?token=hidden", 1, SOON).await?.remove(0);
    let other = {
        pair.client().accepted(&add(&receiver.url("/other"))).await?;
        receiver.await_posts("/other", 1, SOON).await?.remove(0)
    };
    let timestamp: u64 = genuine.header("webhook-timestamp").parse()?;
    let forged = [
        with(&genuine, |post| post.body = post.body.replacen("SUCCESS", "FAILURE", 1)),
        with(&genuine, |post| post.body.push(' ')),
        header(&genuine, "webhook-timestamp", &(timestamp + 1).to_string()),
        header(&genuine, "webhook-timestamp", &(timestamp - 3_600).to_string()),
        header(&genuine, "webhook-id", other.header("webhook-id")),
        header(&genuine, "webhook-signature", other.header("webhook-signature")),
        header(&genuine, "webhook-signature", "v1,AAAA"),
        with(&genuine, |post| drop(post.headers.remove("webhook-signature"))),
    ];
    assert_eq!(verify(&first, &forged).await?, [false; 8]);
    assert_eq!(verify("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", std::slice::from_ref(&genuine)).await?, [false]);
    assert_eq!(verify(&first, &[genuine.clone(), other]).await?, [true, true]);
    let callback = await_state(&pair, &id, "delivered").await?;
    assert_eq!((&callback["attempts"], &callback["url"]), (&json!(1), &json!(receiver.url("/hook"))));

    assert_eq!(secret(&pair, &[])?, first);
    let second = secret(&pair, &["--rotate"])?;
    assert!(second != first && secret(&pair, &[])? == second);
    pair.client().accepted(&add(&receiver.url("/rotated"))).await?;
    let rotated = receiver.await_posts("/rotated", 1, SOON).await?;
    assert_eq!((verify(&first, &rotated).await?, verify(&second, &rotated).await?), (vec![true], vec![true]));
    assert_eq!(verify(&second, &[genuine]).await?, [false]);
    let log = std::fs::read_to_string(pair.producer.log())?;
    for hidden in [&first[6..], &second[6..], "token=hidden"] {
        assert!(!log.contains(hidden), "{hidden} is logged");
    }
    pair.stop().await
}

#[tokio::test]
async fn callbacks_are_signed_with_the_secret_of_their_tasks_key() -> Result<()> {
    let (pair, receiver) = (pair().await?, Receiver::start().await?);
    let made = [0, 1].map(|_| keys::create(pair.store(), "submit,read", &[]));
    let [one, other] = made;
    let (one, other) = (one?, other?);
    api_keys::needed(pair.client()).await?;
    let mut secrets = Vec::new();
    for key in [&one, &other] {
        secrets.push(secret(&pair, &["--key", &key.id])?);
        let client = pair.client().with_key(&key.token);
        let id = client.accepted(&add(&receiver.url(&format!("/{}", key.id)))).await?;
        client.await_terminal(&id, SOON).await?;
    }
    for (key, own, foreign) in [(&one, 0, 1), (&other, 1, 0)] {
        let posts = receiver.await_posts(&format!("/{}", key.id), 1, SOON).await?;
        let verdicts = (verify(&secrets[own], &posts).await?, verify(&secrets[foreign], &posts).await?);
        assert_eq!(verdicts, (vec![true], vec![false]));
    }
    assert!(secret(&pair, &["--key", "nobody"]).is_err_and(|error| error.to_string().contains("nobody")));
    let rotated = secret(&pair, &["--key", &one.id, "--rotate"])?;
    assert!(rotated != secrets[0] && secret(&pair, &["--key", &other.id])? == secrets[1]);
    pair.stop().await
}

/// What a task's message and the API are to show alike: of a long task neither its arguments nor its result.
fn members(task: &Value, is_long: bool) -> Value {
    let mut task = task.clone();
    for apart in ["callback", "omitted"].into_iter().chain(["args", "result"].into_iter().filter(|_| is_long)) {
        task.as_object_mut().map(|members| members.remove(apart));
    }
    task
}

#[tokio::test]
async fn every_end_is_posted_once_and_only_those_that_were_asked_for() -> Result<()> {
    let (pair, receiver) = (pair().await?, Receiver::start().await?);
    let client = pair.client();
    let callback = json!({"url": receiver.url("/hook")});
    let submit = async |task: &str, rest: Value| -> Result<String> {
        let mut wish = json!({"task": task, "callback": callback, "retry": {"max_retries": 0}});
        wish.as_object_mut().context("an object")?.extend(rest.as_object().cloned().unwrap_or_default());
        client.accepted(&wish).await
    };
    let succeeded = submit("add", json!({"args": [1, 2]})).await?;
    let failed = submit("always_fails", json!({"kwargs": {"message": "no"}})).await?;
    let revoked = submit("add", json!({"args": [1, 2], "countdown": 600})).await?;
    let expired = submit("add", json!({"args": [1, 2], "countdown": 600, "expires": 0.2})).await?;
    let long = submit("echo", json!({"args": ["x".repeat(100_000)]})).await?;
    client.send(client.request(reqwest::Method::POST, &format!("/v1/tasks/{revoked}/revoke"))).await?;
    let unwanted =
        json!({"task": "add", "args": [1, 2], "callback": {"url": receiver.url("/no"), "events": ["FAILURE"]}});
    let unwanted = client.accepted(&unwanted).await?;
    let batch = json!([
        {"task": "add", "args": [1, 2], "callback": {"url": receiver.url("/batch")}},
        {"task": "add", "args": [3, 4]},
        {"task": "add", "args": [5, 6], "callback": {"url": receiver.url("/batch"), "events": ["SUCCESS"]}},
    ]);
    let batch = client.send(client.request(reqwest::Method::POST, "/v1/tasks/batch").json(&batch)).await?;
    assert_eq!(batch.status, 202, "{}", batch.text);

    let posts = receiver.await_posts("/hook", 5, SOON).await?;
    let find = |id: &str| posts.iter().map(Posted::json).find(|message| message["data"]["task_id"] == *id);
    for (id, kind, state) in [
        (&succeeded, "task.succeeded", "SUCCESS"),
        (&failed, "task.failed", "FAILURE"),
        (&revoked, "task.revoked", "REVOKED"),
        (&expired, "task.revoked", "REVOKED"),
        (&long, "task.succeeded", "SUCCESS"),
    ] {
        let message = find(id).with_context(|| format!("{kind} of {id} was not posted"))?;
        assert_eq!((&message["type"], &message["data"]["state"]), (&json!(kind), &json!(state)));
        assert_eq!(message["timestamp"], message["data"]["finished_at"]);
        assert_eq!(members(&message["data"], *id == long), members(&client.get(id).await?, *id == long));
    }
    let long = posts.iter().find(|post| post.body.contains(&long)).context("the long one")?;
    assert!(long.body.len() < 4_096 && long.json()["data"]["result"].is_null());
    assert_eq!(long.json()["data"]["omitted"], json!(["args", "result"]));
    receiver.await_posts("/batch", 2, SOON).await?;
    assert_eq!(client.await_terminal(&unwanted, SOON).await?["callback"]["state"], "unwanted");
    for id in [&succeeded, &failed, &revoked, &expired] {
        await_state(&pair, id, "delivered").await?;
    }
    assert_eq!(receiver.count(), 7, "nothing is posted twice or without being asked for");
    let ids: BTreeSet<&str> = posts.iter().map(|post| post.header("webhook-id")).collect();
    assert_eq!(ids.len(), 5);
    assert_eq!(verify(&secret(&pair, &[])?, &posts).await?, [true; 5]);
    pair.stop().await
}

#[tokio::test]
async fn no_callback_leads_inside() -> Result<()> {
    let port = ports::free()?;
    let (inside, outside) = (Receiver::at(INSIDE.into(), port).await?, Receiver::at(OUTSIDE.into(), port).await?);
    let names = NameServer::start().await?;
    let pair = Pair::on(broker::shared().await?).producer_env("CALLBACK_ALLOW", &OUTSIDE.to_string());
    let pair = pair.producer_env("CALLBACK_NAMESERVERS", &names.address().to_string()).start().await?;
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "u:pw@127.0.0.2"] {
        for scheme in ["http", "https"] {
            let refused = pair.client().submit(&add(&format!("{scheme}://{host}:{port}/hook"))).await?;
            let pointer = &refused.body["errors"][0]["pointer"];
            assert_eq!((refused.status, pointer), (422, &json!("/callback/url")), "{host}: {}", refused.text);
            assert!(!refused.text.contains("pw"), "{}", refused.text);
        }
    }
    let plain = pair.client().submit(&add("http://1.1.1.1/")).await?;
    assert!(plain.status == 422 && plain.text.contains("CALLBACK_ALLOW"), "{}", plain.text);

    names.set("inside.test", &[&[INSIDE]]);
    names.set("both.test", &[&[OUTSIDE, INSIDE]]);
    names.set("rebind.test", &[&[OUTSIDE], &[INSIDE]]);
    // Public, and so a place for https only.
    names.set("public.test", &[&[Ipv4Addr::new(1, 1, 1, 1)]]);
    for (host, error) in [
        ("inside.test", "inside.test: a loopback address"),
        ("both.test", "both.test: a loopback address"),
        ("public.test", "public.test: not among the hosts and networks that are allowed"),
    ] {
        let id = pair.client().accepted(&add(&inside.url_as(host, "/hook"))).await?;
        let callback = await_callback(&pair, &id, |callback| callback["attempts"].as_u64() >= Some(1)).await?;
        assert_eq!((&callback["state"], &callback["last_error"]), (&json!("pending"), &json!(error)), "{callback:#}");
        assert!(callback["next_at"].is_string());
    }
    outside.answer("/rebind", &[Answer::Status(500)]);
    let rebound = pair.client().accepted(&add(&outside.url_as("rebind.test", "/rebind"))).await?;
    let callback = await_callback(&pair, &rebound, |callback| callback["attempts"].as_u64() >= Some(2)).await?;
    assert_eq!(callback["last_error"], "rebind.test: a loopback address");
    assert!(names.asked("rebind.test") >= 2 && outside.posts("/rebind").len() == 1);

    outside.answer("/away", &[Answer::Redirect(inside.url("/hook"))]);
    let away = pair.client().accepted(&add(&outside.url("/away"))).await?;
    let callback = await_callback(&pair, &away, |callback| callback["attempts"].as_u64() >= Some(1)).await?;
    assert!(callback["last_error"].to_string().contains("307"), "{callback:#}");
    assert_eq!(inside.count(), 0);
    pair.stop().await
}

#[tokio::test]
async fn a_receiver_that_is_slow_or_away_gets_it_later_and_holds_up_no_other() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).producer_env("CALLBACK_ALLOW", "127.0.0.0/8").start().await?;
    // A receiver is a host.
    let silent = Receiver::at(OUTSIDE.into(), ports::free()?).await?;
    let (good, away) = (Receiver::start().await?, SocketAddr::from((AWAY, ports::free()?)));
    silent.answer("/hook", &[Answer::Silence]);
    good.answer("/fails", &[Answer::Status(500), Answer::Status(204)]);
    good.answer("/slow", &[Answer::Silence, Answer::Status(200)]);
    good.answer("/gone", &[Answer::Status(410)]);
    good.answer("/endless", &[Answer::Endless]);
    let mut stuck = Vec::new();
    for _ in 0..3 * EACH {
        stuck.push(pair.client().accepted(&add(&silent.url("/hook"))).await?);
    }
    for id in &stuck {
        pair.client().await_terminal(id, SOON).await?;
    }
    let first = silent.await_posts("/hook", EACH, SOON).await?;
    let submit = async |path: &str| pair.client().accepted(&add(&good.url(path))).await;
    let fails = submit("/fails").await?;
    let (gone, endless, slow) = (submit("/gone").await?, submit("/endless").await?, submit("/slow").await?);
    let later = pair.client().accepted(&add(&format!("http://{away}/hook"))).await?;
    submit("/hook").await?;
    good.await_posts("/hook", 1, SOON).await?;
    let took = first[0].at.elapsed();
    assert!(took < DEADLINE, "the others waited for the silent one: {took:?}");
    assert_eq!(silent.count(), EACH, "one receiver has its own room only");

    let failed = await_callback(&pair, &later, |callback| callback["attempts"].as_u64() >= Some(1)).await?;
    assert_eq!(failed["state"], "pending");
    let back = Receiver::at(away.ip(), away.port()).await?;
    back.await_posts("/hook", 1, SOON).await?;
    let callback = await_state(&pair, &later, "delivered").await?;
    assert!(callback["attempts"].as_u64() >= Some(2) && callback["last_error"].is_null(), "{callback:#}");
    let twice = good.await_posts("/fails", 2, SOON).await?;
    assert_eq!(twice[0].header("webhook-id"), twice[1].header("webhook-id"));
    assert!(twice[1].at - twice[0].at >= Duration::from_secs(5));
    await_state(&pair, &fails, "delivered").await?;
    let slow_twice = good.await_posts("/slow", 2, SOON).await?;
    assert!(slow_twice[1].at - slow_twice[0].at >= DEADLINE);
    await_state(&pair, &slow, "delivered").await?;
    await_state(&pair, &endless, "delivered").await?;
    let callback = await_state(&pair, &gone, "failed").await?;
    assert_eq!((&callback["attempts"], &callback["next_at"]), (&json!(1), &Value::Null), "{callback:#}");
    assert!(silent.count() > EACH, "its next ones are tried when the first were too slow");
    let all: Vec<Posted> = [twice, slow_twice].concat();
    assert_eq!(verify(&secret(&pair, &[])?, &all).await?, [true; 4]);
    let metrics = pair.client().get_path("/metrics").await?.text;
    assert!(metrics.contains(r#"errand_callbacks_total{outcome="delivered"}"#), "{metrics}");
    assert!(pair.producer.log_tail(1_000).contains("a callback is given up"));
    pair.stop().await
}

#[tokio::test]
async fn a_producer_killed_between_an_end_and_its_delivery_posts_it_after_its_restart() -> Result<()> {
    let (mut pair, receiver) = (pair().await?, Receiver::start().await?);
    receiver.answer("/hook", &[Answer::Silence, Answer::Status(204)]);
    let id = pair.client().accepted(&add(&receiver.url("/hook"))).await?;
    let port = ports::free()?;
    let never = pair.client().accepted(&add(&format!("http://{INSIDE}:{port}/hook"))).await?;
    receiver.await_posts("/hook", 1, SOON).await?;
    await_callback(&pair, &never, |callback| callback["attempts"].as_u64() >= Some(1)).await?;
    pair.producer.kill()?;
    let back = Receiver::at(INSIDE.into(), port).await?;
    pair.restart_producer().await?;
    let posts = receiver.await_posts("/hook", 2, SOON).await?;
    assert_eq!(posts[0].header("webhook-id"), posts[1].header("webhook-id"), "so that the receiver can tell");
    assert_eq!((posts[0].json()["data"]["task_id"].clone(), posts[1].body.clone()), (json!(id), posts[0].body.clone()));
    await_state(&pair, &id, "delivered").await?;
    back.await_posts("/hook", 1, SOON).await?;
    await_state(&pair, &never, "delivered").await?;
    assert_eq!((receiver.count(), back.count()), (2, 1));
    pair.stop().await
}
