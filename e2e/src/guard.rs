//! Owns every process that this crate starts: none of them outlives the process that started it, whether that one
//! returns, panics, is interrupted or is killed.
//!
//! A watcher, `sh` in a process group of its own, reads from a pipe whose other end only this process holds. Each child
//! leads a process group and writes its number into the pipe *before* it becomes the program, so there is no moment at
//! which it runs unwatched. When the pipe closes, the watcher kills the groups and removes the scratch directory.
//!
//! Not by the parent-death signal: Linux sends that when the *thread* that forked ends, and the thread of the test that
//! happened to start the shared broker ends long before the last test that uses it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Gid, Pid, Uid};

use crate::{Env, procfs};

/// The search path of everything that is started here.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const WATCHER: &str = r#"
trap '' HUP INT TERM
groups=' '
while read -r word group; do
  case $word in
    watch) groups="$groups$group " ;;
    forget) case $groups in *" $group "*) groups="${groups%% "$group" *} ${groups#* "$group" }" ;; esac ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
for group in $groups; do
  tries=0
  # Not by kill -0, which a dead process passes as long as nobody has waited for it.
  while [ $tries -lt 100 ] && grep -q . "/proc/$group/cmdline"; do sleep 0.02; tries=$((tries + 1)); done
done
rm -rf -- "$1" || { sleep 0.2; rm -rf -- "$1"; }
"#;

/// Its standard input is the pipe; the program gets none, for whoever holds the pipe keeps the watcher waiting.
const REGISTER: &str = r#"echo "watch $$" >&0; exec "$@" </dev/null"#;

static GUARD: LazyLock<io::Result<Guard>> = LazyLock::new(Guard::start);

struct Guard {
    pipe: ChildStdin,
    scratch: PathBuf,
}

impl Guard {
    fn start() -> io::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("errand-").tempdir()?.keep();
        // Passable, not readable: as root, the broker runs as another user below it.
        std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o711))?;
        let mut watcher = Command::new("/bin/sh")
            .args(["-c", WATCHER, "errand-watcher"])
            .arg(&scratch)
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pipe = watcher.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { pipe, scratch })
    }

    fn get() -> Result<&'static Self> {
        GUARD.as_ref().map_err(|error| anyhow!("the watcher does not start: {error}"))
    }
}

/// A directory for this process's files. It is removed when the process ends.
pub fn scratch() -> Result<&'static Path> {
    Ok(&Guard::get()?.scratch)
}

/// A fresh directory in [`scratch`], which other users can pass through; removed when dropped.
pub fn scratch_dir(prefix: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(scratch()?)?;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711))?;
    Ok(dir)
}

/// What to start, and how.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The executable's path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment but `PATH`.
    pub env: Env,
    /// Its working directory.
    pub dir: PathBuf,
    /// The file that its output is appended to.
    pub log: PathBuf,
    /// The user it runs as; this process's own when `None`.
    pub user: Option<(Uid, Gid)>,
}

/// A running process, leader of its own process group. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it.
    pub fn spawn(launch: &Launch) -> Result<Self> {
        let guard = Guard::get()?;
        let log = File::options().create(true).append(true).open(&launch.log)?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c".as_ref(), REGISTER.as_ref(), OsStr::new("errand-child"), launch.program.as_os_str()]);
        command.args(&launch.args).env_clear().env("PATH", PATH).envs(&launch.env).current_dir(&launch.dir);
        command.stdin(guard.pipe.as_fd().try_clone_to_owned()?).stdout(log.try_clone()?).stderr(log).process_group(0);
        if let Some((user, group)) = launch.user {
            command.uid(user.as_raw()).gid(group.as_raw());
        }
        let child = command.spawn().with_context(|| format!("starting {}", launch.program.display()))?;
        Ok(Self { child, ended: None })
    }

    /// Its process id, which is its group's too.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal to the process, not to its group.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended {
            bail!("no {signal} for a process that has ended: {status}");
        }
        Ok(kill(self.pid(), signal)?)
    }

    /// Its exit status if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none()
            && let Some(status) = self.child.try_wait()?
        {
            self.reaped(status)?;
        }
        Ok(self.ended)
    }

    /// Waits until it has ended by itself.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > deadline {
                bail!("process {} still runs after {deadline:?}", self.id());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills its whole group with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        killpg(self.pid(), Signal::SIGKILL)?;
        let status = self.child.wait()?;
        self.reaped(status)?;
        Ok(status)
    }

    /// Once reaped, its number may become another's, so the watcher must not kill it.
    fn reaped(&mut self, status: ExitStatus) -> Result<()> {
        // What it left behind in its group goes with it.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        self.ended = Some(status);
        Ok(writeln!(&Guard::get()?.pipe, "forget {}", self.id())?)
    }

    /// The CPU time, user and system, of the process and of its children that have ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        procfs::cpu_time(self.id())
    }

    /// Its resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        procfs::rss(self.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
