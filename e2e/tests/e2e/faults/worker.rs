//! A worker dies, is stopped, is cut off, or has nobody to tell a result to.

use anyhow::{Result, ensure};
use e2e::{Pair, broker, proxy::Proxy, until};
use serde_json::json;

use super::{LONG, accepted, echo, metric, runs_started, slow, succeed};
use crate::life::SOON;

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

/// It is stopped for so long that the broker gives its tasks to another, and goes on when they have ended there.
#[tokio::test]
async fn a_stopped_worker_that_goes_on_acks_nothing_of_another() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumer_env("CONCURRENCY", "8").start().await?;
    let ids = accepted(pair.client(), 8, slow(2)).await?;
    for id in &ids {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    pair.consumers[0].pause()?;
    let other = pair.start_consumer(&[]).await?.pid();
    succeed(pair.client(), &ids).await?;
    let ends = ended(&pair, &ids).await?;
    assert!(ends.iter().all(|(worker, _)| worker.contains(&format!("-{other}@"))), "{ends:?}");
    // These are in the other's hands when the first comes back with acks for its old deliveries.
    let more = accepted(pair.client(), 8, slow(4)).await?;
    for id in &more {
        pair.client().await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    pair.consumers[0].resume()?;
    until("acks that came too late", SOON, async || {
        let stale = metric(&pair.consumers[0], "errand_stale_acks_total").await?;
        ensure!(stale >= 1, "{stale}");
        Ok(())
    })
    .await?;
    pair.consumers[1].kill()?;
    succeed(pair.client(), &more).await?;
    succeed(pair.client(), &accepted(pair.client(), 8, echo).await?).await?;
    assert_eq!(ended(&pair, &ids).await?, ends, "what it still had to say changed nothing");
    pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 0, SOON).await?;
    Ok(())
}

/// Where and when each ended.
async fn ended(pair: &Pair, ids: &[String]) -> Result<Vec<(String, String)>> {
    let mut ends = Vec::new();
    for id in ids {
        let task = pair.client().get(id).await?;
        let text = |field: &str| task[field].as_str().unwrap_or_default().to_owned();
        ends.push((text("worker"), text("finished_at")));
    }
    Ok(ends)
}

#[tokio::test]
async fn a_result_whose_reply_queue_is_gone_is_dropped_and_its_task_is_settled() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let management = &pair.broker().management;
    for number in 0..20 {
        let headers = json!({"lang": "rust", "task": "echo", "id": format!("t{number}"), "retries": 0});
        let properties = json!({
            "content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 2,
            "correlation_id": format!("t{number}"), "reply_to": "a-client-that-is-gone", "headers": headers,
        });
        let links = json!({"callbacks": null, "errbacks": null, "chain": null, "chord": null});
        let body = json!([[number], {}, links]).to_string();
        assert!(management.publish(pair.vhost(), "errand.tasks", "default", &properties, &body).await?);
    }
    until("the end of each", SOON, async || {
        let dropped = metric(&pair.consumers[0], "errand_unwanted_replies_total").await?;
        ensure!(dropped == 20, "{dropped} are counted");
        Ok(())
    })
    .await?;
    assert_eq!(runs_started(&pair).await?, 20);
    succeed(pair.client(), &accepted(pair.client(), 3, echo).await?).await?;
    // They are settled: with its worker gone nothing comes back.
    let vhost = pair.vhost().to_owned();
    let broker = pair.broker().clone();
    pair.stop().await?;
    broker.await_depth(&vhost, "errand.default", |depth| depth.ready == 0 && depth.consumers == 0, SOON).await?;
    Ok(())
}
