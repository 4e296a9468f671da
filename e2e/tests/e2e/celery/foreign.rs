//! The producer's tasks on a stock Celery worker: what it says of them is in the store, and so is that it says nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guard::Process;
use e2e::pair::Builder;
use e2e::{Pair, broker, until};
use reqwest::Method;
use serde_json::{Value, json};

use super::control::celery;
use super::{VERSIONS, folder, serve};

/// A worker of Python's needs some seconds to start, more on a busy machine.
const SOON: Duration = Duration::from_mins(1);

async fn builder() -> Result<Builder> {
    let pair = Pair::on(broker::shared().await?).consumers(0);
    Ok(pair.producer_env("QUEUES", "default,py").producer_env("FOREIGN_QUEUES", "py"))
}

/// A stock worker that consumes already.
async fn worker(pair: &Pair, version: &str) -> Result<Process> {
    let url = pair.broker().amqp_url(pair.vhost());
    let program = folder().join("foreign_worker.py").display().to_string();
    let worker = serve(version, "foreign-worker", &[&program], pair.dir(), &[("AMQP_URL", &url)])?;
    pair.broker().await_depth(pair.vhost(), "py", |depth| depth.consumers == 1, SOON).await?;
    Ok(worker)
}

async fn submit(pair: &Pair, task: &str, args: Value) -> Result<String> {
    pair.client().accepted(&json!({"task": task, "args": args, "queue": "py"})).await
}

async fn end_of(pair: &Pair, task: &str, args: Value) -> Result<Value> {
    let id = submit(pair, task, args).await?;
    pair.client().await_terminal(&id, SOON).await
}

async fn replay(pair: &Pair, id: &str) -> Result<()> {
    let answer = pair.client().send(pair.client().request(Method::POST, &format!("/v1/tasks/{id}/retry"))).await?;
    ensure!(answer.status == 202, "{}", answer.text);
    Ok(())
}

/// A fact of the broker's about an object, but for whose it is.
const FACTS: [&str; 6] = ["type", "durable", "auto_delete", "internal", "exclusive", "arguments"];

fn facts(object: &Value) -> Value {
    FACTS.iter().map(|fact| ((*fact).to_owned(), object[fact].clone())).collect()
}

/// The exchanges of Celery's events and remote control, and a worker's queue for commands, as the broker has them.
async fn celerys_objects(pair: &Pair) -> Result<Vec<Value>> {
    let (api, vhost) = (&pair.broker().management, pair.vhost());
    until("what is Celery's", SOON, async || {
        let queues = api.queues(vhost).await?;
        let mailbox = queues.iter().find(|name| name.ends_with(".celery.pidbox")).context("no mailbox")?;
        let mut objects = vec![api.queue(vhost, mailbox).await?];
        for exchange in ["celeryev", "celery.pidbox", "reply.celery.pidbox"] {
            objects.push(api.call(Method::GET, &["exchanges", vhost, exchange], None).await?);
        }
        Ok(objects.iter().map(facts).collect())
    })
    .await
}

#[tokio::test]
async fn what_is_celerys_is_declared_as_a_stock_worker_declares_it() -> Result<()> {
    let ours = Pair::on(broker::shared().await?).start().await?;
    let declared = celerys_objects(&ours).await?;
    for version in VERSIONS {
        let pair = builder().await?.start().await?;
        let _worker = worker(&pair, version).await?;
        // What answers go through is there once somebody has asked.
        celery(&pair, version, &["inspect", "-t", "5", "ping"]).await?;
        let mut stock = celerys_objects(&pair).await?;
        if version == "5.3.6" {
            // It knew no exclusive mailbox yet.
            stock[0]["exclusive"] = json!(true);
        }
        assert_eq!(declared, stock, "Celery {version}");
        pair.stop().await?;
    }
    ours.stop().await
}

#[tokio::test]
async fn what_a_stock_worker_says_of_a_task_is_in_the_store() -> Result<()> {
    for version in VERSIONS {
        let pair = builder().await?.start().await?;
        // Before there is a worker there is no queue: this one waits for it.
        let early = submit(&pair, "add", json!([1, 2])).await?;
        let mut worker = worker(&pair, version).await?;
        let early = pair.client().await_terminal(&early, SOON).await?;
        assert_eq!((&early["state"], &early["result"]), (&json!("SUCCESS"), &json!(3)), "{early:#}");
        ends(&pair).await?;
        progress(&pair).await?;
        retries(&pair).await?;
        ensure!(worker.try_wait()?.is_none(), "the worker of Celery {version} has died");
        pair.stop().await?;
    }
    Ok(())
}

async fn ends(pair: &Pair) -> Result<()> {
    let odd = json!(["\u{0}\u{1f600}\"'\\", [[[]]], {"": null}, 1e300, -9_223_372_036_854_775_808_i64, ""]);
    assert_eq!(end_of(pair, "same", odd.clone()).await?["result"], json!([odd, {}]));
    let failed = end_of(pair, "fail", json!(["as asked", 7])).await?;
    let error = &failed["error"];
    assert_eq!(
        (&failed["state"], &error["type"], &error["message"]),
        (&json!("FAILURE"), &json!("Refused"), &json!("as asked, 7"))
    );
    let traceback = error["traceback"].as_str().unwrap_or_default();
    assert!(traceback.starts_with("Traceback") && traceback.contains("raise Refused(message, number)"), "{traceback}");
    assert_eq!(end_of(pair, "add", json!([1])).await?["error"]["type"], "TypeError");
    assert_eq!(end_of(pair, "nobody_knows_it", json!([])).await?["error"]["type"], "NotRegistered");
    assert_eq!(end_of(pair, "not_json", json!([])).await?["error"]["type"], "UnreadableReply");
    Ok(())
}

async fn progress(pair: &Pair) -> Result<()> {
    let files = pair.dir().join("go-on").display().to_string();
    let id = submit(pair, "progress", json!([files])).await?;
    for (number, progress) in [(1, json!({"current": 1, "total": 2, "message": null})), (2, json!({"rows": [1, 2]}))] {
        let task = pair.client().await_state(&id, |task| task["progress"] == progress, SOON).await?;
        assert_eq!(task["state"], "STARTED", "{task:#}");
        std::fs::write(format!("{files}.{number}"), "")?;
    }
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["result"], "done");
    Ok(())
}

async fn retries(pair: &Pair) -> Result<()> {
    let id = submit(pair, "retry", json!([2])).await?;
    let waits = pair.client().await_state(&id, |task| task["state"] == "RETRY", SOON).await?;
    assert_eq!((&waits["error"]["type"], &waits["error"]["message"]), (&json!("ValueError"), &json!("not yet")));
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["result"], &ended["retries"]), (&json!("SUCCESS"), &json!(2), &json!(2)));

    let id = submit(pair, "retry", json!([9])).await?;
    let ended = pair.client().await_terminal(&id, SOON).await?;
    assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!("ValueError")));
    replay(pair, &id).await?;
    pair.client().await_terminal(&id, SOON).await?;
    let attempts = pair.client().get_path(&format!("/v1/tasks/{id}/attempts")).await?.body;
    let told: Vec<&Value> = attempts["attempts"].as_array().into_iter().flatten().map(|one| &one["state"]).collect();
    // Its own retries are counted anew: Celery's maximum of them is held against each life.
    assert_eq!(told, ["RETRY", "RETRY", "FAILURE", "RETRY", "RETRY", "FAILURE"], "{attempts:#}");
    Ok(())
}

#[tokio::test]
async fn a_task_that_dies_with_its_stock_worker_ends_by_the_clock_and_is_replayed() -> Result<()> {
    for version in VERSIONS {
        let pair = builder().await?.producer_env("FOREIGN_TIMEOUT", "8s").start().await?;
        let mut dead = worker(&pair, version).await?;
        let marker = pair.dir().join("vanished").display().to_string();
        let id = submit(&pair, "vanish", json!([marker])).await?;
        dead.wait(SOON).await?;
        let ended = pair.client().await_terminal(&id, SOON).await?;
        assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!("ForeignTimeout")));
        let message = ended["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("no Celery worker has reported the task within 8s"), "{message}");
        let _worker = worker(&pair, version).await?;
        replay(&pair, &id).await?;
        let ended = pair.client().await_terminal(&id, SOON).await?;
        assert_eq!((&ended["state"], &ended["result"]), (&json!("SUCCESS"), &json!("back")), "{ended:#}");
        pair.stop().await?;
    }
    Ok(())
}
