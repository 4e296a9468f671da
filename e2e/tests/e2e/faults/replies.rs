//! What no worker of ours would send comes over the reply queue.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::broker::{Answer, Login, Method, Wire};
use e2e::{Pair, broker, until};
use serde_json::{Value, json};

use super::{accepted, echo, metric, succeed};
use crate::life::SOON;

/// A reply queue that anybody may write to.
struct Replies<'a> {
    pair: &'a Pair,
    queue: String,
}

impl<'a> Replies<'a> {
    async fn of(pair: &'a Pair) -> Result<Self> {
        let queue = until("a reply queue", SOON, async || {
            let queues = pair.broker().management.queues(pair.vhost()).await?;
            queues.into_iter().find(|queue| queue.starts_with("errand.results.")).context("none")
        })
        .await?;
        Ok(Self { pair, queue })
    }

    /// Publishes these bytes about a task.
    async fn send(&self, id: &str, body: &[u8]) -> Result<()> {
        self.publish(&json!({"correlation_id": id}), body).await
    }

    /// Publishes messages about tasks as one, as a worker of that form would.
    async fn send_pack(&self, form: u32, members: &[(&str, String)]) -> Result<()> {
        let member = |(id, body): &(&str, String)| {
            let line = json!({"bytes": body.len(), "correlation_id": id});
            format!("{line}\n{body}\n")
        };
        let body: String = members.iter().map(member).collect();
        self.publish(&json!({"headers": {"errand-pack": form}}), body.as_bytes()).await
    }

    async fn publish(&self, more: &Value, body: &[u8]) -> Result<()> {
        let mut properties = json!({"content_type": "application/json", "delivery_mode": 2});
        properties.as_object_mut().context("no object")?.extend(more.as_object().cloned().unwrap_or_default());
        let message = json!({
            "properties": properties,
            "routing_key": self.queue, "payload": STANDARD.encode(body), "payload_encoding": "base64",
        });
        let path = ["exchanges", self.pair.vhost(), "amq.default", "publish"];
        let answer = self.pair.broker().management.call(reqwest::Method::POST, &path, Some(&message)).await?;
        ensure!(answer["routed"] == true, "not routed");
        Ok(())
    }

    /// More than any worker's result may have. The management API takes no such thing.
    async fn send_huge(&self) -> Result<()> {
        let broker = self.pair.broker();
        let (user, password) = broker.management.credentials();
        let mut wire = Wire::open(broker.amqp, Login { user, password, vhost: self.pair.vhost() }).await?;
        wire.call(Method::new(85, 10).bytes(&[0])).await?;
        let body = json!({"status": "SUCCESS", "task_id": "a", "result": "x".repeat(17 << 20)});
        let confirmed = wire.publish("", &self.queue, body.to_string().as_bytes()).await?;
        ensure!(matches!(confirmed, Answer::Method((60, 80), _)), "{confirmed:?}");
        wire.close().await
    }

    async fn report(&self, id: &str, status: &str, retries: u32, seq: u32) -> Result<()> {
        self.send(id, report(id, status, retries, seq).as_bytes()).await
    }
}

fn report(id: &str, status: &str, retries: u32, seq: u32) -> String {
    let result = if status == "SUCCESS" { json!(7) } else { json!({"exc_type": "E", "exc_message": ["m"]}) };
    let body = json!({"task_id": id, "status": status, "result": result, "retries": retries, "seq": seq,
        "traceback": null, "children": []});
    body.to_string()
}

async fn letters(pair: &Pair) -> Result<usize> {
    let letters = pair.broker().management.peek(pair.vhost(), "errand.dead-letters", 100).await?;
    Ok(letters.iter().filter(|letter| letter.headers["errand-dead-type"] == "UnreadableReply").count())
}

#[tokio::test]
async fn replies_that_cannot_be_read_are_set_aside_and_hold_up_no_other() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let replies = Replies::of(&pair).await?;
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let malformed: [&[u8]; 7] = [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe{}",
        br#"{"status": "SUCCESS", "result": NaN, "task_id": "a"}"#,
        br#"{"status": 7, "result": 1, "task_id": "a"}"#,
        &deep,
    ];
    for body in malformed {
        replies.send("nobody", body).await?;
    }
    replies.send_huge().await?;
    // Of these nobody knows the task, and a reply makes no row.
    for status in ["SUCCESS", "FAILURE", "RETRY", "STARTED"] {
        replies.report("nobody", status, 0, 0).await?;
    }
    succeed(pair.client(), &accepted(pair.client(), 10, echo).await?).await?;
    until("each set aside once", SOON, async || {
        let counted = metric(&pair.producer, "errand_unreadable_replies_total").await?;
        ensure!(counted == malformed.len() as u64 + 1, "{counted}");
        Ok(())
    })
    .await?;
    assert_eq!(letters(&pair).await?, malformed.len() + 1);
    pair.broker().await_depth(pair.vhost(), &replies.queue, |depth| depth.ready == 0, SOON).await?;
    assert_eq!(pair.client().get_path("/v1/tasks/nobody").await?.status, 404);
    assert_eq!(metric(&pair.producer, "errand_stale_acks_total").await?, 0);
    pair.stop().await
}

#[tokio::test]
async fn of_a_pack_what_can_be_read_is_recorded_and_the_rest_is_set_aside() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let (client, replies) = (pair.client(), Replies::of(&pair).await?);
    let ids = accepted(client, 4, echo).await?;
    let [first, unreadable, last, other] = &ids[..] else { anyhow::bail!("{ids:?}") };
    let success = |id: &str| report(id, "SUCCESS", 0, 0);
    let no_json = format!(r#"{{"status": "SUCCESS", "result": NaN, "task_id": "{unreadable}"}}"#);
    let good = (first.as_str(), success(first));
    replies.send_pack(1, &[good.clone(), (unreadable.as_str(), no_json), (last.as_str(), success(last))]).await?;
    // Of one in a form of later nothing is known but that it is to be kept.
    replies.send_pack(2, &[(other.as_str(), success(other))]).await?;
    replies.send_pack(1, &[good, (other.as_str(), success(other))]).await?;
    for id in [first, last, other] {
        let ended = client.await_terminal(id, SOON).await?;
        assert_eq!((&ended["state"], &ended["result"]), (&json!("SUCCESS"), &json!(7)), "{ended:#}");
    }
    assert_eq!(client.await_terminal(unreadable, SOON).await?["error"]["type"], "UnreadableReply");
    until("the letters", SOON, async || {
        let letters = letters(&pair).await?;
        ensure!(letters == 2, "{letters}");
        Ok(())
    })
    .await?;
    assert_eq!(metric(&pair.producer, "errand_unreadable_replies_total").await?, 2);
    assert_eq!(metric(&pair.producer, "errand_stale_acks_total").await?, 0);
    pair.stop().await
}

#[tokio::test]
async fn replies_that_come_twice_late_or_in_another_order_move_no_task_backwards() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let (client, replies) = (pair.client(), Replies::of(&pair).await?);
    let id = client.accepted(&echo(1)).await?;
    let heard = async |state: &str, retries: u32| -> Result<Value> {
        // A task of its own that ends by what is said after it: all before it has been recorded then.
        let marker = client.accepted(&echo(0)).await?;
        replies.report(&marker, "SUCCESS", 0, 0).await?;
        client.await_terminal(&marker, SOON).await?;
        let task = client.get(&id).await?;
        ensure!(task["state"] == state && task["retries"] == retries, "{task:#}");
        Ok(task)
    };
    replies.report(&id, "RETRY", 1, 0).await?;
    heard("RETRY", 1).await?;
    for (status, retries) in [("STARTED", 0), ("RETRY", 0), ("STARTED", 1), ("RETRY", 1)] {
        replies.report(&id, status, retries, 9).await?;
    }
    heard("RETRY", 1).await?;
    replies.report(&id, "STARTED", 2, 0).await?;
    heard("STARTED", 2).await?;
    for (status, retries) in
        [("SUCCESS", 2), ("SUCCESS", 2), ("FAILURE", 2), ("STARTED", 2), ("RETRY", 2), ("FAILURE", 3)]
    {
        replies.report(&id, status, retries, 0).await?;
    }
    let ended = heard("SUCCESS", 2).await?;
    assert_eq!(ended["result"], 7);
    replies.report(&id, "STARTED", 4, 9).await?;
    assert_eq!(heard("SUCCESS", 2).await?, ended, "an end is the end");
    pair.stop().await
}
