//! Owns a load run: many tasks over a few kept connections, with as little of the machine as it can.
//!
//! HTTP by hand: on few cores a general client would take the time that is to be measured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

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

/// One connection that is kept open.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Submits a task that must be accepted: its id.
    pub async fn submit(&mut self, task: &Value) -> Result<String> {
        match self.exchange("POST", "/v1/tasks", &task.to_string()).await? {
            (202, answer) => Ok(answer["task_id"].as_str().context("accepted without an id")?.to_owned()),
            (status, answer) => bail!("{task} is answered {status}: {answer}"),
        }
    }

    /// Waits for the end of a task, for a minute at most, and reads it as it stands then.
    pub async fn wait(&mut self, id: &str, limit: Duration) -> Result<(u16, Value)> {
        let prefer = format!("prefer: wait={}\r\n", limit.as_secs().clamp(1, 60));
        self.ask("GET", &format!("/v1/tasks/{id}"), &prefer, "").await
    }

    /// One request and its answer: status and JSON body.
    pub async fn exchange(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        self.ask(method, path, "content-type: application/json\r\n", body).await
    }

    /// The same with header lines, each with its line's end.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Result<(u16, Value)> {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: e2e\r\n{headers}content-length: {length}\r\n\r\n{body}");
        self.0.write_all(request.as_bytes()).await?;
        let (status, length) = self.head().await?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok((status, serde_json::from_slice(&body)?))
    }

    async fn head(&mut self) -> Result<(u16, usize)> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no status line: {line:?}"))?;
        let mut length = None;
        loop {
            line.clear();
            self.0.read_line(&mut line).await?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().ok();
                }
                Some(_) => {}
                None => return Ok((status, length.context("an answer without a content-length")?)),
            }
        }
    }
}
