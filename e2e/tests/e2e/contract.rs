//! The API against its own document, as a program that knows nothing but the document sees it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::{NameServer, Pair, broker, guard, keys, mail};
use tokio::process::Command;
use tokio::time::timeout;

use crate::api_keys;

const DEADLINE: Duration = Duration::from_mins(3);

const FILES: [(&str, &str); 2] = [
    ("schemathesis.toml", include_str!("contract/schemathesis.toml")),
    ("hooks.py", include_str!("contract/hooks.py")),
];

#[tokio::test]
async fn the_api_keeps_to_its_document() -> Result<()> {
    // Which knows no name, so that no callback leaves the machine.
    let names = NameServer::start().await?;
    let pair = Pair::on(broker::shared().await?).producer_env("CALLBACK_NAMESERVERS", &names.address().to_string());
    let pair = pair.consumer_env("WORKER_NAME", "w1@test").start().await?;
    let key = keys::create(pair.store(), "admin", &[])?;
    api_keys::needed(pair.client()).await?;
    let dir = guard::scratch_dir("contract-")?;
    for (name, content) in FILES {
        std::fs::write(dir.path().join(name), content)?;
    }
    let start = Instant::now();
    let run = Command::new(mail::python()?)
        .args(["-I", "-B", "-m", "schemathesis.cli", "--no-color", "run", &pair.client().url("/openapi.json")])
        .args(["--header", &format!("Authorization: Bearer {}", key.token)])
        // Who asks to wait gets its answer late.
        .args(["--max-response-time", "70"])
        .args(["--max-time", "25", "--request-timeout", "90", "--warnings", "off"])
        .env_clear()
        .env("HOME", dir.path())
        .env("API_KEY", &key.token)
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
