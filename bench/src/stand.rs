//! Owns the running system of one scenario: a node of its own, a producer and its workers, each fresh, so that a scenario
//! costs the same whatever ran before it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::broker::Options;
use e2e::load::Connection;
use e2e::{Broker, Pair, Service, procfs};
use tokio::time::sleep;

use crate::meter::Processes;

/// Between two looks at the counts, which cost the producer something too.
const LOOK: Duration = Duration::from_millis(25);
/// How long nothing may end before the run is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// What runs. Its end, however it comes, is that of all of it.
#[derive(Debug)]
pub struct Stand {
    node: Broker,
    pair: Pair,
}

impl Stand {
    /// Starts it with so many workers, all with their defaults.
    ///
    /// # Errors
    /// A part of it does not become ready.
    pub async fn start(workers: usize) -> Result<Self> {
        let node = Broker::start(Options::default()).await?;
        let pair = Pair::on(&node).consumers(workers).start().await?;
        Ok(Self { node, pair })
    }

    /// Where the producer listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.pair.client().address()
    }

    /// The pair.
    pub fn pair(&mut self) -> &mut Pair {
        &mut self.pair
    }

    /// The processes; the driver is this one.
    #[must_use]
    pub fn processes(&self) -> Processes {
        let workers = self.pair.consumers.iter().map(Service::pid).collect();
        [
            ("producer", vec![self.pair.producer.pid()]),
            ("consumer", workers),
            ("broker", vec![self.node.pid()]),
            ("driver", vec![std::process::id()]),
        ]
        .map(|(name, pids)| (name.to_owned(), pids))
        .into()
    }

    /// The most memory that the producer ever had, and a worker, in MB.
    ///
    /// # Errors
    /// One of them is gone.
    pub fn peak_rss(&self) -> Result<[f64; 2]> {
        let mut workers = 0;
        for worker in &self.pair.consumers {
            workers = workers.max(procfs::peak_rss(worker.pid())?);
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        Ok([procfs::peak_rss(self.pair.producer.pid())?, workers].map(|bytes| bytes as f64 / 1e6))
    }

    /// How many tasks are stored as ended.
    ///
    /// # Errors
    /// The producer does not say.
    pub async fn ended(&self) -> Result<usize> {
        ended(&mut Connection::open(self.address()).await?).await
    }

    /// Waits until so many are, and returns how many were seen then, and when.
    ///
    /// # Errors
    /// For a minute none has ended.
    pub async fn await_ended(&self, wanted: usize) -> Result<(usize, Instant)> {
        let mut connection = Connection::open(self.address()).await?;
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let ended = ended(&mut connection).await?;
            if ended >= wanted {
                return Ok((ended, Instant::now()));
            }
            if ended > last {
                (last, since) = (ended, Instant::now());
            }
            ensure!(since.elapsed() < PATIENCE, "{ended} of {wanted} tasks have ended, and none for {PATIENCE:?}");
            sleep(LOOK).await;
        }
    }

    /// Ends it as an operator does. One that fails to end is an error.
    ///
    /// # Errors
    /// A service that does not end well.
    pub async fn end(mut self) -> Result<()> {
        self.pair.producer.silence();
        self.pair.consumers.iter_mut().for_each(Service::silence);
        self.pair.stop().await
    }
}

async fn ended(connection: &mut Connection) -> Result<usize> {
    let (status, counts) = connection.exchange("GET", "/v1/stats", "").await?;
    ensure!(status == 200, "the counts are answered {status}: {counts}");
    let count = |state: &str| counts[state].as_u64().with_context(|| format!("no {state} in {counts}"));
    Ok((count("success")? + count("failure")? + count("revoked")?).try_into()?)
}
