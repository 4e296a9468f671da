//! Children: tasks that a running one submits through its producer's reply queue.

use anyhow::{Context, Result, ensure};
use e2e::{Pair, broker, procfs, until};
use serde_json::{Value, json};

use crate::life::SOON;
use crate::rows;

/// Publishes a submission as a worker does, with an `add` of 1 and 2.
pub(crate) async fn submit(pair: &Pair, id: &str, parent_id: &str, queue: &str) -> Result<()> {
    let management = &pair.broker().management;
    let queues = management.queues(pair.vhost()).await?;
    let results = queues.iter().find(|queue| queue.starts_with("errand.results.")).context("no reply queue")?;
    let headers = json!({"id": id, "task": "add", "parent_id": parent_id, "errand-submit": queue});
    let properties = json!({
        "content_type": "application/json", "delivery_mode": 2, "priority": 5, "correlation_id": id, "headers": headers
    });
    let published = management.publish(pair.vhost(), "", results, &properties, "[[1, 2], {}, null]").await?;
    ensure!(published, "{results} did not take it");
    Ok(())
}

/// A pair with a parent that waits for its time.
async fn family() -> Result<(Pair, String)> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let parent = pair.client().accepted(&json!({"task": "echo", "args": [0], "countdown": 600})).await?;
    Ok((pair, parent))
}

/// The task, once it is there.
pub(crate) async fn ended(pair: &Pair, id: &str) -> Result<Value> {
    until("the child's row", SOON, async || pair.client().get(id).await).await?;
    pair.client().await_terminal(id, SOON).await
}

#[tokio::test]
async fn a_submitted_child_becomes_a_task_of_its_own_and_runs_once() -> Result<()> {
    let (mut pair, parent) = family().await?;
    for _ in 0..2 {
        submit(&pair, "child", &parent, "default").await?;
    }
    let child = ended(&pair, "child").await?;
    assert_eq!((&child["state"], &child["result"], &child["priority"]), (&json!("SUCCESS"), &json!(3), &json!(5)));
    assert_eq!((&child["parent_id"], &child["root_id"]), (&json!(parent), &json!(parent)), "{child:#}");
    let root = pair.client().get(&parent).await?;
    assert_eq!((&root["parent_id"], &root["root_id"]), (&Value::Null, &json!(parent)));
    pair.restart_producer().await?;
    submit(&pair, "child", &parent, "default").await?;
    submit(&pair, "grandchild", "child", "default").await?;
    let grandchild = ended(&pair, "grandchild").await?;
    assert_eq!((&grandchild["parent_id"], &grandchild["root_id"]), (&json!("child"), &json!(parent)));
    assert_eq!(pair.client().get("child").await?["finished_at"], child["finished_at"]);
    assert_eq!(rows::count(pair.store()).await?, 3);
    pair.stop().await
}

#[tokio::test]
async fn a_child_for_a_queue_that_is_not_accepted_fails_and_says_so() -> Result<()> {
    let (pair, parent) = family().await?;
    submit(&pair, "lost", &parent, "nowhere").await?;
    let child = ended(&pair, "lost").await?;
    assert_eq!((&child["state"], &child["error"]["type"]), (&json!("FAILURE"), &json!("InvalidSubmission")));
    let message = child["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains(r#"queue: "nowhere""#) && message.contains("QUEUES: default"), "{message}");
    assert_eq!((&child["queue"], &child["parent_id"]), (&json!("nowhere"), &json!(parent)));
    pair.stop().await
}

#[tokio::test]
async fn a_child_of_no_task_here_becomes_a_dead_letter_and_no_row() -> Result<()> {
    let (pair, parent) = family().await?;
    submit(&pair, "stray", "somebody-elses", "default").await?;
    pair.broker().await_depth(pair.vhost(), "errand.dead-letters", |depth| depth.ready == 1, SOON).await?;
    let letter = pair.broker().management.peek(pair.vhost(), "errand.dead-letters", 1).await?.remove(0);
    let why = letter.headers["errand-dead-message"].as_str().unwrap_or_default();
    assert!(why.contains("somebody-elses") && why.contains("no task of this store"), "{why}");
    submit(&pair, "child", &parent, "default").await?;
    assert_eq!(ended(&pair, "child").await?["state"], "SUCCESS");
    assert_eq!(rows::count(pair.store()).await?, 2);
    pair.stop().await
}

/// A task of the example worker's that submits as many children.
fn report(pages: u32) -> Value {
    json!({"task": "report", "args": [pages]})
}

#[tokio::test]
async fn a_handlers_children_are_there_before_its_result() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).worker("custom_worker").start().await?;
    let parent = pair.client().accepted(&report(6)).await?;
    let ended = pair.client().await_terminal(&parent, SOON).await?;
    assert_eq!(ended["state"], "SUCCESS", "{ended:#}");
    assert_eq!(rows::count(pair.store()).await?, 7);
    let pages: Vec<String> = serde_json::from_value(ended["result"].clone())?;
    for (number, id) in (1..).zip(&pages) {
        let page = pair.client().await_terminal(id, SOON).await?;
        assert_eq!((&page["state"], &page["result"]), (&json!("SUCCESS"), &json!(format!("page {number}"))));
        assert_eq!((&page["parent_id"], &page["root_id"]), (&json!(parent), &json!(parent)), "{page:#}");
        assert_eq!(page["kwargs"], json!({"number": number}));
    }
    let log = pair.consumers[0].log_tail(200);
    let of_a_page = |line: &str| line.contains("rendering") && line.contains(&pages[0]) && line.contains("attempt=0");
    assert!(log.lines().any(of_a_page), "a handler's line names its task: {log}");
    pair.stop().await
}

#[tokio::test]
async fn a_parent_that_dies_while_it_submits_has_each_child_once() -> Result<()> {
    const PAGES: u32 = 1000;
    let mut pair = Pair::on(broker::shared().await?).worker("custom_worker").start().await?;
    let parent = pair.client().accepted(&report(PAGES)).await?;
    for deaths in 1..=2 {
        until("children", SOON, async || {
            let rows = rows::count(pair.store()).await?;
            ensure!(rows > 50 * deaths, "there are {rows} rows");
            Ok(())
        })
        .await?;
        pair.consumers[0].kill()?;
        assert_eq!(pair.client().get(&parent).await?["state"], "STARTED", "it died in the middle");
        pair.consumers[0].restart().await?;
    }
    until("a process of its own for the suspect", SOON, async || {
        ensure!(!procfs::children_of(pair.consumers[0].pid())?.is_empty(), "the worker has no child");
        Ok(())
    })
    .await?;
    let ended = pair.client().await_terminal(&parent, SOON).await?;
    assert_eq!((&ended["state"], ended["result"].as_array().map(Vec::len)), (&json!("SUCCESS"), Some(PAGES as usize)));
    assert_eq!(rows::count(pair.store()).await?, 1 + i64::from(PAGES));
    Ok(())
}

#[tokio::test]
async fn a_child_of_a_celery_clients_task_goes_straight_to_its_queue() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).worker("custom_worker").start().await?;
    let headers = json!({"id": "celerys", "task": "report", "lang": "py"});
    let properties = json!({"content_type": "application/json", "delivery_mode": 2, "headers": headers});
    let management = &pair.broker().management;
    assert!(management.publish(pair.vhost(), "errand.tasks", "default", &properties, "[[3], {}, null]").await?);
    until("the parent and its three pages", SOON, async || {
        let metrics = e2e::client::http()?.get(pair.consumers[0].url("/metrics")).send().await?.text().await?;
        ensure!(metrics.contains(r#"errand_attempts_total{state="SUCCESS"} 4"#), "{metrics}");
        Ok(())
    })
    .await?;
    assert_eq!(rows::count(pair.store()).await?, 0);
    pair.stop().await
}
