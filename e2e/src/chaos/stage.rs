//! Owns the processes of a run: a broker, the pair, the network between, and what starts again what has died.

mod breaking;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use reqwest::Method;
use tempfile::TempDir;
use tokio::time::sleep;

use super::Options;
use super::logs::{Death, Presumed};
use crate::broker::{self, Broker};
use crate::{Client, Pair, Proxy, Service, guard};

/// How soon what has died is started again, as a process manager would.
const LOOK: Duration = Duration::from_millis(20);
/// Tasks that each worker runs at once.
pub const CONCURRENCY: usize = 128;
/// Between two looks at the queues.
const AGAIN: Duration = Duration::from_millis(200);
/// A worker's own grace is 30 s.
const STOP: Duration = Duration::from_secs(40);
const DEAD_LETTERS: &str = "errand.dead-letters";

/// The broker of a run.
#[derive(Debug)]
enum Node {
    Own(Box<Broker>),
    Shared(&'static Broker),
}

impl Node {
    fn get(&self) -> &Broker {
        match self {
            Self::Own(broker) => broker,
            Self::Shared(broker) => broker,
        }
    }

    fn own(&mut self) -> Result<&mut Broker> {
        match self {
            Self::Own(broker) => Ok(broker),
            Self::Shared(_) => bail!("others use this broker too"),
        }
    }
}

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    node: Node,
    /// The producer and the workers.
    pub pair: Pair,
    link: Proxy,
    /// The file that the workers' tasks write to.
    pub ledger: PathBuf,
    /// Every process that has ended.
    pub deaths: Vec<Death>,
    /// What processes were told to end with, by their ids.
    told: HashMap<u32, Signal>,
    _dir: TempDir,
    begin: Instant,
}

impl Stage {
    /// Starts all of it, empty.
    pub async fn start(options: &Options) -> Result<Self> {
        let node = match &options.release {
            Some(release) => {
                let broker = broker::Options { release: release.clone(), ..broker::Options::default() };
                Node::Own(Box::new(Broker::start(broker).await?))
            }
            None => Node::Shared(broker::shared().await?),
        };
        let link = Proxy::start(node.get().endpoint().amqp).await?;
        let dir = guard::scratch_dir("chaos-")?;
        let ledger = dir.path().join("ledger");
        let mut pair = Pair::on(node.get())
            .worker("chaos_worker")
            .consumers(options.workers)
            .consumer_via(link.address())
            .consumer_env("LEDGER", &ledger.display().to_string())
            .consumer_env("CONCURRENCY", &CONCURRENCY.to_string());
        if !options.sabotage.is_empty() {
            pair = pair.with_faults();
        }
        for (name, value) in &options.sabotage {
            pair = pair.env(name, value);
        }
        let pair = pair.start().await?;
        let (deaths, told, begin) = (Vec::new(), HashMap::new(), Instant::now());
        Ok(Self { node, pair, link, ledger, deaths, told, _dir: dir, begin })
    }

    /// The producer's API.
    #[must_use]
    pub fn client(&self) -> Client {
        self.pair.client().clone()
    }

    /// Lets time pass, and starts again what dies meanwhile.
    pub async fn hold(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.revive()?;
            sleep(LOOK).await;
        }
        Ok(())
    }

    fn revive(&mut self) -> Result<()> {
        for service in self.pair.consumers.iter_mut().chain([&mut self.pair.producer]) {
            let pid = service.pid();
            if let Some(status) = service.revive()? {
                let death =
                    Death { service: service.name().to_owned(), pid, told: self.told.get(&pid).copied(), status };
                if !death.was_told() {
                    say(self.begin, &death.to_string())?;
                }
                self.deaths.push(death);
            }
        }
        Ok(())
    }

    /// Ends the workers, so that what they had not acknowledged is back in its queue.
    pub async fn stop_workers(&mut self) -> Result<()> {
        for worker in &mut self.pair.consumers {
            self.deaths.push(end(worker).await?);
        }
        Ok(())
    }

    /// The same of the producer.
    pub async fn stop_producer(&mut self) -> Result<()> {
        self.deaths.push(end(&mut self.pair.producer).await?);
        Ok(())
    }

    /// What the producer took for lost.
    pub fn presumed(&self) -> Result<Vec<Presumed>> {
        let log = std::fs::read_to_string(self.pair.producer.log())?;
        Ok(log.lines().filter_map(Presumed::parse).collect())
    }

    /// What is left in the queues, once nothing is or `patience` has ended.
    pub async fn left_after(&mut self, patience: Duration) -> Result<Vec<(String, u32)>> {
        let end = Instant::now() + patience;
        loop {
            let left = self.left().await?;
            if left.is_empty() || Instant::now() > end {
                return Ok(left);
            }
            sleep(AGAIN).await;
        }
    }

    /// How many messages lie in which queue. The dead letters are meant to stay, and what is not durable is a connection's.
    pub async fn left(&self) -> Result<Vec<(String, u32)>> {
        let mut left = Vec::new();
        let queues = self.node.get().management().call(Method::GET, &["queues", self.pair.vhost()], None).await?;
        let durable = queues.as_array().into_iter().flatten().filter(|queue| queue["durable"] == true);
        for queue in durable.filter_map(|queue| queue["name"].as_str()) {
            let ready = self.pair.depth(queue).await?.ready;
            if ready > 0 && queue != DEAD_LETTERS {
                left.push((queue.to_owned(), ready));
            }
        }
        Ok(left)
    }

    /// Copies what the services and the tasks wrote into a directory.
    pub fn keep(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::copy(&self.ledger, dir.join("ledger"))?;
        for entry in std::fs::read_dir(self.pair.dir())? {
            let path = entry?.path();
            if let (true, Some(name)) = (path.is_file(), path.file_name()) {
                std::fs::copy(&path, dir.join(name))?;
            }
        }
        Ok(())
    }

    /// The services' logs are of no interest any more.
    pub fn silence(&mut self) {
        for service in self.pair.consumers.iter_mut().chain([&mut self.pair.producer]) {
            service.silence();
        }
    }
}

/// Ends a service for good. One that has ended by itself was not told to.
async fn end(service: &mut Service) -> Result<Death> {
    let told = service.try_wait()?.is_none().then_some(Signal::SIGTERM);
    let status = service.terminate(STOP).await?;
    Ok(Death { service: service.name().to_owned(), pid: service.pid(), told, status })
}

fn say(begin: Instant, what: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{:7.1} s  {what}", begin.elapsed().as_secs_f64())?)
}
