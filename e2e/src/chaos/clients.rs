//! Owns those who order: each asks over HTTP with an idempotency key, asks again when it gets no answer, and remembers
//! what it was told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::logs::{Outcome, Submit};
use super::workload::{Kind, Order};
use crate::load::Connection;

const ANSWER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);
/// How often a client asks when it gets no answer: a producer may be away for a while.
const ASKS: usize = 100;

/// What is to be ordered.
#[derive(Debug, Clone)]
pub struct Orders {
    /// What the orders are drawn from.
    pub seed: u64,
    /// How many at least.
    pub count: u64,
    /// The time over which so many are spread.
    pub over: Duration,
    /// Once it is set no more are needed than that; until then it goes on at the same pace.
    pub enough: Arc<AtomicBool>,
    /// Where to order.
    pub producer: SocketAddr,
}

/// Orders all of it with so many clients at once, and says what each was told.
pub async fn order_all(orders: Orders, clients: usize) -> Result<Vec<Submit>> {
    let (next, begin) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut drivers = JoinSet::new();
    for _ in 0..clients {
        let (next, orders) = (Arc::clone(&next), orders.clone());
        drivers.spawn(async move {
            let (mut line, mut submits) = (Line { producer: orders.producer, connection: None }, Vec::new());
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                sleep_until(begin + orders.over.mul_f64(share(n, orders.count))).await;
                if n >= orders.count && orders.enough.load(Ordering::Relaxed) {
                    return submits;
                }
                submits.push(submit(&mut line, Order::draw(orders.seed, n)).await);
            }
        });
    }
    let mut submits = Vec::new();
    while let Some(driver) = drivers.join_next().await {
        submits.append(&mut driver?);
    }
    Ok(submits)
}

#[expect(clippy::cast_precision_loss, reason = "a share of some seconds")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// One order to its end: asked until there is an answer, perhaps asked again, perhaps revoked.
async fn submit(line: &mut Line, order: Order) -> Submit {
    let (outcome, ids) = (Outcome::Refused, Vec::new());
    let mut told = Submit { order, outcome, ids, refusal: None, repeat: None, revocation: None };
    told.outcome = ask_until_answered(line, &mut told).await;
    if order.repeated
        && told.outcome == Outcome::Accepted
        && let Asked::Answered(status, _) = ask(line, &order, &mut told.ids).await
    {
        told.repeat = Some(status);
    }
    if let (Kind::Revoked(after), Some(id)) = (order.kind, told.ids.first()) {
        sleep(after).await;
        told.revocation = line.revoke(id).await;
    }
    told
}

async fn ask_until_answered(line: &mut Line, Submit { order, ids, refusal, .. }: &mut Submit) -> Outcome {
    let mut at_worst = Outcome::Refused;
    for _ in 0..ASKS {
        match ask(line, order, ids).await {
            Asked::Answered(200..300, _) => return Outcome::Accepted,
            Asked::Answered(status, _) => {
                *refusal = Some(status);
                return at_worst;
            }
            // Nobody listened, so nobody can have accepted it.
            Asked::Unsent => {}
            Asked::Unanswered if order.persistent => at_worst = Outcome::Unknown,
            Asked::Unanswered => return Outcome::Unknown,
        }
        sleep(PAUSE).await;
    }
    at_worst
}

async fn ask(line: &mut Line, order: &Order, ids: &mut Vec<String>) -> Asked {
    let key = format!("idempotency-key: {}\r\n", order.key());
    let asked = line.ask("POST", "/v1/tasks", &key, &order.body().to_string()).await;
    if let Asked::Answered(200..300, task) = &asked {
        note_id(ids, task);
    }
    asked
}

fn note_id(ids: &mut Vec<String>, task: &Value) {
    let id = task["task_id"].as_str().unwrap_or_default();
    if !ids.iter().any(|known| known == id) {
        ids.push(id.to_owned());
    }
}

enum Asked {
    /// The status and the body.
    Answered(u16, Value),
    /// It was sent, wholly or in part, and no answer came.
    Unanswered,
    /// Nobody listens.
    Unsent,
}

/// A client's connection, made again after each failure.
struct Line {
    producer: SocketAddr,
    connection: Option<Connection>,
}

impl Line {
    async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Asked {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => match timeout(ANSWER, Connection::open(self.producer)).await {
                Ok(Ok(connection)) => connection,
                _ => return Asked::Unsent,
            },
        };
        let headers = format!("content-type: application/json\r\n{headers}");
        match timeout(ANSWER, connection.ask(method, path, &headers, body)).await {
            Ok(Ok((status, answer))) => {
                self.connection = Some(connection);
                Asked::Answered(status, answer)
            }
            _ => Asked::Unanswered,
        }
    }

    /// How it was answered; `None` if any request had no answer, as it may have been heeded.
    async fn revoke(&mut self, id: &str) -> Option<u16> {
        for _ in 0..ASKS {
            match self.ask("POST", &format!("/v1/tasks/{id}/revoke"), "", "").await {
                Asked::Answered(status, _) => return Some(status),
                Asked::Unsent => sleep(PAUSE).await,
                Asked::Unanswered => return None,
            }
        }
        None
    }
}
