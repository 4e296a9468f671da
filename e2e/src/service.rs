//! Owns a running producer or consumer: the built binary, its whole environment, its port, its log.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tokio::time::sleep;

use crate::broker::tail;
use crate::guard::{Launch, Process};
use crate::{Env, client, ports, until};

/// Where the binaries with failpoints are, below those without.
pub const FAULTS: &str = "faults";

const READY: Duration = Duration::from_mins(1);
const LISTENER: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// One of the two services, running. Dropping it kills it and prints the end of its log, which the test harness shows
/// when the test fails.
#[derive(Debug)]
pub struct Service {
    name: String,
    launch: Launch,
    address: SocketAddr,
    process: Process,
    quiet: bool,
}

impl Service {
    /// Starts `binary` (the producer, or a worker, as [`built`] takes it) in `dir` and waits until it is ready. `name` is
    /// for messages and the log's file name. It gets a free port unless `env` has `PRODUCER_LISTEN` or `CONSUMER_LISTEN`.
    pub async fn start(binary: &str, name: &str, dir: &Path, env: &Env) -> Result<Self> {
        Self::start_under(&[], binary, name, dir, env).await
    }

    /// The same, started by another command, which becomes the service.
    pub async fn start_under(under: &[String], binary: &str, name: &str, dir: &Path, env: &Env) -> Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut service = Self::spawn_under(under, binary, name, dir, env)?;
            match service.await_ready(READY).await {
                Ok(()) => return Ok(service),
                // Somebody else took the port between its choice and its use.
                Err(_) if tries < 3 && service.log_tail(40).contains("in use") => service.quiet = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts it and does not wait: for what happens when it cannot become ready.
    pub fn spawn(binary: &str, name: &str, dir: &Path, env: &Env) -> Result<Self> {
        Self::spawn_under(&[], binary, name, dir, env)
    }

    fn spawn_under(under: &[String], binary: &str, name: &str, dir: &Path, env: &Env) -> Result<Self> {
        let listen = if binary.ends_with("producer") { "PRODUCER_LISTEN" } else { "CONSUMER_LISTEN" };
        let mut env = env.clone();
        let address = match env.get(listen) {
            Some(address) => address.parse().with_context(|| format!("{listen}={address}"))?,
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?)),
        };
        env.insert(listen.to_owned(), address.to_string());
        env.entry("HOME".to_owned()).or_insert_with(|| dir.display().to_string());
        let log = dir.join(format!("{name}.log"));
        let mut words = under.iter().map(OsString::from).chain([built(binary)?.into()]);
        let (program, dir) = (words.next().unwrap_or_default().into(), dir.to_owned());
        let launch = Launch { program, args: words.collect(), env, dir, log, user: None };
        let process = Process::spawn(&launch)?;
        Ok(Self { name: name.to_owned(), launch, address, process, quiet: false })
    }

    /// Waits until `/readyz` answers 200. That it ends before is an error, with the end of its log.
    pub async fn await_ready(&mut self, deadline: Duration) -> Result<()> {
        let (start, http) = (Instant::now(), client::http()?);
        let mut last = String::new();
        loop {
            match http.get(self.url("/readyz")).send().await {
                // Somebody else may have taken its port and be ready.
                Ok(answer) if answer.status() == 200 && self.process.try_wait()?.is_none() => return Ok(()),
                Ok(answer) => last = format!("{} {}", answer.status(), answer.text().await.unwrap_or_default()),
                Err(error) => last = if last.is_empty() { error.to_string() } else { last },
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended: {status}\n{}", self.name, self.log_tail(40));
            }
            if start.elapsed() > deadline {
                bail!("{} is not ready after {deadline:?}: {last}\n{}", self.name, self.log_tail(40));
            }
            sleep(POLL).await;
        }
    }

    /// What it was named.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// Asks it to end with SIGTERM and waits until it has.
    pub async fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.process.try_wait()? {
            return Ok(status);
        }
        self.process.signal(Signal::SIGTERM)?;
        self.wait(deadline).await
    }

    /// Waits until it has ended by itself.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.process.wait(deadline).await.with_context(|| format!("{}\n{}", self.name, self.log_tail(40)))
    }

    /// Its exit status if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Stops it where it stands with SIGSTOP.
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Sets a variable for its next start, or takes it away.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.launch.env.insert(name.to_owned(), value.to_owned()),
            None => self.launch.env.remove(name),
        };
    }

    /// Kills it if it still runs and starts it again with the same environment on the same port, appending to its log.
    ///
    /// A child that it was about to start has its listener until it has become the other program, and may outlive it
    /// for so long.
    pub async fn restart(&mut self) -> Result<()> {
        self.respawn().await?;
        self.await_ready(READY).await
    }

    /// The same, without waiting until it is ready: for what starts where it cannot be.
    pub async fn respawn(&mut self) -> Result<()> {
        self.process.kill()?;
        let port = self.address.port();
        until("its port", LISTENER, async || {
            ensure!(ports::is_free(port), "somebody listens on {port}");
            Ok(())
        })
        .await?;
        self.process = Process::spawn(&self.launch)?;
        Ok(())
    }

    /// Does this work as a supervisor looks on: whenever the service has died it is started again. Says how often.
    pub async fn supervise<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<(T, u32)> {
        let (mut work, mut deaths) = (std::pin::pin!(work), 0);
        loop {
            tokio::select! {
                done = &mut work => return Ok((done?, deaths)),
                () = sleep(POLL) => {}
            }
            deaths += u32::from(self.revive()?.is_some());
        }
    }

    /// Starts it again if it has died and its port is free, and does not wait: how it had ended.
    pub fn revive(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.process.try_wait()?.filter(|_| ports::is_free(self.address.port()));
        if ended.is_some() {
            self.process = Process::spawn(&self.launch)?;
        }
        Ok(ended)
    }

    /// The CPU time, user and system, of the service and of its children that have ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.process.cpu_time()
    }

    /// Its resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.process.rss()
    }

    /// The file that holds its output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// The last lines of its output.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.launch.log, lines)
    }

    /// From now on its log is not printed when it is dropped.
    pub fn silence(&mut self) {
        self.quiet = true;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if !self.quiet {
            eprintln!("--- {} (the end of {})\n{}", self.name, self.log().display(), self.log_tail(60));
        }
    }
}

/// A binary of this workspace, beside the executable that runs (tests run one directory below); below [`FAULTS`] one
/// that knows them.
pub fn built(binary: &str) -> Result<PathBuf> {
    let current = std::env::current_exe()?;
    let found = current.ancestors().skip(1).take(2).map(|dir| dir.join(binary)).find(|path| path.is_file());
    let build = if binary.starts_with(FAULTS) { "deploy/build-faults" } else { "cargo build --workspace --bins" };
    found.with_context(|| format!("no {binary} near {}: run `{build}` first", current.display()))
}
