//! Owns the clients of a run: kept connections that submit, each its next task when the one before is answered.
//!
//! What it uses of the machine is missing from what it measures, so a request is a template with a number written into it
//! and an answer is read as far as the id.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::load::{Answer, Connection};
use futures_util::future::try_join_all;
use tokio::time::sleep_until;

use crate::latencies::Latencies;
use crate::work::{Submit, Work};

/// Asks for the answer when the task has ended.
pub const WAIT: &str = "prefer: wait=60\r\n";

/// Who submits what.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// What the tasks are.
    pub work: Work,
    /// How many.
    pub tasks: usize,
    /// Over how many connections.
    pub connections: usize,
    /// So many a second; as many as can be when `None`.
    pub rate: Option<f64>,
    /// Every such task is waited for on its connection; none when `None`.
    pub wait_every: Option<usize>,
}

/// What became of it.
#[derive(Debug)]
pub struct Submitted {
    /// The ids by the tasks' numbers.
    pub ids: Vec<String>,
    /// When the first request was sent.
    pub start: Instant,
    /// From then to the last answer.
    pub elapsed: Duration,
    /// From a submit to its 202.
    pub submits: Latencies,
    /// From a submit to the result, of those that were waited for.
    pub results: Latencies,
}

impl Submitted {
    /// Nothing yet, of so many tasks, from now on.
    #[must_use]
    pub fn nothing(tasks: usize) -> Self {
        let (submits, results) = (Latencies::default(), Latencies::default());
        Self { ids: vec![String::new(); tasks], start: Instant::now(), elapsed: Duration::ZERO, submits, results }
    }
}

/// Submits it all. The connections are open before the clock starts.
///
/// # Errors
/// A task that is not accepted, or not ended when it was waited for.
pub async fn run(address: SocketAddr, load: &Load) -> Result<Submitted> {
    let connections = try_join_all((0..load.connections).map(|_| Connection::open(address))).await?;
    let run = Run { load: *load, next: Cell::new(0), submitted: RefCell::new(Submitted::nothing(load.tasks)) };
    try_join_all(connections.into_iter().map(|connection| run.client(connection))).await?;
    let submitted = run.submitted.into_inner();
    Ok(Submitted { elapsed: submitted.start.elapsed(), ..submitted })
}

/// Shared by the clients, which are all on one thread.
struct Run {
    load: Load,
    next: Cell<usize>,
    submitted: RefCell<Submitted>,
}

impl Run {
    async fn client(&self, mut connection: Connection) -> Result<()> {
        let (mut submit, mut wait) = (Submit::of(self.load.work, ""), Submit::of(self.load.work, WAIT));
        while let Some(number) = self.next_number().await {
            let waits = self.load.wait_every.is_some_and(|every| number % every == 0);
            let request = if waits { wait.nth(number) } else { submit.nth(number) };
            let start = Instant::now();
            let answer = connection.send(request).await?;
            let latency = start.elapsed();
            let id = accepted(&answer, if waits { 200 } else { 202 })?;
            let mut submitted = self.submitted.borrow_mut();
            id.clone_into(&mut submitted.ids[number]);
            if waits { submitted.results.add(latency) } else { submitted.submits.add(latency) }
        }
        Ok(())
    }

    /// At its time, when there is a rate.
    async fn next_number(&self) -> Option<usize> {
        let number = self.next.get();
        if number == self.load.tasks {
            return None;
        }
        self.next.set(number + 1);
        if let Some(rate) = self.load.rate {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let due = Duration::from_secs_f64(number as f64 / rate);
            let at = self.submitted.borrow().start + due;
            sleep_until(at.into()).await;
        }
        Some(number)
    }
}

/// The id in an answer of this status.
///
/// # Errors
/// Another status, or no id.
pub fn accepted<'a>(answer: &Answer<'a>, status: u16) -> Result<&'a str> {
    const FIELD: &[u8] = br#""task_id":""#;
    let text = || String::from_utf8_lossy(&answer.body[..answer.body.len().min(500)]);
    ensure!(answer.status == status, "a submit is answered {}: {}", answer.status, text());
    let id = answer.body.windows(FIELD.len()).position(|bytes| bytes == FIELD).and_then(|at| {
        let rest = &answer.body[at + FIELD.len()..];
        std::str::from_utf8(&rest[..rest.iter().position(|byte| *byte == b'"')?]).ok()
    });
    id.with_context(|| format!("accepted without an id: {}", text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_far_as_its_id() {
        let answer = |status| Answer { status, body: br#"{"task_id":"01a","task":"echo"}"# };
        assert_eq!(accepted(&answer(202), 202).unwrap(), "01a");
        assert!(accepted(&answer(503), 202).is_err());
        assert!(accepted(&Answer { status: 202, body: b"{}" }, 202).is_err());
    }
}
