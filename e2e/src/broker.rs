//! Owns a private RabbitMQ node: an empty data directory, free loopback ports, a port mapper of its own.

mod depth;
mod layout;
mod management;
mod release;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

pub use depth::Depth;
pub use management::{Management, Message};
pub use release::Release;
pub use wire::{Answer, Login, Method, Wire};

use crate::guard::Process;
use crate::{config, procfs, until};
use layout::Layout;

const READY: Duration = Duration::from_mins(1);
const STOP: Duration = Duration::from_secs(30);
const CTL: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// How a node is to be started. The default is an empty node with the user guest.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which RabbitMQ it is: by default what `ERRAND_RABBITMQ` says.
    pub release: Release,
    /// A definitions file to load. There is no guest then: `credentials` must name one of its users.
    pub definitions: Option<PathBuf>,
    /// The user and password for URLs and the management API.
    pub credentials: (String, String),
    /// More lines for `rabbitmq.conf`.
    pub config: String,
    /// Where the data stay; a directory that goes with this process when `None`.
    pub dir: Option<PathBuf>,
    /// The port that the management UI gets if it is free.
    pub management_port: Option<u16>,
}

impl Default for Options {
    fn default() -> Self {
        let guest = || "guest".to_owned();
        Self {
            release: config::release(),
            definitions: None,
            credentials: (guest(), guest()),
            config: String::new(),
            dir: None,
            management_port: None,
        }
    }
}

/// Where a broker is reached, whoever started it. Cheap to clone, and unlike [`Broker`] it does not keep the node.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The AMQP port's address.
    pub amqp: SocketAddr,
    /// The management API.
    pub management: Management,
}

impl Endpoint {
    /// The AMQP URL of a virtual host.
    #[must_use]
    pub fn amqp_url(&self, vhost: &str) -> String {
        self.amqp_url_via(self.amqp, vhost)
    }

    /// The same, reached through a proxy.
    #[must_use]
    pub fn amqp_url_via(&self, address: SocketAddr, vhost: &str) -> String {
        let (user, password) = self.management.credentials();
        format!("amqp://{user}:{password}@{address}/{}", vhost.replace('/', "%2f"))
    }

    /// How many messages of a queue are ready and how many consumers it has, exactly and at once.
    ///
    /// The management API's counts of a quorum queue are up to ten seconds old.
    pub async fn depth(&self, vhost: &str, queue: &str) -> Result<Depth> {
        let (user, password) = self.management.credentials();
        depth::query(self.amqp, Login { user, password, vhost }, queue).await
    }

    /// Waits until the depth of a queue is as wanted.
    pub async fn await_depth(
        &self,
        vhost: &str,
        queue: &str,
        wanted: impl Fn(Depth) -> bool,
        deadline: Duration,
    ) -> Result<Depth> {
        until(queue, deadline, async || {
            let depth = self.depth(vhost, queue).await?;
            ensure!(wanted(depth), "it is still {depth:?}");
            Ok(depth)
        })
        .await
    }
}

/// A running node. Dropping it kills it; so does the end of this process, however it comes.
#[derive(Debug)]
pub struct Broker {
    layout: Layout,
    endpoint: Endpoint,
    node: Process,
    _port_mapper: Process,
}

static SHARED: OnceCell<Broker> = OnceCell::const_new();

/// The node that all tests of one binary share, started by the first that asks. Each takes a virtual host of its own.
/// What would disturb the others ([`Broker::stop`] and the like) needs `&mut`, so a node of the test's own.
pub async fn shared() -> Result<&'static Broker> {
    SHARED.get_or_try_init(|| Broker::start(Options::default())).await
}

impl Broker {
    /// Starts a node and waits until it serves.
    pub async fn start(options: Options) -> Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::try_start(&options).await {
                // Somebody else took the port between its choice and its use.
                Err(error) if tries < 3 && format!("{error:#}").contains("eaddrinuse") => {}
                result => return result,
            }
        }
    }

    async fn try_start(options: &Options) -> Result<Self> {
        let dir = options.dir.clone().map_or_else(layout::fresh_dir, Ok)?;
        let layout = Layout::create(&dir, options)?;
        let port_mapper = Process::spawn(&layout.port_mapper())?;
        await_port(layout.epmd).await.context("the port mapper does not start")?;
        let endpoint = Endpoint {
            amqp: (Ipv4Addr::LOCALHOST, layout.amqp).into(),
            management: Management::new(layout.management, &options.credentials)?,
        };
        let node = Process::spawn(&layout.server())?;
        let mut broker = Self { layout, endpoint, node, _port_mapper: port_mapper };
        broker.await_ready().await?;
        Ok(broker)
    }

    /// Where it is reached.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The AMQP URL of a virtual host.
    #[must_use]
    pub fn amqp_url(&self, vhost: &str) -> String {
        self.endpoint.amqp_url(vhost)
    }

    /// The address of the management UI and API.
    #[must_use]
    pub fn management_url(&self) -> String {
        self.endpoint.management.url()
    }

    /// The management API.
    #[must_use]
    pub fn management(&self) -> &Management {
        &self.endpoint.management
    }

    /// Everything that the node keeps and its log are below this.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// The node's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.node.id()
    }

    /// The CPU time of the node and of the programs that it started.
    pub fn cpu_time(&self) -> Result<Duration> {
        procfs::family_cpu_time(self.pid())
    }

    /// Whether the node still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.node.try_wait()?.is_none())
    }

    /// Stops the node as an operator does. Its data and ports are kept for [`Broker::start_again`]. It takes 6 s: the
    /// queues are gone within the first, then the management plugin (3.10) waits for five.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.node.signal(Signal::SIGTERM)?;
        self.node.wait(STOP).await.with_context(|| format!("stopping the node; its log ends in\n{}", self.log_tail()))
    }

    /// Kills the node with SIGKILL. Its data and ports are kept for [`Broker::start_again`].
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.node.kill()
    }

    /// Stops the node's process where it stands, connections open: a broker that answers nothing.
    pub fn pause(&self) -> Result<()> {
        self.node.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.node.signal(Signal::SIGCONT)
    }

    /// Starts a stopped or killed node again, with the same data on the same ports.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.is_running()? {
            bail!("the node still runs");
        }
        self.node = Process::spawn(&self.layout.server())?;
        self.await_ready().await
    }

    /// Stops the node as an operator does and starts it again.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Kills the node, deletes its data, virtual hosts and users included, and starts it again on the same ports.
    pub async fn wipe(&mut self) -> Result<()> {
        self.kill()?;
        self.layout.wipe()?;
        self.start_again().await
    }

    /// Runs rabbitmqctl, which takes a second or two: its output if it succeeded.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = tempfile::Builder::new().prefix("ctl-").tempfile_in(self.dir())?;
        let mut ctl = Process::spawn(&self.layout.ctl(args, output.path().to_owned()))?;
        let status = ctl.wait(CTL).await?;
        let text = std::fs::read_to_string(output.path())?;
        if !status.success() {
            bail!("rabbitmqctl {args:?}: {status}\n{text}");
        }
        Ok(text)
    }

    /// Closes every client connection of a virtual host from the broker's side.
    pub async fn close_connections(&self, vhost: &str) -> Result<()> {
        self.ctl(&["close_all_connections", "-p", vhost, "closed by the test"]).await.map(drop)
    }

    /// The last lines of the node's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.layout.log(), 40)
    }

    async fn await_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.is_ready().await {
            if let Some(status) = self.node.try_wait()? {
                bail!("RabbitMQ ended: {status}; its log ends in\n{}", self.log_tail());
            }
            if start.elapsed() > READY {
                bail!("RabbitMQ is not ready after {READY:?}; its log ends in\n{}", self.log_tail());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// The AMQP port opens last, but the plugins' ports need not be open by then.
    async fn is_ready(&self) -> bool {
        speaks_amqp(self.endpoint.amqp).await.unwrap_or(false) && self.management().is_up().await
    }
}

/// The last lines of a file; nothing if there is no such file.
#[must_use]
pub fn tail(file: &Path, lines: usize) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A broker answers the protocol header with a method frame, whose first byte is 1.
async fn speaks_amqp(address: SocketAddr) -> Result<bool> {
    timeout(Duration::from_secs(5), async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        Ok(stream.read_u8().await? == 1)
    })
    .await?
}

async fn await_port(port: u16) -> Result<()> {
    let connect = async || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?);
    until(&format!("a listener on {port}"), READY, connect).await.map(drop)
}
