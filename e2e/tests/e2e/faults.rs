//! Every fault of the table in docs/reliability.md, by where it happens: no accepted task is lost by it, and none runs twice
//! but what was in flight.

mod broker;
mod clocks;
mod producer;
mod replies;
mod store;
mod topology;
mod worker;

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Client, Pair, Service, until};
use serde_json::{Value, json};

use crate::life::SOON;

const LONG: Duration = Duration::from_mins(3);

/// Submits so many tasks, all of which must be accepted.
async fn accepted(client: &Client, count: usize, task: impl Fn(usize) -> Value) -> Result<Vec<String>> {
    let mut ids = Vec::with_capacity(count);
    for number in 0..count {
        ids.push(client.accepted(&task(number)).await?);
    }
    Ok(ids)
}

/// The n-th of tasks that are quick.
fn echo(number: usize) -> Value {
    json!({"task": "echo", "args": [number]})
}

/// The n-th of tasks that take so many seconds.
fn slow(seconds: u32) -> impl Fn(usize) -> Value {
    move |number| json!({"task": "long_running_task", "args": [number, seconds]})
}

/// Waits until all have succeeded.
async fn succeed(client: &Client, ids: &[String]) -> Result<()> {
    for id in ids {
        let ended = client.await_terminal(id, LONG).await?;
        ensure!(ended["state"] == "SUCCESS", "{ended:#}");
    }
    Ok(())
}

/// One of a service's own metrics, without labels; 0 as long as it is not there.
pub(crate) async fn metric(service: &Service, name: &str) -> Result<u64> {
    let metrics = e2e::client::http()?.get(service.url("/metrics")).send().await?.text().await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.map_or(Ok(0), str::parse)?)
}

/// Handlers that the workers have started since each was.
pub(crate) async fn runs_started(pair: &Pair) -> Result<u64> {
    let mut all = 0;
    for worker in &pair.consumers {
        all += metric(worker, "errand_runs_started_total").await?;
    }
    Ok(all)
}

/// Waits until a service says that it is not ready: what it says.
async fn await_unready(service: &Service) -> Result<String> {
    let http = e2e::client::http()?;
    until("its unreadiness", SOON, async || {
        let answer = http.get(service.url("/readyz")).send().await?;
        ensure!(answer.status() == 503, "{}", answer.status());
        Ok(answer.text().await?)
    })
    .await
}
