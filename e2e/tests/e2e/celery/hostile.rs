//! Messages that no worker can run: each is a dead letter with its reason, and whoever waits for it is told.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::on_each_version;

/// What the reason of each says.
const REASONS: [(&str, &str); 15] = [
    ("pickle", "the body is pickle"),
    ("yaml", "the body is yaml"),
    ("msgpack", "the body is msgpack"),
    ("no-content-type", "the content type is missing"),
    ("two-elements", "2 elements instead of 3"),
    ("no-id", "header id is missing"),
    ("nan", "not JSON"),
    ("surrogate", "argument `x`: unexpected end of hex escape"),
    ("surrogate-echo", "argument `value`: unexpected end of hex escape"),
    ("wide", "argument `x`: an integer of more than 64 bits"),
    ("garbage", "not JSON"),
    ("headers", "bytes, 32768 are allowed"),
    ("eta", "header eta is not a time"),
    ("protocol-1", "protocol 1 is not supported"),
    ("bomb", "inflates to more than"),
];

#[tokio::test]
async fn what_cannot_be_run_is_a_dead_letter_with_its_reason_and_the_worker_lives() -> Result<()> {
    on_each_version("hostile.py", |pair, told| async move {
        assert_eq!(told["sent"].as_array().map(Vec::len), Some(REASONS.len()));
        for (name, reason) in REASONS {
            let (status, result) = (&told["replies"][name][0], &told["replies"][name][1]);
            let message = result["exc_message"][0].as_str().unwrap_or_default();
            assert!(status == "FAILURE" && message.contains(reason), "{name}: {status} {result}");
            // What has no id has no name in the dead letters either.
            let id = if name == "no-id" { Value::Null } else { json!(name) };
            let id = if name == "protocol-1" { json!(name) } else { id };
            let letters = told["letters"].as_array().context("no letters")?;
            let of = |letter: &&Value| letter["id"] == id;
            assert_eq!(letters.iter().filter(of).count(), 1, "{name}: {letters:?}");
            let why = letters.iter().find(of).and_then(|letter| letter["errand-dead-message"].as_str());
            assert!(why.is_some_and(|why| why.contains(reason)), "{name}: {why:?}");
        }
        assert!(told["frame"]["type"].is_string(), "the broker took 200 KB of headers: {}", told["frame"]);
        assert_eq!((&told["after"], &told["digits"]), (&json!(3), &json!(true)));
        for queue in ["errand.default", "errand.dead-letters"] {
            assert_eq!(pair.depth(queue).await?.ready, 0, "{queue}");
        }
        // One that had died could not end by SIGTERM.
        pair.stop().await
    })
    .await
}
