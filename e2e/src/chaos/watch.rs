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
const ENDED: [&str; 3] = ["success", "failure", "revoked"];
const OPEN: [&str; 5] = ["scheduled", "waiting", "queued", "running", "retrying"];
const AT_BROKER: [&str; 3] = ["queued", "running", "retrying"];
const PAGES: [&str; 3] =
    ["/v1/tasks?limit=100", "/v1/tasks?state=STARTED,RETRY&limit=200", "/v1/tasks?task=slow&limit=100"];

/// What was seen, by one who asks one thing at a time: so what was asked for later was seen later.
#[derive(Debug, Default)]
pub struct Seen {
    /// Of tasks.
    pub samples: Vec<Sample>,
    /// Of counts.
    pub pulses: Vec<Pulse>,
    /// What was asked for and answered with something else.
    pub unshown: Vec<String>,
}

impl Seen {
    /// Looks until it is dropped. A producer that is away is not seen; one that answers must show what it is asked for.
    pub async fn look_on(&mut self, client: &Client) {
        for look in 0.. {
            if let Some(pulse) = self.ask(client, "/v1/stats", pulse).await {
                self.pulses.push(pulse);
            }
            if look % SAMPLE == 0
                && let Some(samples) = self.ask(client, PAGES[look / SAMPLE % PAGES.len()], samples).await
            {
                self.samples.extend(samples);
            }
            sleep(PULSE).await;
        }
    }

    async fn ask<T>(&mut self, client: &Client, path: &str, read: fn(&Value) -> Option<T>) -> Option<T> {
        let answer = client.get_path(path).await.ok()?;
        let shown = if answer.status == 200 { read(&answer.body) } else { None };
        if shown.is_none() {
            self.unshown.push(format!("{path} was answered {}: {:.200}", answer.status, answer.text));
        }
        shown
    }
}

fn pulse(stats: &Value) -> Option<Pulse> {
    Some(Pulse { at: now(), ended: sum(stats, &ENDED)?, at_broker: sum(stats, &AT_BROKER)? })
}

fn sum(stats: &Value, names: &[&str]) -> Option<u64> {
    names.iter().map(|name| stats[*name].as_u64()).sum()
}

fn samples(page: &Value) -> Option<Vec<Sample>> {
    page["tasks"].as_array()?.iter().map(sample).collect()
}

fn sample(task: &Value) -> Option<Sample> {
    Some(Sample { n: task["args"][0].as_u64()?, standing: Standing::of(task["state"].as_str()?, retries(task)) })
}

fn retries(task: &Value) -> u32 {
    task["retries"].as_u64().and_then(|retries| u32::try_from(retries).ok()).unwrap_or(u32::MAX)
}

/// Waits until every task has ended, or none has for that long: what is open then.
pub async fn drained(client: &Client, patience: Duration) -> Option<String> {
    let (mut ended, mut since) = (0, Instant::now());
    let mut open = "nothing was shown".to_owned();
    while since.elapsed() < patience {
        if let Ok(answer) = client.get_path("/v1/stats").await
            && let (Some(count), Some(now)) = (sum(&answer.body, &OPEN), sum(&answer.body, &ENDED))
        {
            if count == 0 {
                return None;
            }
            open = format!("{count} were open when patience with them had ended");
            if now > ended {
                (ended, since) = (now, Instant::now());
            }
        }
        sleep(PULSE).await;
    }
    Some(open)
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
