//! Owns a private Postgres server: an empty cluster, a free loopback port, no socket, a password.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::broker::tail;
use crate::guard::{self, Launch, Process};
use crate::{Env, ports};

/// Debian's directories, one a version. Not the search path, which may lead to somebody's wrapper.
const VERSIONS: &str = "/usr/lib/postgresql";
const READY: Duration = Duration::from_mins(1);
const STOP: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// The password of its superuser, `errand`.
pub const PASSWORD: &str = "s3cret-of-postgres";

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Postgres {
    dir: TempDir,
    bin: PathBuf,
    user: Option<(Uid, Gid)>,
    port: u16,
    process: Process,
}

impl Postgres {
    /// Makes a cluster, starts its server and waits until it listens.
    pub async fn start() -> Result<Self> {
        let (dir, bin, user) = (guard::scratch_dir("postgres-")?, newest(Path::new(VERSIONS))?, unprivileged()?);
        if let Some((user, group)) = user {
            chown(dir.path(), Some(user.as_raw()), Some(group.as_raw()))?;
        }
        let password = dir.path().join("password");
        std::fs::write(&password, PASSWORD)?;
        let options = ["--username=errand", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"];
        let mut args: Vec<OsString> = options.map(OsString::from).into();
        args.push(format!("--pwfile={}", password.display()).into());
        args.push(format!("--pgdata={}", dir.path().join("data").display()).into());
        let mut initdb = Process::spawn(&launch(&bin.join("initdb"), args, dir.path(), user))?;
        let status = initdb.wait(READY).await?;
        ensure!(status.success(), "initdb: {status}\n{}", tail(&log(dir.path()), 20));
        let port = ports::free()?;
        let process = Process::spawn(&server(&bin, dir.path(), user, port))?;
        let mut postgres = Self { dir, bin, user, port, process };
        postgres.await_ready().await?;
        Ok(postgres)
    }

    /// The URL of its database.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://errand:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops it as an operator does who does not wait for clients. Its data and port are kept.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(STOP).await.map(drop)
    }

    /// Starts it again on its data and port.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = Process::spawn(&server(&self.bin, self.dir.path(), self.user, self.port))?;
        self.await_ready().await
    }

    async fn await_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        // The port opens before the server takes queries; a client is told so and waits.
        while !tail(&log(self.dir.path()), 3).contains("ready to accept connections")
            || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err()
        {
            if let Some(status) = self.process.try_wait()? {
                bail!("Postgres ended: {status}\n{}", tail(&log(self.dir.path()), 20));
            }
            ensure!(start.elapsed() < READY, "Postgres is not ready\n{}", tail(&log(self.dir.path()), 20));
            sleep(POLL).await;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    /// Not by SIGKILL, which would leave a segment of shared memory, and backends in groups of their own.
    fn drop(&mut self) {
        let start = Instant::now();
        let _ = self.process.signal(Signal::SIGQUIT);
        while matches!(self.process.try_wait(), Ok(None)) && start.elapsed() < STOP {
            std::thread::sleep(POLL);
        }
    }
}

fn log(dir: &Path) -> PathBuf {
    dir.join("postgres.log")
}

fn launch(program: &Path, args: Vec<OsString>, dir: &Path, user: Option<(Uid, Gid)>) -> Launch {
    let env: Env = [("LANG", "C"), ("TZ", "UTC")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Launch { program: program.to_owned(), args, env, dir: dir.to_owned(), log: log(dir), user }
}

fn server(bin: &Path, dir: &Path, user: Option<(Uid, Gid)>, port: u16) -> Launch {
    let mut args: Vec<OsString> = vec!["-D".into(), dir.join("data").into()];
    let port = format!("port={port}");
    for setting in
        [port.as_str(), "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "shared_buffers=16MB"]
    {
        args.extend(["-c".into(), setting.into()]);
    }
    launch(&bin.join("postgres"), args, dir, user)
}

/// The programs of the newest version that is installed.
fn newest(versions: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(versions).context("no Postgres: is the package postgresql installed?")? {
        let entry = entry?;
        let bin = entry.path().join("bin");
        if let Ok(version) = entry.file_name().to_string_lossy().parse::<u32>()
            && bin.join("initdb").is_file()
        {
            found.push((version, bin));
        }
    }
    let newest = found.into_iter().max().context("no initdb: is the package postgresql installed?")?;
    Ok(newest.1)
}

/// Postgres refuses to run as root, so there it runs as the package's user.
fn unprivileged() -> Result<Option<(Uid, Gid)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = User::from_name("postgres")?.context("no user postgres: is the package postgresql installed?")?;
    Ok(Some((user.uid, user.gid)))
}
