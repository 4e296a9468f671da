//! `process_file` over HTTP: large files from a folder and a URL, and paths that lead elsewhere.

use std::fmt::Write;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::client::is_terminal;
use e2e::{Pair, Web, broker};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::life::SOON;

/// A tenth of the large file.
const MAX_GROWTH: u64 = 8 << 20;
const MIB: u64 = 1 << 20;
const ROWS: u64 = 2_000_000;

struct Seen {
    ended: Value,
    /// Progress in between, current and total.
    progress: Vec<(u64, u64)>,
    /// The most memory that the worker was seen to take.
    rss: u64,
}

/// Runs `process_file` once, looking all the while.
async fn process(pair: &Pair, kwargs: Value) -> Result<Seen> {
    let wish = json!({"task": "process_file", "kwargs": kwargs, "retry": {"max_retries": 0}});
    let id = pair.client().accepted(&wish).await?;
    let (start, mut progress, mut rss) = (Instant::now(), Vec::new(), 0);
    loop {
        rss = rss.max(pair.consumers[0].rss()?);
        let task = pair.client().get(&id).await?;
        if is_terminal(&task) {
            return Ok(Seen { ended: task, progress, rss });
        }
        let at = |field: &str| task["progress"][field].as_u64();
        if let (true, Some(current), Some(total)) = (task["state"] == "STARTED", at("current"), at("total")) {
            progress.push((current, total));
        }
        ensure!(start.elapsed() < SOON, "still {task:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn csv() -> Result<String> {
    let mut csv = "id,name,amount,empty\n".to_owned();
    for id in 1..=ROWS {
        writeln!(csv, "{id},\"a customer, number {id}\",{}.5,", id % 100)?;
    }
    Ok(csv)
}

#[tokio::test]
async fn a_large_csv_is_summed_with_progress_and_without_memory() -> Result<()> {
    let (dir, web, csv) = (tempfile::tempdir()?, Web::start().await?, csv()?);
    std::fs::write(dir.path().join("large.csv"), &csv)?;
    let size = csv.len() as u64;
    web.put("/large.csv", csv.into_bytes());
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1");
    let pair = pair.consumer_env("FILES_DIR", &dir.path().display().to_string()).start().await?;
    // What the worker takes after a small file it takes for good.
    web.put("/small.csv", b"id\n1\n".to_vec());
    for source in [web.url("/small.csv"), web.url("/large.csv"), "large.csv".to_owned()] {
        let before = pair.consumers[0].rss()?;
        let Seen { ended, progress, rss } = process(&pair, json!({"source": source})).await?;
        if source.ends_with("/small.csv") {
            assert_eq!(ended["result"]["columns"], json!({"id": {"count": 1, "sum": 1}}), "{ended:#}");
            continue;
        }
        let columns = json!({
            "id": {"count": ROWS, "sum": ROWS * (ROWS + 1) / 2},
            // 0 to 99 in turn, and a half each.
            "amount": {"count": ROWS, "sum": 50.0 * 2_000_000.0},
        });
        assert_eq!(ended["result"], json!({"rows": ROWS, "bytes": size, "columns": columns}), "{ended:#}");
        let between = progress.iter().filter(|(current, total)| (1..size).contains(current) && *total == size).count();
        println!(
            "{} MiB: progress seen {between} times, a worker of {} MiB before and {} MiB at most",
            size / MIB,
            before / MIB,
            rss / MIB
        );
        assert!(between > 0 && progress.is_sorted(), "{progress:?}");
        assert!(rss < before + MAX_GROWTH, "from {} MiB to {} MiB", before / MIB, rss / MIB);
    }
    pair.stop().await
}

#[tokio::test]
async fn a_file_that_cannot_be_processed_says_why() -> Result<()> {
    let outside = tempfile::tempdir()?;
    std::fs::write(outside.path().join("secret"), "x")?;
    let dir = tempfile::tempdir_in(outside.path())?;
    let file = |name: &str| dir.path().join(name);
    std::fs::create_dir(file("directory"))?;
    symlink("../secret", file("relative"))?;
    symlink(outside.path().join("secret"), file("absolute"))?;
    symlink(outside.path(), file("outside"))?;
    mkfifo(&file("fifo.csv"), Mode::S_IRWXU)?;
    std::fs::write(file("ragged.csv"), "a,b\n1,2\n3\n")?;
    std::fs::write(file("endless.csv"), "x".repeat(40 << 20))?;
    let web = Web::start().await?;
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1");
    let pair = pair.consumer_env("FILES_DIR", &dir.path().display().to_string()).start().await?;
    let absolute = file("ragged.csv").display().to_string();
    let cases = [
        ("../secret", "PathRefused", ".."),
        ("directory/../../secret", "PathRefused", ".."),
        (&absolute, "PathRefused", "absolute"),
        ("relative", "PathRefused", "symbolic link"),
        ("absolute", "PathRefused", "symbolic link"),
        ("outside/secret", "PathRefused", "symbolic link"),
        ("fifo.csv", "PathRefused", "regular"),
        ("directory", "PathRefused", "regular"),
        ("nothing.csv", "FileNotFound", "FILES_DIR"),
        ("ragged.csv", "MalformedCsv", "row 2"),
        ("endless.csv", "RecordTooLong", "1048576"),
        (&web.url("/status/404"), "HttpStatus", "404"),
        (&web.url("/status/503"), "HttpStatus", "503"),
    ];
    for (source, kind, named) in cases {
        let Seen { ended, .. } = process(&pair, json!({"source": source})).await?;
        assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!(kind)), "{source}");
        assert!(ended["error"]["message"].to_string().contains(named), "{ended:#}");
    }
    pair.stop().await
}
