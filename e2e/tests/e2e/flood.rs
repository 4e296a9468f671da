//! A load run: everything accepted ends as it should, nothing is stored twice, and results share messages. Its rates are
//! printed, not judged.

use std::collections::HashSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::broker::{Broker, Options, shared};
use e2e::{Pair, load};
use serde_json::json;

use crate::faults::metric;
use crate::life::SOON;
use crate::rows;

const TASKS: usize = 20_000;

#[tokio::test]
async fn twenty_thousand_tasks_from_64_connections_all_end_once() -> Result<()> {
    let node = Broker::start(Options::default()).await?;
    let pair = Pair::on(&node).start().await?;
    let cpu = || -> Result<[Duration; 3]> {
        Ok([pair.producer.cpu_time()?, pair.consumers[0].cpu_time()?, node.cpu_time()?])
    };
    let (before, start) = (cpu()?, Instant::now());
    let address = pair.client().address();
    let submitted = load::submit(address, TASKS, 64, |n| json!({"task": "add", "args": [n, 1]})).await?;
    let settled =
        pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 0, Duration::from_mins(5));
    settled.await?;
    let ends = load::await_all(address, &submitted.ids[TASKS - 200..], 1, Duration::from_mins(5)).await?;
    let (elapsed, after) = (start.elapsed(), cpu()?);
    assert_eq!(ends.get("SUCCESS"), Some(&200), "{ends:?}");
    let all = load::await_all(address, &submitted.ids, 16, Duration::from_mins(5)).await?;
    assert_eq!(all, [("SUCCESS".to_owned(), TASKS)].into());
    assert_eq!(submitted.ids.iter().collect::<HashSet<_>>().len(), TASKS);
    let rate = |elapsed: Duration| f64::from(u32::try_from(TASKS).unwrap_or(u32::MAX)) / elapsed.as_secs_f64();
    // Not captured by the test harness: a figure is to be seen.
    let mut out = std::io::stderr();
    writeln!(out, "accepted {:.0}/s, to stored results {:.0}/s", rate(submitted.elapsed), rate(elapsed))?;
    for (name, (before, after)) in ["producer", "consumer", "broker"].iter().zip(before.iter().zip(after)) {
        writeln!(out, "{name}: {} µs of CPU a task", after.saturating_sub(*before).as_micros() / TASKS as u128)?;
    }
    let packed = metric(&pair.consumers[0], "errand_pack_members_sum").await?;
    let packs = metric(&pair.consumers[0], "errand_pack_members_count").await?;
    writeln!(out, "{packed} results in {packs} packs")?;
    assert!(packs < packed, "{packs} packs of {packed} results save no message");
    assert_eq!(usize::try_from(rows::count(pair.store()).await?)?, TASKS);
    let sums = "state = 'SUCCESS' AND result ->> '$' = args ->> '$[0]' + 1";
    assert_eq!(usize::try_from(rows::count_of(pair.store(), sums).await?)?, TASKS);
    let acks = metric(&pair.consumers[0], "errand_acks_total").await?;
    writeln!(out, "{acks} acks for {TASKS} tasks")?;
    assert!(usize::try_from(acks)? < TASKS / 2, "{acks} acks");
    pair.stop().await
}

/// It holds one of two places in the prefetch: were the acks of those behind it held back, the second would not come.
#[tokio::test]
async fn a_task_that_runs_long_holds_back_no_ack_of_those_behind_it() -> Result<()> {
    let pair = Pair::on(shared().await?).consumer_env("CONCURRENCY", "2").start().await?;
    let client = pair.client();
    let long = client.accepted(&json!({"task": "long_running_task", "args": [1, 300]})).await?;
    client.await_state(&long, |task| task["state"] == "STARTED", SOON).await?;
    for number in 0..8 {
        let quick = client.accepted(&json!({"task": "echo", "args": [number]})).await?;
        let ended = client.await_terminal(&quick, SOON).await?;
        assert_eq!(ended["state"], "SUCCESS", "{ended:#}");
    }
    let running = client.get(&long).await?;
    assert_eq!(running["state"], "STARTED", "{running:#}");
    pair.stop().await
}
