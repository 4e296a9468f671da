//! The testbed itself: what it starts runs apart from everything else and leaves nothing behind.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::broker::{self, Broker, Options, Release};
use e2e::{config, procfs, until};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

async fn await_no_process_of(dir: &std::path::Path) -> Result<()> {
    until("the end of all its processes", SOON, async || {
        let left = procfs::processes_of(dir)?;
        ensure!(left.is_empty(), "still running: {left:?}");
        Ok(())
    })
    .await
}

async fn declare(broker: &Broker, vhost: &str, queue: &str) -> Result<()> {
    let quorum = json!({"durable": true, "arguments": {"x-queue-type": "quorum"}});
    broker.management().call(Method::PUT, &["queues", vhost, queue], Some(&quorum)).await.map(drop)
}

async fn publish(broker: &Broker, vhost: &str, queue: &str, body: &str) -> Result<()> {
    let properties = json!({"delivery_mode": 2, "headers": {"why": body}});
    assert!(broker.management().publish(vhost, "", queue, &properties, body).await?);
    Ok(())
}

#[tokio::test]
async fn virtual_hosts_of_the_shared_node_do_not_see_each_other() -> Result<()> {
    let broker = broker::shared().await?;
    try_join_all(["left", "right"].map(|vhost| broker.management().add_vhost(vhost))).await?;
    declare(broker, "left", "work").await?;
    publish(broker, "left", "work", "one").await?;
    let depth = broker.endpoint().depth("left", "work").await?;
    assert_eq!((depth.ready, depth.consumers), (1, 0));
    assert!(broker.endpoint().depth("right", "work").await.unwrap_err().root_cause().to_string().contains("NOT_FOUND"));
    let message = broker.management().peek("left", "work", 5).await?.remove(0);
    assert_eq!((message.payload.as_str(), &message.headers["why"]), ("one", &json!("one")));
    Ok(())
}

#[tokio::test]
async fn a_binding_that_was_deleted_can_be_restored() -> Result<()> {
    let broker = broker::shared().await?;
    let (api, vhost) = (broker.management(), "bindings");
    api.add_vhost(vhost).await?;
    declare(broker, vhost, "work").await?;
    api.bind(vhost, "amq.topic", "work", "a.key", &json!({})).await?;
    let bindings = api.unbind(vhost, "amq.topic", "work").await?;
    assert_eq!(bindings.len(), 1);
    assert!(!api.publish(vhost, "amq.topic", "a.key", &json!({}), "lost").await?);
    api.restore(&bindings).await?;
    assert!(api.publish(vhost, "amq.topic", "a.key", &json!({}), "kept").await?);
    Ok(())
}

#[tokio::test]
async fn a_node_keeps_its_durable_queue_when_stopped_and_when_killed_but_not_when_wiped() -> Result<()> {
    let mut broker = Broker::start(Options::default()).await?;
    declare(&broker, "/", "work").await?;
    publish(&broker, "/", "work", "one").await?;
    let url = broker.amqp_url("/");
    assert!(broker.stop().await?.success());
    assert!(broker.endpoint().depth("/", "work").await.is_err());
    broker.start_again().await?;
    publish(&broker, "/", "work", "two").await?;
    broker.kill()?;
    broker.start_again().await?;
    assert_eq!(broker.amqp_url("/"), url);
    broker.endpoint().await_depth("/", "work", |depth| depth.ready == 2, SOON).await?;
    assert!(broker.cpu_time()? > Duration::ZERO);
    let listed: Value = serde_json::from_str(&broker.ctl(&["-q", "list_queues", "--formatter", "json"]).await?)?;
    assert_eq!(listed[0]["name"], "work");
    broker.wipe().await?;
    assert_eq!(broker.amqp_url("/"), url);
    assert!(broker.management().queues("/").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_node_is_of_the_release_that_was_asked_for() -> Result<()> {
    let overview = broker::shared().await?.management().call(Method::GET, &["overview"], None).await?;
    let release = config::release();
    assert_eq!(overview["rabbitmq_version"], release.version()?);
    if let Release::Installed(number) = release {
        assert!(overview["rabbitmq_version"].as_str().is_some_and(|version| version.starts_with(&number)), "{number}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dropped_node_is_gone_with_its_port_mapper() -> Result<()> {
    let broker = Broker::start(Options::default()).await?;
    let dir = broker.dir().to_owned();
    let running = procfs::processes_of(&dir)?;
    assert!(running.len() >= 2, "a node and its port mapper: {running:?}");
    drop(broker);
    await_no_process_of(&dir).await
}
