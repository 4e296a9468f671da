//! The broker dies, is silent, raises an alarm, refuses, or loses its patience.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::broker::{Broker, Options};
use e2e::{Pair, broker, client, load, proxy::Proxy, until};
use futures_util::future::{join, try_join};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::{LONG, accepted, await_unready, echo, metric, runs_started, slow, succeed};
use crate::life::SOON;

#[tokio::test]
async fn a_stopped_broker_stops_no_submit_and_loses_no_task() -> Result<()> {
    let mut node = Broker::start(Options::default()).await?;
    let pair = Pair::on(&node).start().await?;
    let before = pair.client().accepted(&json!({"task": "add", "args": [1, 2]})).await?;
    pair.client().await_terminal(&before, SOON).await?;
    node.stop().await?;
    let id = pair.client().accepted(&json!({"task": "add", "args": [20, 22]})).await?;
    let why = |task: &Value| task["reason"].as_str().is_some_and(|why| why.contains("waiting for the broker"));
    let waiting = pair.client().await_state(&id, why, SOON).await?;
    assert_eq!(waiting["state"], "PENDING");
    let ready = pair.client().get_path("/readyz").await?;
    assert_eq!(ready.status, 200, "it accepts without a broker: {}", ready.text);
    node.start_again().await?;
    let ended = pair.client().await_terminal(&id, LONG).await?;
    assert_eq!(ended["result"], 42);
    pair.stop().await
}

/// When the port was found open.
async fn opening(node: &e2e::broker::Endpoint) -> Instant {
    while TcpStream::connect(node.amqp).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
    Instant::now()
}

#[tokio::test]
async fn a_broker_killed_under_load_is_worked_with_within_15_s_of_its_return() -> Result<()> {
    let mut node = Broker::start(Options::default()).await?;
    let endpoint = node.endpoint().clone();
    let pair = Pair::on(&node).consumers(2).consumer_env("CONCURRENCY", "32").start().await?;
    let (client, submitted, over) = (pair.client(), Cell::new(0), Cell::new(false));
    let load = async {
        let mut ids = Vec::new();
        while !over.get() {
            ids.push(client.accepted(&echo(submitted.get())).await?);
            submitted.set(ids.len());
        }
        anyhow::Ok(ids)
    };
    let outage = async {
        until("enough of them", SOON, async || {
            ensure!(submitted.get() > 300, "{}", submitted.get());
            Ok(())
        })
        .await?;
        let ready = client.get_path("/readyz").await?;
        let in_flight = ready.body["outstanding"].as_u64().context("a count")?;
        node.kill()?;
        for worker in &pair.consumers {
            await_unready(worker).await?;
        }
        let (opened, started) = join(opening(&endpoint), node.start_again()).await;
        started?;
        let next = client.accepted(&json!({"task": "add", "args": [1, 2], "priority": 9})).await?;
        client.await_terminal(&next, LONG).await?;
        over.set(true);
        anyhow::Ok((in_flight, opened.elapsed()))
    };
    let (ids, (in_flight, back)) = try_join(load, outage).await?;
    let ends = load::await_all(client.address(), &ids, 8, LONG).await?;
    let doubled = runs_started(&pair).await?.saturating_sub(ids.len() as u64 + 1);
    println!(
        "{} accepted; back {back:?} after the port opened; {doubled} ran twice of {in_flight} in flight",
        ids.len()
    );
    assert_eq!(ends, [("SUCCESS".to_owned(), ids.len())].into());
    assert!(back <= Duration::from_secs(15), "{back:?}");
    // What was submitted between the count and the kill was in flight as well.
    assert!(doubled <= in_flight + 32, "{doubled}");
    pair.stop().await
}

/// Submits while an alarm is raised by one rabbitmqctl command and cleared by another.
async fn alarm(raise: &[&str], clear: &[&str]) -> Result<()> {
    let node = Broker::start(Options::default()).await?;
    let pair = Pair::on(&node).start().await?;
    pair.client().await_terminal(&pair.client().accepted(&json!({"task": "add", "args": [1, 2]})).await?, SOON).await?;
    let running = pair.client().accepted(&slow(3)(1)).await?;
    pair.client().await_state(&running, |task| task["state"] == "STARTED", SOON).await?;
    node.ctl(raise).await?;
    let ids = accepted(pair.client(), 100, echo).await?;
    let why = |task: &Value| task["reason"].as_str().is_some_and(|why| why.contains("blocks publishers"));
    pair.client().await_state(&ids[99], why, SOON).await.context("the reason names the alarm")?;
    node.ctl(clear).await?;
    succeed(pair.client(), &ids).await?;
    succeed(pair.client(), &[running]).await?;
    assert_eq!(runs_started(&pair).await?, 102, "none ran twice");
    pair.stop().await
}

#[tokio::test]
async fn a_memory_alarm_stops_no_submit_and_loses_no_task() -> Result<()> {
    alarm(&["set_vm_memory_high_watermark", "absolute", "1MB"], &["set_vm_memory_high_watermark", "0.4"]).await
}

#[tokio::test]
async fn a_disk_alarm_stops_no_submit_and_loses_no_task() -> Result<()> {
    alarm(&["set_disk_free_limit", "1000000GB"], &["set_disk_free_limit", "1MB"]).await
}

/// Both keep their connections and hear nothing, as when a switch between them dies.
#[tokio::test]
async fn a_silent_broker_is_left_by_its_heartbeat_and_found_again() -> Result<()> {
    let shared = broker::shared().await?;
    let (one, two) = (Proxy::start(shared.endpoint().amqp).await?, Proxy::start(shared.endpoint().amqp).await?);
    let pair = Pair::on(shared).producer_via(one.address()).consumer_via(two.address()).start().await?;
    let running = accepted(pair.client(), 4, slow(3)).await?;
    for id in &running {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    one.stall();
    two.stall();
    let start = Instant::now();
    let ids = accepted(pair.client(), 50, echo).await?;
    assert!(start.elapsed() < Duration::from_secs(10), "no submit waits: {:?}", start.elapsed());
    await_unready(&pair.consumers[0]).await?;
    let noticed = start.elapsed();
    let why = |task: &Value| task["reason"].as_str().is_some_and(|why| why.contains("waiting for the broker"));
    pair.client().await_state(&ids[0], why, SOON).await?;
    one.resume();
    two.resume();
    let resumed = Instant::now();
    pair.client().await_terminal(&ids[0], LONG).await?;
    let back = resumed.elapsed();
    println!("noticed after {noticed:?}, back after {back:?}");
    assert!(noticed <= Duration::from_secs(35) && back <= Duration::from_secs(15));
    succeed(pair.client(), &running).await?;
    succeed(pair.client(), &ids).await?;
    assert_eq!(runs_started(&pair).await?, 54, "none ran twice");
    pair.stop().await
}

#[tokio::test]
async fn what_a_broker_refuses_is_asked_for_ever_more_seldom_until_it_is_granted() -> Result<()> {
    let shared = broker::shared().await?;
    let builder = Pair::on(shared);
    let (vhost, management) = (builder.vhost().to_owned(), shared.management());
    let user = format!("user-of-{vhost}");
    management.add_vhost(&vhost).await?;
    management.set_password(&user, "first").await?;
    management.allow(&vhost, &user).await?;
    let url = format!("amqp://{user}:first@{}/{vhost}", shared.endpoint().amqp);
    let pair = builder.env("AMQP_URL", &url).start().await?;
    succeed(pair.client(), &accepted(pair.client(), 1, echo).await?).await?;

    management.set_password(&user, "another").await?;
    shared.close_connections(&vhost).await?;
    let said = await_unready(&pair.consumers[0]).await?;
    assert!(!said.contains("first"), "{said}");
    let ids = accepted(pair.client(), 20, echo).await?;
    let (refused, before) = (Instant::now(), tries(&pair)?);
    management.forbid(&vhost, &user).await?;
    management.set_password(&user, "first").await?;
    await_tries(&pair, before + 5).await?;
    let ready = pair.client().get_path("/readyz").await?;
    assert_eq!(ready.status, 200, "it accepts: {}", ready.text);
    assert_eq!(client::http()?.get(pair.consumers[0].url("/readyz")).send().await?.status(), 503);
    management.allow(&vhost, &user).await?;
    let elapsed = refused.elapsed();
    assert!(elapsed > Duration::from_secs(3), "five tries within {elapsed:?}");
    succeed(pair.client(), &ids).await?;
    println!("five tries in {elapsed:?}, back after {:?}", refused.elapsed());
    assert!(refused.elapsed() <= elapsed + Duration::from_secs(45), "30 s and what follows");
    let log = pair.consumers[0].log_tail(200);
    assert!(log.contains("access to vhost") || log.contains("NOT_ALLOWED"), "it says what is refused: {log}");
    pair.stop().await
}

/// How often a worker has tried to consume in vain.
fn tries(pair: &Pair) -> Result<usize> {
    let log = std::fs::read_to_string(pair.consumers[0].log())?;
    Ok(log.lines().filter(|line| line.contains("the consumer lost the broker")).count())
}

async fn await_tries(pair: &Pair, wanted: usize) -> Result<()> {
    until("some more tries", SOON, async || {
        let tries = tries(pair)?;
        ensure!(tries >= wanted, "{tries}");
        Ok(())
    })
    .await
}

/// RabbitMQ closes the channel of a consumer that holds a delivery for too long. The task goes on, on its new channel.
#[tokio::test]
async fn a_worker_whose_delivery_took_too_long_consumes_again_and_runs_nothing_twice() -> Result<()> {
    let node = Broker::start(Options::default()).await?;
    // The second is how often the first is looked at.
    for (setting, ms) in [("consumer_timeout", 4000), ("channel_tick_interval", 500)] {
        node.ctl(&["eval", &format!("application:set_env(rabbit, {setting}, {ms}).")]).await?;
    }
    let pair = Pair::on(&node).start().await?;
    let ids = accepted(pair.client(), 3, slow(10)).await?;
    succeed(pair.client(), &ids).await?;
    let log = std::fs::read_to_string(pair.consumers[0].log())?;
    assert!(log.contains("PRECONDITION") || log.contains("cancelled by the broker"), "it was too long: {log}");
    succeed(pair.client(), &accepted(pair.client(), 5, echo).await?).await?;
    assert_eq!(runs_started(&pair).await?, 8, "none ran twice");
    assert_eq!(metric(&pair.producer, "errand_lost_total").await?, 0);
    pair.stop().await
}
