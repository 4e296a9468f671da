//! The API against its own document, as a program that knows nothing but the document sees it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::{Pair, broker, guard, mail};
use tokio::process::Command;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_mins(3);

const FILES: [(&str, &str); 2] = [
    ("schemathesis.toml", include_str!("contract/schemathesis.toml")),
    ("hooks.py", include_str!("contract/hooks.py")),
];

#[tokio::test]
async fn the_api_keeps_to_its_document() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("WORKER_NAME", "w1@test").start().await?;
    let dir = guard::scratch_dir("contract-")?;
    for (name, content) in FILES {
        std::fs::write(dir.path().join(name), content)?;
    }
    let start = Instant::now();
    let run = Command::new(mail::python()?)
        .args(["-I", "-B", "-m", "schemathesis.cli", "--no-color", "run", &pair.client().url("/openapi.json")])
        // Who asks to wait gets its answer late.
        .args(["--max-response-time", "70"])
        .args(["--max-time", "25", "--request-timeout", "90", "--warnings", "off"])
        .env_clear()
        .env("HOME", dir.path())
        .env("NO_PROXY", "*")
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = timeout(DEADLINE, run).await.context("schemathesis does not end")??;
    let told = String::from_utf8_lossy(&run.stdout);
    println!("{told}\n{}\nin {:?}", String::from_utf8_lossy(&run.stderr), start.elapsed());
    assert!(run.status.success(), "schemathesis found something");
    pair.stop().await
}
