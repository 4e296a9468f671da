//! Owns a load run: many tasks over a few kept connections, with as little of the machine as it can.

mod connection;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::task::JoinSet;

pub use connection::{Answer, Connection, request};

use crate::client::is_terminal;

/// What was submitted.
#[derive(Debug)]
pub struct Submitted {
    /// The ids in the order of acceptance.
    pub ids: Vec<String>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

/// Submits `count` tasks from `connections` connections at once; `task` makes the n-th. Any answer but 202 is an error.
pub async fn submit<F>(address: SocketAddr, count: usize, connections: usize, task: F) -> Result<Submitted>
where
    F: Fn(usize) -> Value + Send + Sync + 'static,
{
    let (next, task, start) = (Arc::new(AtomicUsize::new(0)), Arc::new(task), Instant::now());
    let mut drivers = JoinSet::new();
    for _ in 0..connections {
        let (next, task) = (Arc::clone(&next), Arc::clone(&task));
        drivers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            let mut ids = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(ids);
                }
                ids.push(connection.submit(&task(number)).await?);
            }
        });
    }
    let mut ids = Vec::with_capacity(count);
    while let Some(driver) = drivers.join_next().await {
        ids.append(&mut driver??);
    }
    Ok(Submitted { ids, elapsed: start.elapsed() })
}

/// Waits until every task has ended: how many are in which state.
pub async fn await_all(
    address: SocketAddr,
    ids: &[String],
    connections: usize,
    deadline: Duration,
) -> Result<BTreeMap<String, usize>> {
    let until = Instant::now() + deadline;
    let mut drivers = JoinSet::new();
    for part in ids.chunks(ids.len().div_ceil(connections).max(1)) {
        drivers.spawn(await_part(address, part.to_vec(), until));
    }
    let mut states = BTreeMap::new();
    while let Some(part) = drivers.join_next().await {
        for state in part?? {
            *states.entry(state).or_default() += 1;
        }
    }
    Ok(states)
}

async fn await_part(address: SocketAddr, ids: Vec<String>, until: Instant) -> Result<Vec<String>> {
    let mut connection = Connection::open(address).await?;
    let mut ends = Vec::with_capacity(ids.len());
    for id in ids {
        loop {
            let (status, task) = connection.wait(&id, until.saturating_duration_since(Instant::now())).await?;
            if status != 200 {
                bail!("task {id} is answered {status}: {task}");
            }
            if is_terminal(&task) {
                ends.push(task["state"].as_str().unwrap_or_default().to_owned());
                break;
            }
            if Instant::now() > until {
                bail!("at the deadline the task is still {task:#}");
            }
        }
    }
    Ok(ends)
}
