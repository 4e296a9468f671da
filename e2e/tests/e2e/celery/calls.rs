//! Single tasks: every way to call one, and every way it can end.

use anyhow::Result;
use serde_json::{Value, json};

use super::on_each_version;

fn raised(module: &str, kind: &str, message: &str) -> Value {
    json!({"module": module, "type": kind, "message": message})
}

fn about(value: &Value, seconds: f64) -> bool {
    value.as_f64().is_some_and(|took| took >= seconds)
}

#[tokio::test]
async fn a_stock_client_calls_every_way_and_hears_every_end() -> Result<()> {
    on_each_version("calls.py", |pair, told| async move {
        ways(&told);
        ends(&told);
        reports(&told);
        pair.stop().await
    })
    .await
}

fn ways(told: &Value) {
    assert_eq!(told["arguments"], json!([3, 3, 3]));
    for late in ["countdown", "eta_aware", "eta_naive"] {
        assert!(told[late]["value"] == 3 && about(&told[late]["seconds"], 1.2), "{late}: {}", told[late]);
    }
    for plain in ["expires_later", "priority", "own_headers"] {
        assert_eq!(told[plain], 3, "{plain}");
    }
    assert_eq!(told["ignored"], json!({"value": null, "id": "ignored-1"}));
    assert_eq!(told["own_id"], json!(["my-id-1", 3]));
    assert_eq!(told["zlib"], json!([true]));
    assert_eq!(told["many"], json!(true));
}

fn ends(told: &Value) {
    let expired = raised("celery.exceptions", "TaskRevokedError", "expired");
    assert_eq!(told["expired"], json!([expired, expired, expired]));
    let [hard, soft] = [&told["time_limits"][0], &told["time_limits"][1]];
    assert_eq!((&hard["module"], &hard["type"]), (&json!("billiard.exceptions"), &json!("TimeLimitExceeded")));
    assert_eq!((&soft["module"], &soft["type"]), (&json!("billiard.exceptions"), &json!("SoftTimeLimitExceeded")));
    let failed = raised("celery.backends.base", "AlwaysFails", "as asked");
    assert_eq!(told["retries_used_up"]["ends"], json!([failed, failed]));
    assert_eq!(told["failures"][0], failed);
    assert_eq!(told["failures"][1], raised("celery.exceptions", "NotRegistered", "'nobody_knows_it'"));
    assert_eq!(told["failures"][2]["type"], "InvalidArguments");
    assert!(told["failures"][2]["message"].as_str().is_some_and(|message| message.contains("argument `x`")));
    assert_eq!(told["failed_state"], json!(["FAILURE", "as asked", true]));
}

fn reports(told: &Value) {
    let all = told["reports"]["told"].as_array().cloned().unwrap_or_default();
    assert_eq!((&told["reports"]["value"], &all[0][0]), (&json!(42), &json!("STARTED")), "{told:#}");
    assert!(all.contains(&progress(0)) && all.contains(&progress(1)), "{all:?}");
    assert_eq!(all.last(), Some(&json!(["SUCCESS", 42])));
    assert_eq!(told["last_words"], json!([["SUCCESS"], 201]));
    let retry = &told["retried"]["told"][0];
    assert_eq!((&retry[0], &retry[1]["exc_type"]), (&json!("RETRY"), &json!("Flaky")));
    assert_eq!((&told["retried"]["value"], &told["retried"]["told"][1]), (&json!(1), &json!(["SUCCESS", 1])));
}

fn progress(current: u64) -> Value {
    json!(["PROGRESS", {"current": current, "total": 2, "message": null}])
}

#[tokio::test]
async fn a_client_that_polls_sees_the_progress_and_the_end() -> Result<()> {
    on_each_version("polling.py", |pair, told| async move {
        let seen = told["polled"]["seen"].as_array().cloned().unwrap_or_default();
        assert!(seen.contains(&progress(1)), "{told:#}");
        assert_eq!(told["polled"]["end"], json!(["SUCCESS", 42]));
        pair.stop().await
    })
    .await
}
