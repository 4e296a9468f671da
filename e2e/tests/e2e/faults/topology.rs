//! Somebody deletes what the pair declared, declares it otherwise, or bounds it.

use anyhow::{Context, Result, ensure};
use e2e::{Pair, broker, until};
use serde_json::json;

use super::{LONG, accepted, echo, metric, runs_started, slow, succeed};
use crate::life::SOON;

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

/// What a queue held goes with it; its consumers must come back, and what ran there must end.
#[tokio::test]
async fn the_consumers_of_a_deleted_queue_come_back_to_the_next_one() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(2).start().await?;
    let running = accepted(pair.client(), 8, slow(4)).await?;
    for id in &running {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    pair.broker().management.delete_queue(pair.vhost(), "errand.default").await?;
    let ids = accepted(pair.client(), 50, echo).await?;
    succeed(pair.client(), &ids).await?;
    succeed(pair.client(), &running).await?;
    let both = |depth: e2e::broker::Depth| depth.consumers == 2 && depth.ready == 0;
    pair.broker().await_depth(pair.vhost(), "errand.default", both, SOON).await?;
    assert_eq!(runs_started(&pair).await?, 58, "none ran twice");
    pair.stop().await
}

/// With an exchange its bindings go, also those of queues that are consumed and whose consumers hear nothing of it.
#[tokio::test]
async fn deleted_exchanges_come_back_with_all_their_bindings() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let (client, management) = (pair.client(), &pair.broker().management);
    let long = client.accepted(&slow(120)(1)).await?;
    client.await_state(&long, |task| task["state"] == "STARTED", SOON).await?;
    for exchange in ["tasks", "delay", "dead", "lost", "control", "workers"] {
        management.delete_exchange(pair.vhost(), &format!("errand.{exchange}")).await?;
    }
    let mut ids = accepted(client, 20, echo).await?;
    ids.push(client.accepted(&json!({"task": "flaky", "args": [1], "retry": {"backoff": 1}})).await?);
    let hopeless = json!({"task": "always_fails", "args": ["no"], "retry": {"max_retries": 0}});
    let hopeless = client.accepted(&hopeless).await?;
    succeed(client, &ids).await?;
    assert_eq!(client.await_terminal(&hopeless, LONG).await?["state"], "FAILURE");
    until("the dead letter", SOON, async || {
        let letters = management.peek(pair.vhost(), "errand.dead-letters", 10).await?;
        ensure!(letters.iter().any(|letter| letter.headers["id"] == hopeless.as_str()), "{letters:?}");
        Ok(())
    })
    .await?;
    let revoke = client.request(reqwest::Method::POST, &format!("/v1/tasks/{long}/revoke"));
    assert_eq!(client.send(revoke).await?.status, 202);
    until("every binding", SOON, async || {
        let bindings = management.call(reqwest::Method::GET, &["bindings", pair.vhost()], None).await?;
        let bindings = bindings.as_array().context("a list")?.clone();
        for (exchange, queue) in [("lost", "results."), ("control", "control."), ("workers", "workers.")] {
            let of = |binding: &serde_json::Value, field: &str, start: &str| {
                binding[field].as_str().is_some_and(|name| name.starts_with(&format!("errand.{start}")))
            };
            let bound = |binding| of(binding, "source", exchange) && of(binding, "destination", queue);
            ensure!(bindings.iter().any(bound), "nothing of {queue} at {exchange}");
        }
        Ok(())
    })
    .await?;
    pair.stop().await
}

#[tokio::test]
async fn what_a_full_queue_does_not_take_is_published_later_and_once() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    pair.broker().management.limit_length(pair.vhost(), "errand.default", 10).await?;
    let mut ids = accepted(pair.client(), 20, echo).await?;
    let mut length = 10;
    until("a refusal", SOON, async || {
        // The limit is a soft one: what comes together is taken together.
        ids.extend(accepted(pair.client(), 5, echo).await?);
        let refused = metric(&pair.producer, "errand_relay_refused_total").await?;
        if refused == 0 && ids.len() % 100 == 0 {
            // A quorum queue is told of its policy once (RabbitMQ 3.10), and had perhaps no leader yet that would hear of it.
            length += 1;
            pair.broker().management.limit_length(pair.vhost(), "errand.default", length).await?;
        }
        ensure!(refused > 0, "{} are taken", ids.len());
        Ok(())
    })
    .await?;
    ids.extend(accepted(pair.client(), 100, echo).await?);
    let held = pair.depth("errand.default").await?.ready;
    assert!((held as usize) < ids.len(), "{held} of {} are at the broker", ids.len());
    pair.start_consumer(&[]).await?;
    succeed(pair.client(), &ids).await?;
    assert_eq!(runs_started(&pair).await?, ids.len() as u64, "none ran twice");
    pair.stop().await
}
