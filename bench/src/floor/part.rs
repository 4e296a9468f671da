//! Owns the processes of the floor: what each is told, how it says what it took, and that it ends.

use std::ffi::OsString;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::guard::{Launch, Process};
use e2e::{Env, procfs, until};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{client, http, worker};

/// A part that takes longer has lost something.
const DEADLINE: Duration = Duration::from_mins(10);

/// What a process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Job {
    /// Publish tasks and take their results.
    Client(Box<client::Job>),
    /// Take tasks and publish their results.
    Worker(Box<worker::Job>),
    /// Answer requests, until it is killed.
    Http(http::Job),
}

/// What a process took since it last said so.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Spent {
    pub(super) seconds: f64,
    /// User and system.
    pub(super) cpu: Duration,
    /// p50, p99 and p99.9 in ms.
    pub(super) latency: Option<[f64; 3]>,
}

/// Measures its own process.
#[derive(Debug)]
pub(super) struct Watch {
    at: Instant,
    cpu: Duration,
}

impl Watch {
    pub(super) fn start() -> Result<Self> {
        Ok(Self { at: Instant::now(), cpu: own_cpu_time()? })
    }

    pub(super) fn spent(&self, latency: Option<[f64; 3]>) -> Result<Spent> {
        let cpu = own_cpu_time()?.saturating_sub(self.cpu);
        Ok(Spent { seconds: self.at.elapsed().as_secs_f64(), cpu, latency })
    }
}

fn own_cpu_time() -> Result<Duration> {
    procfs::family_cpu_time(std::process::id())
}

/// Does the job in that file, in this process.
///
/// # Errors
/// The job's own, or it was not done in ten minutes.
pub async fn run(job: &Path) -> Result<()> {
    let text = std::fs::read(job).with_context(|| format!("reading {}", job.display()))?;
    match serde_json::from_slice(&text)? {
        Job::Client(job) => timeout(DEADLINE, client::run(*job)).await?,
        Job::Worker(job) => timeout(DEADLINE, worker::run(*job)).await?,
        Job::Http(job) => http::serve(job).await,
    }
}

/// Says something to the process that started this one.
pub(super) fn say(word: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(word)?;
    Ok(writeln!(stdout().lock(), "{line}")?)
}

/// Another process of this binary.
pub(super) struct Part {
    process: Process,
    log: PathBuf,
}

impl Part {
    /// Starts it; `dir` is where its job and what it says are kept.
    pub(super) fn start(name: &str, dir: &Path, job: &Job) -> Result<Self> {
        let (path, log) = (dir.join(format!("{name}.job")), dir.join(format!("{name}.log")));
        std::fs::write(&path, serde_json::to_vec(job)?)?;
        // What is appended to it is this process's only.
        std::fs::write(&log, "")?;
        let args = vec![OsString::from(super::PART), path.into()];
        let program = std::env::current_exe()?;
        let launch = Launch { program, args, env: Env::new(), dir: dir.to_owned(), log: log.clone(), user: None };
        Ok(Self { process: Process::spawn(&launch)?, log })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The line of that place in what it says, once it is there.
    pub(super) async fn line<T: DeserializeOwned>(&mut self, place: usize) -> Result<T> {
        let Self { process, log } = self;
        until("what a process of the floor says", DEADLINE, async || {
            let ended = process.try_wait()?;
            let text = std::fs::read_to_string(&*log)?;
            let line = text.split_inclusive('\n').nth(place).filter(|line| line.ends_with('\n'));
            match (line, ended) {
                (Some(line), _) => Ok(serde_json::from_str(line).with_context(|| text.clone())),
                (None, Some(status)) => Ok(Err(anyhow!("it ended: {status}\n{text}"))),
                (None, None) => bail!("it has said\n{text}"),
            }
        })
        .await?
    }

    /// Waits for its end, which must be a good one.
    pub(super) async fn ended(&mut self) -> Result<()> {
        let status = self.process.wait(DEADLINE).await?;
        ensure!(status.success(), "it ended: {status}\n{}", std::fs::read_to_string(&self.log)?);
        Ok(())
    }
}
