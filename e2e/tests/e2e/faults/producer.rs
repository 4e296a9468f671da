//! The producer dies or is told to end.

use anyhow::Result;
use e2e::{Pair, broker, load};
use serde_json::json;

use super::{LONG, runs_started};
use crate::life::SOON;

#[tokio::test]
async fn a_producer_killed_after_a_thousand_accepts_still_ends_them_all() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let address = pair.client().address();
    let submitted = load::submit(address, 1000, 16, |n| json!({"task": "echo", "args": [n]})).await?;
    pair.producer.kill()?;
    pair.restart_producer().await?;
    let ends = load::await_all(address, &submitted.ids, 8, LONG).await?;
    assert_eq!(ends, [("SUCCESS".to_owned(), 1000)].into());
    pair.stop().await
}

#[tokio::test]
async fn a_producer_told_to_end_under_load_runs_nothing_twice() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let address = pair.client().address();
    let submitted = load::submit(address, 2000, 16, |n| json!({"task": "echo", "args": [n]})).await?;
    let status = pair.producer.terminate(SOON).await?;
    assert!(status.success(), "{status}");
    pair.restart_producer().await?;
    let ends = load::await_all(address, &submitted.ids, 8, LONG).await?;
    assert_eq!(ends, [("SUCCESS".to_owned(), 2000)].into());
    assert_eq!(runs_started(&pair).await?, 2000);
    pair.stop().await
}
