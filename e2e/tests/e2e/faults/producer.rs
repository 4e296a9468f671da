//! The producer dies.

use anyhow::Result;
use e2e::{Pair, broker, load};
use serde_json::json;

use super::LONG;

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
