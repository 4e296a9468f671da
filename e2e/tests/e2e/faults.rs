//! Every process and connection may go away in the middle; no accepted task does.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::broker::{Broker, Options};
use e2e::{Pair, broker, load, proxy::Proxy};
use serde_json::{Value, json};

use crate::life::SOON;

const LONG: Duration = Duration::from_mins(3);

#[tokio::test]
async fn a_killed_worker_loses_nothing() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let wish = json!({"task": "long_running_task", "args": ["ab", 3]});
    let id = pair.client().accepted(&wish).await?;
    let first = pair.client().await_state(&id, |task| task["state"] == "STARTED", SOON).await?;
    pair.consumers[0].kill()?;
    pair.start_consumer(&[]).await?;
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["result"], &ended["retries"]), (&json!("SUCCESS"), &json!("abab"), &json!(0)));
    assert_ne!(ended["worker"], first["worker"]);
    Ok(())
}

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

#[tokio::test]
async fn a_producer_killed_after_a_thousand_accepts_still_ends_them_all() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let address = pair.client().address();
    let submitted = load::submit(address, 1000, 16, |n| json!({"task": "echo", "args": [n]})).await?;
    pair.producer.kill()?;
    pair.restart_producer().await?;
    let ends = load::await_all(address, &submitted.ids, 8, LONG).await?;
    assert_eq!(ends, [("SUCCESS".to_owned(), 1000)].into());
    pair.stop().await
}

#[tokio::test]
async fn a_cut_connection_restarts_no_task_on_its_worker() -> Result<()> {
    let shared = broker::shared().await?;
    let proxy = Proxy::start(shared.endpoint().amqp).await?;
    let pair = Pair::on(shared).consumer_via(proxy.address()).start().await?;
    let mut ids = Vec::new();
    for number in 0..64 {
        let wish = json!({"task": "long_running_task", "args": [number, 4], "time_limit": 60});
        ids.push(pair.client().accepted(&wish).await?);
    }
    for id in &ids {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    let started = runs_started(&pair).await?;
    assert_eq!(started, 64);
    proxy.cut();
    for (number, id) in ids.iter().enumerate() {
        let ended = pair.client().await_terminal(id, LONG).await?;
        assert_eq!((&ended["state"], &ended["result"]), (&json!("SUCCESS"), &json!(number * 2)), "{ended:#}");
    }
    assert_eq!(runs_started(&pair).await?, 64, "none was started twice");
    let queue = pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 0, SOON).await?;
    assert_eq!(queue.ready, 0);
    pair.stop().await
}

/// Handlers that the first worker has started, by its own metrics.
pub(crate) async fn runs_started(pair: &Pair) -> Result<u64> {
    let metrics = e2e::client::http()?.get(pair.consumers[0].url("/metrics")).send().await?.text().await?;
    let line = metrics.lines().find(|line| line.starts_with("errand_runs_started_total"));
    let count = line.and_then(|line| line.rsplit(' ').next()).context("no such metric")?;
    Ok(count.parse()?)
}

#[tokio::test]
async fn a_deleted_binding_loses_no_task() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let management = &pair.broker().management;
    let removed = management.unbind(pair.vhost(), "errand.tasks", "errand.default").await?;
    assert!(!removed.is_empty());
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(pair.client().accepted(&json!({"task": "echo", "args": [number]})).await?);
    }
    management.restore(&removed).await?;
    for (number, id) in ids.iter().enumerate() {
        let ended = pair.client().await_terminal(id, LONG).await?;
        assert_eq!((&ended["state"], &ended["result"]), (&json!("SUCCESS"), &json!(number)), "{ended:#}");
    }
    pair.stop().await
}

#[tokio::test]
async fn a_retry_that_meets_a_missing_binding_is_not_lost() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let management = &pair.broker().management;
    management.unbind(pair.vhost(), "errand.delay", "errand.delay.1s").await?;
    let mut ids = Vec::new();
    for _ in 0..30 {
        let wish = json!({"task": "flaky", "args": [1], "retry": {"backoff": 1, "jitter": false}});
        ids.push(pair.client().accepted(&wish).await?);
    }
    for id in &ids {
        let ended = pair.client().await_terminal(id, LONG).await?;
        assert_eq!((&ended["state"], &ended["retries"]), (&json!("SUCCESS"), &json!(1)), "{ended:#}");
    }
    pair.stop().await
}

#[tokio::test]
async fn deleted_queues_of_results_and_dead_letters_lose_no_outcome() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let management = &pair.broker().management;
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(pair.client().accepted(&json!({"task": "long_running_task", "args": [number, 1]})).await?);
    }
    let hopeless = json!({"task": "always_fails", "args": ["no"], "retry": {"max_retries": 1, "backoff": 1}});
    let hopeless = pair.client().accepted(&hopeless).await?;
    pair.client().await_state(&hopeless, |task| task["state"] == "RETRY", SOON).await?;
    for queue in management.queues(pair.vhost()).await? {
        if queue.starts_with("errand.results.") || queue == "errand.dead-letters" {
            management.delete_queue(pair.vhost(), &queue).await?;
        }
    }
    for id in &ids {
        assert_eq!(pair.client().await_terminal(id, LONG).await?["state"], "SUCCESS");
    }
    assert_eq!(pair.client().await_terminal(&hopeless, LONG).await?["state"], "FAILURE");
    let letters = pair.broker().management.peek(pair.vhost(), "errand.dead-letters", 10).await?;
    assert!(letters.iter().any(|letter| letter.headers["id"] == hopeless.as_str()));
    pair.stop().await
}

#[tokio::test]
async fn a_memory_alarm_stops_no_submit_and_loses_no_task() -> Result<()> {
    let node = Broker::start(Options::default()).await?;
    let pair = Pair::on(&node).start().await?;
    pair.client().await_terminal(&pair.client().accepted(&json!({"task": "add", "args": [1, 2]})).await?, SOON).await?;
    node.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await?;
    let mut ids = Vec::new();
    for number in 0..100 {
        ids.push(pair.client().accepted(&json!({"task": "echo", "args": [number]})).await?);
    }
    let why = |task: &Value| task["reason"].as_str().is_some_and(|why| why.contains("blocks publishers"));
    pair.client().await_state(&ids[99], why, SOON).await.context("the reason names the alarm")?;
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
    for id in &ids {
        assert_eq!(pair.client().await_terminal(id, LONG).await?["state"], "SUCCESS");
    }
    assert_eq!(runs_started(&pair).await?, 101, "none ran twice");
    pair.stop().await
}

#[tokio::test]
async fn other_arguments_on_the_broker_are_a_configuration_error_that_names_the_object() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    pair.consumers[0].terminate(SOON).await?;
    let management = &pair.broker().management;
    management.delete_queue(pair.vhost(), "errand.default").await?;
    let other = json!({"durable": true, "arguments": {"x-queue-type": "quorum"}});
    let path = ["queues", pair.vhost(), "errand.default"];
    management.call(reqwest::Method::PUT, &path, Some(&other)).await?;
    let log = {
        let refused = pair.start_consumer(&[]).await;
        format!("{:#}", refused.err().context("it must not become ready")?)
    };
    assert!(log.contains("errand.default") && log.contains("other arguments"), "{log}");
    Ok(())
}
