//! What workers tell Celery's tools, byte for byte, and the commands that switch it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::on_each_version;

fn events(message: &Value) -> Vec<&Value> {
    message["body"].as_array().map_or_else(|| vec![&message["body"]], |list| list.iter().collect())
}

#[tokio::test]
async fn events_lie_on_the_exchange_in_lists_and_are_switched_by_a_stock_client() -> Result<()> {
    on_each_version("events.py", |pair, told| async move {
        assert_eq!(told["off"]["of_tasks"], 0, "nobody has asked for them yet");
        assert_eq!(told["obeyed"], true, "each heartbeat that was asked for comes");
        let seconds = told["seconds"].as_f64().context("no time")?;
        assert!(seconds < 15.0, "{seconds} s: of its own accord eight take 35");
        assert_eq!((&told["enabled"], &told["online"]), (&json!([{"ok": "task events enabled"}]), &json!(true)));
        assert_eq!(told["told"], true);
        of_tasks(&told)?;
        assert_eq!(told["disabled"], json!({"answer": [{"ok": "task events disabled"}], "of_tasks": 0}));
        let worker = told["worker"].as_str().context("no worker")?;
        let hello = &told["hello"][worker];
        assert!(hello["revoked"].as_array().is_some_and(|ids| ids.contains(&json!("never-sent"))), "{hello}");
        assert!(hello["clock"].as_u64() > told["clock"].as_u64(), "{hello}");
        assert_eq!(told["hello_itself"][worker], Value::Null);
        pair.stop().await
    })
    .await
}

/// Each task's events in their order, in lists, of the one worker and without an offset that would shift their times.
fn of_tasks(told: &Value) -> Result<()> {
    let messages = told["messages"].as_array().context("no messages")?;
    let mut by_task = BTreeMap::<&str, Vec<(u64, &str)>>::new();
    let mut lists = 0;
    for message in messages {
        assert_eq!(message["headers"]["hostname"], told["worker"], "{message}");
        let of_tasks = message["key"] == "task.multi";
        assert_eq!(message["is_list"], of_tasks, "{message}");
        lists += usize::from(of_tasks);
        for event in events(message) {
            assert!(event.get("utcoffset").is_none() && event["timestamp"].is_f64(), "{event}");
            assert_eq!(event["hostname"], told["worker"]);
            if let Some(id) = event["uuid"].as_str() {
                let (clock, kind) = event["clock"].as_u64().zip(event["type"].as_str()).context("no clock or type")?;
                by_task.entry(id).or_default().push((clock, kind));
            }
        }
    }
    ensure!(by_task.len() == 31, "{by_task:?}");
    for (id, mut events) in by_task {
        events.sort_unstable();
        let kinds: Vec<&str> = events.into_iter().map(|(_, kind)| kind).collect();
        let end = if told["failed"] == id { "task-failed" } else { "task-succeeded" };
        assert_eq!(kinds, ["task-received", "task-started", end], "{id}");
    }
    ensure!(lists < 93, "{lists} messages for 93 events");
    Ok(())
}
