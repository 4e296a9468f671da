//! Owns a test's fixture: a virtual host of its own, a producer and consumers, a scratch directory for the store.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::broker::{Broker, Depth, Endpoint};
use crate::service::FAULTS;
use crate::{Client, Env, Service, guard};

/// The consumer's own grace is 30 s.
const STOP: Duration = Duration::from_secs(40);

static VHOSTS: AtomicU32 = AtomicU32::new(0);

/// What a pair is to be started with. See [`Pair::on`].
#[derive(Debug)]
pub struct Builder {
    broker: Endpoint,
    vhost: String,
    producer: Env,
    consumer: Env,
    consumers: usize,
    worker: String,
    faults: bool,
    producer_under: Vec<String>,
    producer_via: Option<SocketAddr>,
    consumer_via: Option<SocketAddr>,
}

impl Builder {
    /// Sets a variable of the producer.
    #[must_use]
    pub fn producer_env(mut self, name: &str, value: &str) -> Self {
        self.producer.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a variable of every consumer.
    #[must_use]
    pub fn consumer_env(mut self, name: &str, value: &str) -> Self {
        self.consumer.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a variable of both.
    #[must_use]
    pub fn env(self, name: &str, value: &str) -> Self {
        self.producer_env(name, value).consumer_env(name, value)
    }

    /// How many consumers to start; one if nothing is said.
    #[must_use]
    pub fn consumers(mut self, count: usize) -> Self {
        self.consumers = count;
        self
    }

    /// The binary of the consumers, `consumer` if nothing is said.
    #[must_use]
    pub fn worker(mut self, binary: &str) -> Self {
        binary.clone_into(&mut self.worker);
        self
    }

    /// The services know `FAULTS` and `SEEDED_BUG`.
    #[must_use]
    pub fn with_faults(mut self) -> Self {
        self.faults = true;
        self
    }

    /// The producer is started by this command, which becomes it, and keeps its store at this path there.
    #[must_use]
    pub fn producer_under(mut self, command: Vec<String>, store: &Path) -> Self {
        self.producer_under = command;
        self.producer_env("DATABASE_URL", &format!("sqlite:{}", store.display()))
    }

    /// The producer reaches the broker through this address, a proxy's.
    #[must_use]
    pub fn producer_via(mut self, proxy: SocketAddr) -> Self {
        self.producer_via = Some(proxy);
        self
    }

    /// The consumers reach the broker through this address, a proxy's.
    #[must_use]
    pub fn consumer_via(mut self, proxy: SocketAddr) -> Self {
        self.consumer_via = Some(proxy);
        self
    }

    /// The virtual host's name.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Makes the virtual host, starts the services and waits until each is ready.
    pub async fn start(self) -> Result<Pair> {
        let dir = guard::scratch_dir("pair-")?;
        self.broker.management.add_vhost(&self.vhost).await?;
        let store = dir.path().join("errand.db");
        let common = |via: Option<SocketAddr>| -> Env {
            let url = self.broker.amqp_url_via(via.unwrap_or(self.broker.amqp), &self.vhost);
            [("AMQP_URL".to_owned(), url), ("RUST_LOG".to_owned(), "info".to_owned())].into()
        };
        let mut producer_env = common(self.producer_via);
        producer_env.insert("DATABASE_URL".to_owned(), format!("sqlite:{}", store.display()));
        producer_env.extend(self.producer);
        let mut consumer_env = common(self.consumer_via);
        consumer_env.extend(self.consumer);
        let build = |binary: &str| if self.faults { format!("{FAULTS}/{binary}") } else { binary.to_owned() };
        let producer =
            Service::start_under(&self.producer_under, &build("producer"), "producer", dir.path(), &producer_env)
                .await?;
        let client = Client::new(producer.address())?;
        let mut pair = Pair {
            client,
            producer,
            consumers: Vec::new(),
            consumer_env,
            worker: build(&self.worker),
            store,
            broker: self.broker,
            vhost: self.vhost,
            dir,
        };
        for _ in 0..self.consumers {
            pair.start_consumer(&[]).await?;
        }
        Ok(pair)
    }
}

/// A producer and its consumers, running on a virtual host of their own. Dropping it kills them and prints the end of
/// each log, which the test harness shows when the test fails.
///
/// The virtual host stays until the node goes. Deleting one whose quorum queues are still being declared takes down the
/// node's dead-letter supervisor (RabbitMQ 3.10.8), and then every other test's queues.
///
/// It does not borrow the broker: a test may stop that meanwhile.
#[derive(Debug)]
pub struct Pair {
    client: Client,
    /// The producer.
    pub producer: Service,
    /// The consumers in the order of their start.
    pub consumers: Vec<Service>,
    consumer_env: Env,
    worker: String,
    store: PathBuf,
    broker: Endpoint,
    vhost: String,
    dir: TempDir,
}

impl Pair {
    /// A pair on this broker, to be told more and then started.
    #[must_use]
    pub fn on(broker: &Broker) -> Builder {
        let number = VHOSTS.fetch_add(1, Ordering::Relaxed);
        Builder {
            broker: broker.endpoint().clone(),
            vhost: format!("test-{}-{number}", std::process::id()),
            producer: Env::new(),
            consumer: Env::new(),
            consumers: 1,
            worker: "consumer".to_owned(),
            faults: false,
            producer_under: Vec::new(),
            producer_via: None,
            consumer_via: None,
        }
    }

    /// The producer's API.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The virtual host's name.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// The broker as it is reached without a proxy.
    #[must_use]
    pub fn broker(&self) -> &Endpoint {
        &self.broker
    }

    /// The producer's SQLite file.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The directory that the services run in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The depth of a queue of this virtual host, by its full name.
    pub async fn depth(&self, queue: &str) -> Result<Depth> {
        self.broker().depth(self.vhost(), queue).await
    }

    /// Starts one more consumer, with these variables on top of the others, and waits until it is ready.
    pub async fn start_consumer(&mut self, env: &[(&str, &str)]) -> Result<&mut Service> {
        let mut all = self.consumer_env.clone();
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let name = format!("consumer-{}", self.consumers.len() + 1);
        let consumer = Service::start(&self.worker, &name, self.dir.path(), &all).await?;
        self.consumers.push(consumer);
        self.consumers.last_mut().context("just pushed")
    }

    /// Kills the producer if it still runs and starts it again on the same store and port.
    pub async fn restart_producer(&mut self) -> Result<()> {
        self.producer.restart().await
    }

    /// Ends every service with SIGTERM. One that does not exit with 0 is an error.
    pub async fn stop(mut self) -> Result<()> {
        for service in self.consumers.iter_mut().chain([&mut self.producer]) {
            let status = service.terminate(STOP).await?;
            if !status.success() {
                bail!("{} ended with {status} on SIGTERM", service.name());
            }
        }
        Ok(())
    }
}
