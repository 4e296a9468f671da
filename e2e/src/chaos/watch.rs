//! Owns what is seen of the tasks over HTTP: samples and pulses while the run goes on, every row at its end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::logs::{Ms, Pulse, Row, Sample, Standing};
use super::now;
use crate::Client;

const PULSE: Duration = Duration::from_millis(50);
/// A sample is taken once in so many pulses.
const SAMPLE: usize = 5;
const PAGES: [&str; 3] =
    ["/v1/tasks?limit=100", "/v1/tasks?state=STARTED,RETRY&limit=200", "/v1/tasks?task=slow&limit=100"];

/// What was seen, by one who asks one thing at a time: so what was asked for later was seen later.
#[derive(Debug, Default)]
pub struct Seen {
    /// Of tasks.
    pub samples: Vec<Sample>,
    /// Of counts.
    pub pulses: Vec<Pulse>,
}

impl Seen {
    /// Looks until it is dropped. A producer that is away is not seen.
    pub async fn look_on(&mut self, client: &Client) {
        for look in 0.. {
            if let Ok(pulse) = pulse(client).await {
                self.pulses.push(pulse);
            }
            if look % SAMPLE == 0
                && let Ok(page) = client.get_path(PAGES[look / SAMPLE % PAGES.len()]).await
            {
                self.samples.extend(page.body["tasks"].as_array().into_iter().flatten().filter_map(sample));
            }
            sleep(PULSE).await;
        }
    }
}

async fn pulse(client: &Client) -> Result<Pulse> {
    let stats = client.get_path("/v1/stats").await?.body;
    Ok(Pulse { at: now(), ended: ended_of(&stats).context("no counts")? })
}

fn ended_of(stats: &Value) -> Option<u64> {
    ["success", "failure", "revoked"].iter().map(|state| stats[*state].as_u64()).sum()
}

fn sample(task: &Value) -> Option<Sample> {
    Some(Sample { n: task["args"][0].as_u64()?, standing: Standing::of(task["state"].as_str()?, retries(task)) })
}

fn retries(task: &Value) -> u32 {
    task["retries"].as_u64().and_then(|retries| u32::try_from(retries).ok()).unwrap_or(u32::MAX)
}

/// Waits until every task has ended, or none has for that long.
pub async fn drained(client: &Client, patience: Duration) {
    let (mut ended, mut since) = (0, Instant::now());
    while since.elapsed() < patience {
        if let Ok(answer) = client.get_path("/v1/stats").await {
            let open = ["scheduled", "waiting", "queued", "running", "retrying"];
            if open.iter().all(|stage| answer.body[*stage] == 0) {
                return;
            }
            let now = ended_of(&answer.body).unwrap_or(ended);
            if now > ended {
                (ended, since) = (now, Instant::now());
            }
        }
        sleep(PULSE).await;
    }
}

/// Every task that the producer has.
pub async fn rows(client: &Client) -> Result<Vec<Row>> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get_path(&format!("/v1/tasks?limit=1000{cursor}")).await?;
        ensure!(page.status == 200, "the list is answered {}: {}", page.status, page.text);
        for task in page.body["tasks"].as_array().context("no tasks")? {
            rows.push(row(task).with_context(|| format!("an unreadable task: {task}"))?);
        }
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(rows),
        }
    }
}

fn row(task: &Value) -> Option<Row> {
    let time = |name: &str| task[name].as_str().and_then(unix_ms);
    let state = task["state"].as_str()?.to_owned();
    // In RETRY `eta` is the next attempt's.
    let eta = if state == "RETRY" { None } else { time("eta") };
    Some(Row {
        id: task["task_id"].as_str()?.to_owned(),
        n: task["args"][0].as_u64()?,
        retries: retries(task),
        result: task["result"].clone(),
        error: task["error"]["type"].as_str().unwrap_or_default().to_owned(),
        started: !task["started_at"].is_null(),
        due: eta.or(time("created_at"))?,
        finished: time("finished_at"),
        state,
    })
}

fn unix_ms(text: &str) -> Option<Ms> {
    let time = humantime::parse_rfc3339_weak(text).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}
