//! The attempts of a task over HTTP.

use anyhow::Result;
use e2e::{Pair, broker};
use serde_json::{Value, json};

use crate::life::SOON;

async fn attempts(pair: &Pair, id: &str) -> Result<Vec<Value>> {
    let answer = pair.client().get_path(&format!("/v1/tasks/{id}/attempts")).await?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text);
    Ok(answer.body["attempts"].as_array().cloned().unwrap_or_default())
}

#[tokio::test]
async fn every_attempt_of_a_flaky_task_is_told() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("WORKER_NAME", "w1@test").start().await?;
    let wish = json!({"task": "flaky", "args": [2], "retry": {"backoff": 1.2, "jitter": false}});
    let id = pair.client().accepted(&wish).await?;
    let waits = |task: &Value| task["state"] == "RETRY" && task["retries"] == 0;
    let waiting = pair.client().await_state(&id, waits, SOON).await?;
    let first = attempts(&pair, &id).await?;
    assert_eq!((first.len(), &first[0]["retry_at"]), (1, &waiting["eta"]), "{first:?}");
    let ended = pair.client().await_terminal(&id, SOON).await?;
    let all = attempts(&pair, &id).await?;
    let told: Vec<(&Value, &Value)> = all.iter().map(|one| (&one["attempt"], &one["state"])).collect();
    let expected = [(0, "RETRY"), (1, "RETRY"), (2, "SUCCESS")].map(|(number, state)| (json!(number), json!(state)));
    assert_eq!(told, expected.iter().map(|(number, state)| (number, state)).collect::<Vec<_>>());
    assert_eq!(all[0], first[0], "what was told is not told otherwise later");
    for one in &all {
        assert_eq!(one["worker"], "w1@test", "{one:#}");
        let times = ["started_at", "ended_at"].map(|field| one[field].as_str().unwrap_or_default());
        assert!(times.is_sorted() && times[0].ends_with('Z'), "{one:#}");
        let is_retried = one["state"] == "RETRY";
        assert_eq!((one["retry_at"].is_string(), one["error"]["type"] == "Flaky"), (is_retried, is_retried), "{one:#}");
    }
    let starts: Vec<&str> = all.iter().filter_map(|one| one["started_at"].as_str()).collect();
    assert!(starts.is_sorted() && starts[0] < starts[2], "{starts:?}");
    assert_eq!((&all[2]["ended_at"], &all[2]["started_at"]), (&ended["finished_at"], &ended["started_at"]));
    pair.stop().await
}

#[tokio::test]
async fn a_running_attempt_is_told_and_a_task_that_waits_has_none() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let later = pair.client().accepted(&json!({"task": "echo", "args": [1], "countdown": 600})).await?;
    assert_eq!(attempts(&pair, &later).await?, Vec::<Value>::new());
    let id = pair.client().accepted(&json!({"task": "sleep", "args": [2]})).await?;
    pair.client().await_state(&id, |task| task["state"] == "STARTED", SOON).await?;
    let running = attempts(&pair, &id).await?;
    assert_eq!((running.len(), &running[0]["state"], &running[0]["ended_at"]), (1, &json!("STARTED"), &Value::Null));
    assert!(running[0]["worker"].is_string() && running[0]["started_at"].is_string());
    pair.client().await_terminal(&id, SOON).await?;
    let ended = attempts(&pair, &id).await?;
    assert_eq!((ended.len(), &ended[0]["state"]), (1, &json!("SUCCESS")));
    assert_eq!(pair.client().get_path("/v1/tasks/ghost/attempts").await?.status, 404);
    pair.stop().await
}
