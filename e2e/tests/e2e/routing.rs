//! Queues, workers that share them, and priorities.

use anyhow::Result;
use e2e::{Pair, broker, load};
use serde_json::{Value, json};

use crate::life::SOON;

#[tokio::test]
async fn two_workers_share_a_queue_and_a_second_queue_has_its_own() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).producer_env("QUEUES", "default,mail").consumers(0);
    let mut pair = pair.consumer_env("CONCURRENCY", "4").start().await?;
    for name in ["a@test", "b@test"] {
        pair.start_consumer(&[("WORKER_NAME", name)]).await?;
    }
    pair.start_consumer(&[("WORKER_NAME", "mail@test"), ("QUEUES", "mail")]).await?;
    let wish = |queue: &str| json!({"task": "sleep", "args": [0.2], "queue": queue});
    let mut workers = std::collections::BTreeMap::<String, Vec<Value>>::new();
    for queue in ["default", "mail"] {
        let mut ids = Vec::new();
        for _ in 0..16 {
            ids.push(pair.client().accepted(&wish(queue)).await?);
        }
        for id in ids {
            let ended = pair.client().await_terminal(&id, SOON).await?;
            assert_eq!(ended["state"], "SUCCESS", "{ended:#}");
            workers.entry(queue.to_owned()).or_default().push(ended["worker"].clone());
        }
    }
    for name in ["a@test", "b@test"] {
        assert!(workers["default"].contains(&json!(name)), "{name} ran nothing of 16: {workers:?}");
    }
    assert!(workers["mail"].iter().all(|worker| worker == "mail@test"), "{workers:?}");
    pair.stop().await
}

#[tokio::test]
async fn with_a_small_window_high_priorities_overtake() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).producer_env("RELAY_WINDOW", "10").consumers(0).start().await?;
    let address = pair.client().address();
    let wish = |n: usize| json!({"task": "echo", "args": [n], "priority": if n >= 900 { 9 } else { 0 }});
    let low = load::submit(address, 900, 8, wish).await?;
    let high = load::submit(address, 100, 8, move |n| wish(900 + n)).await?;
    let queued = pair.broker().await_depth(pair.vhost(), "errand.default", |depth| depth.ready == 10, SOON).await?;
    assert_eq!(queued.ready, 10, "no more than the window is at the broker");
    let mut pair = pair;
    pair.start_consumer(&[("CONCURRENCY", "1")]).await?;
    for ids in [&low.ids, &high.ids] {
        let ends = load::await_all(address, ids, 8, SOON * 2).await?;
        assert_eq!(ends, [("SUCCESS".to_owned(), ids.len())].into());
    }
    let ended = |ids: Vec<String>| {
        let client = pair.client().clone();
        async move {
            let mut times = Vec::new();
            for id in ids {
                times.push(client.get(&id).await?["finished_at"].as_str().unwrap_or_default().to_owned());
            }
            times.sort();
            Ok::<_, anyhow::Error>(times)
        }
    };
    let (low, high) = (ended(low.ids).await?, ended(high.ids).await?);
    let overtaken = low.iter().filter(|time| **time > high[99]).count();
    println!("{overtaken} of 900 low ones ended after the last of the 100 high ones");
    assert!(overtaken >= 850, "only {overtaken} of 900 were overtaken");
    pair.stop().await
}
