//! Owns the proof of a run: every task that was accepted is stored once, as ended, with the result that its payload asks
//! for and with no attempt more than that.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::load::{Connection, request};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::latencies::Latencies;
use crate::work::Work;

/// A page is about this large, in bytes: it passes through the producer's memory.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// What a task takes of a page beside its payload.
const TASK_BYTES: usize = 1200;

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    tasks: Vec<Task<'a>>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Task<'a> {
    #[serde(rename = "task_id")]
    id: &'a str,
    state: &'a str,
    retries: u32,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    created_at: &'a str,
    finished_at: Option<&'a str>,
}

/// Looks at every task; `ids` are by the tasks' numbers and no others were submitted meanwhile. Returns how long each took
/// from its acceptance until the producer had its result in hand, to the millisecond.
///
/// # Errors
/// A task that is missing, there twice, or not as it should be.
pub async fn check(address: SocketAddr, work: Work, ids: &[String]) -> Result<Latencies> {
    let mut open: HashMap<&str, usize> = ids.iter().enumerate().map(|(number, id)| (&**id, number)).collect();
    ensure!(open.len() == ids.len(), "an id was given twice");
    let limit = (PAGE_BYTES / (TASK_BYTES + 2 * work.payload())).clamp(1, 1000);
    let mut connection = Connection::open(address).await?;
    let mut latencies = Latencies::default();
    let mut cursor = String::new();
    while !open.is_empty() {
        let path = format!("/v1/tasks?limit={limit}{cursor}");
        let answer = connection.send(&request("GET", &path, "", "")).await?;
        let page: Page = serde_json::from_slice(answer.body).with_context(|| format!("{path}: {}", answer.status))?;
        for task in page.tasks.iter().take(open.len()) {
            let number = open.remove(task.id).with_context(|| format!("{} is nobody's task", task.id))?;
            latencies.add(task.check(work, number)?);
        }
        let next = page.next_cursor.with_context(|| format!("{} accepted tasks are missing", open.len()));
        cursor = if open.is_empty() { String::new() } else { format!("&cursor={}", next?) };
    }
    Ok(latencies)
}

impl Task<'_> {
    fn check(&self, work: Work, number: usize) -> Result<Duration> {
        let Self { id, state, retries, .. } = self;
        ensure!(*state == "SUCCESS" && *retries == work.retries(), "{id} is {state} after {retries} retries");
        work.check(number, self.result.map_or("null", RawValue::get))?;
        let ended = humantime::parse_rfc3339(self.finished_at.context("it has ended at no time")?)?;
        // The clock may be set back meanwhile.
        Ok(ended.duration_since(humantime::parse_rfc3339(self.created_at)?).unwrap_or_default())
    }
}
