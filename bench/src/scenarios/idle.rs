//! Nothing to do: what the pair uses then.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::load;
use serde_json::json;
use tokio::time::sleep;

use super::PAYLOAD;
use crate::figures::Figures;
use crate::meter::Meter;
use crate::row::Row;
use crate::stand::Stand;

/// Until what follows a start and a task is done.
const SETTLE: Duration = Duration::from_secs(5);

/// The CPU time is µs a second here.
pub(super) async fn run(stand: &Stand, name: &str, seconds: u32) -> Result<Row> {
    let payload = "x".repeat(PAYLOAD);
    load::submit(stand.address(), 1, 1, move |_| json!({"task": "echo", "args": [payload]})).await?;
    stand.await_ended(1).await?;
    sleep(SETTLE).await;
    let (meter, start) = (Meter::read(&stand.processes())?, Instant::now());
    sleep(Duration::from_secs(seconds.into())).await;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = meter.used(&stand.processes(), seconds)?;
    let figures = Figures { name: format!("{name}, µs/s"), tasks: 0, seconds, cpu, latency: None };
    Ok(Row { figures, accepted: None, stored: None, submit: None, peak_rss: stand.peak_rss()? })
}
