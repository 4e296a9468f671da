//! Owns a look at what a service asks of the kernel, and the lies that the kernel tells it: Debian's `strace`, attached for
//! as long as this lives.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::guard::{self, Launch, Process};
use crate::{Env, Service, until};

const ATTACHED: Duration = Duration::from_secs(10);

/// A running strace. Dropping it lets the service go on as if it had never been.
#[derive(Debug)]
pub struct Strace {
    dir: TempDir,
    process: Process,
}

impl Strace {
    /// Records every call of these names, one a line in the order of their ends, with the paths of its files.
    pub async fn record(service: &Service, calls: &str) -> Result<Self> {
        Self::attach(service, &[&format!("--trace={calls}"), "--decode-fds=path,socket", "--string-limit=5000"]).await
    }

    /// Lets every call of these names fail with this error.
    pub async fn fail(service: &Service, calls: &str, error: &str) -> Result<Self> {
        Self::attach(service, &[&format!("--trace={calls}"), &format!("--inject={calls}:error={error}")]).await
    }

    async fn attach(service: &Service, options: &[&str]) -> Result<Self> {
        let dir = guard::scratch_dir("strace-")?;
        let (pid, calls) = (service.pid().to_string(), dir.path().join("calls").display().to_string());
        let common = ["--follow-forks", "--attach", &pid, "--output", &calls];
        let args = common.iter().chain(options).map(OsString::from).collect();
        let log = dir.path().join("strace.log");
        let launch = Launch { program: "strace".into(), args, env: Env::new(), dir: "/".into(), log, user: None };
        let mut process = Process::spawn(&launch)?;
        until("strace on every thread", ATTACHED, async || {
            if process.try_wait()?.is_some() {
                bail!("strace has ended: {}", crate::broker::tail(&launch.log, 5));
            }
            ensure!(all_traced(service.pid())?, "not on every thread yet");
            Ok(())
        })
        .await?;
        Ok(Self { dir, process })
    }

    /// What was recorded so far.
    pub fn calls(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.file())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("calls")
    }

    /// Lets go of the service, and waits until it has.
    pub async fn detach(mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(ATTACHED).await.context("strace does not let go").map(drop)
    }
}

fn all_traced(pid: u32) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        if status.lines().any(|line| line.split_whitespace().eq(["TracerPid:", "0"])) {
            return Ok(false);
        }
    }
    Ok(true)
}
