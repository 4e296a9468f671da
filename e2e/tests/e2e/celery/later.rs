//! What is due later lies in delay queues, and what lies at the broker shows no secret.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Pair, broker};
use serde_json::{Value, json};

use super::on_each_version;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_is_due_later_is_held_by_the_broker_and_shows_no_secret() -> Result<()> {
    on_each_version("later.py", |pair, _| async move {
        for (queue, letters) in [("errand.delay.524288s", 1), ("errand.delay.512s", 1), ("errand.dead-letters", 2)] {
            pair.broker().await_depth(pair.vhost(), queue, |depth| depth.ready == letters, SOON).await?;
        }
        let held = queue(&pair, "errand.default").await?;
        assert_eq!((&held["messages_ready"], &held["messages_unacknowledged"]), (&json!(0), &json!(0)), "{held}");
        shows_no_secret(&pair).await?;
        pair.stop().await
    })
    .await
}

async fn shows_no_secret(pair: &Pair) -> Result<()> {
    let peek = |queue, count| pair.broker().management.peek(pair.vhost(), queue, count);
    let waits = peek("errand.delay.512s", 1).await?.remove(0);
    assert_eq!((&waits.headers["id"], &waits.headers["x-tenant"]), (&json!("waits"), &json!("a")));
    assert_eq!(waits.headers["kwargsrepr"], "{'headers': '<redacted>'}");
    let letters = peek("errand.dead-letters", 2).await?;
    let header = |id: &str, name: &str| {
        let letter = letters.iter().find(|letter| letter.headers["id"] == id).context("no such letter")?;
        letter.headers[name].as_str().map(str::to_owned).context("no such header")
    };
    assert_eq!(header("fails", "argsrepr")?, "['http://127.0.0.1:1/', 'GET', '<redacted>']");
    assert_eq!(header("long", "argsrepr")?.len(), 1024);
    let shown = [waits].iter().chain(&letters).map(|message| message.headers.to_string()).collect::<String>();
    assert!(!shown.contains("s3cret"), "{shown}");
    Ok(())
}

/// A queue's exact counts: those of the management API lag.
async fn queue(pair: &Pair, name: &str) -> Result<Value> {
    let columns = ["name", "messages_ready", "messages_unacknowledged", "--formatter", "json"];
    let list = [&["-q", "list_queues", "-p", pair.vhost()][..], &columns].concat();
    let queues: Vec<Value> = serde_json::from_str(&broker::shared().await?.ctl(&list).await?)?;
    queues.into_iter().find(|queue| queue["name"] == name).context("no such queue")
}
