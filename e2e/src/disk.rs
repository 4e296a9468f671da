//! Owns a small disk that can be filled: a tmpfs in a mount namespace of its own. The namespace is that of a process which
//! does nothing, so the disk is gone with it, however that comes, and no other process of the machine ever saw it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;
use tempfile::TempDir;

use crate::guard::{self, Launch, Process};
use crate::{Env, until};

const MOUNT: &str = r#"mount -t tmpfs -o "size=$1" errand "$2" && : >"$2/mounted" && exec sleep infinity"#;
const READY: Duration = Duration::from_secs(10);
const BALLAST: &str = "ballast";

/// The disk. Dropping it ends the process that holds it.
#[derive(Debug)]
pub struct Disk {
    dir: TempDir,
    holder: Process,
}

impl Disk {
    /// Makes a disk of so many bytes.
    pub async fn start(size: u64) -> Result<Self> {
        let dir = guard::scratch_dir("disk-")?;
        let mut args = vec!["--mount"];
        if !Uid::effective().is_root() {
            args.push("--map-root-user");
        }
        let (size, path) = (size.to_string(), dir.path().display().to_string());
        args.extend(["sh", "-c", MOUNT, "errand-disk", &size, &path]);
        let log = dir.path().with_extension("log");
        let args = args.into_iter().map(OsString::from).collect();
        let launch = Launch { program: "unshare".into(), args, env: Env::new(), dir: "/".into(), log, user: None };
        let mut disk = Self { holder: Process::spawn(&launch)?, dir };
        until("a mounted disk", READY, async || {
            ensure!(disk.holder.try_wait()?.is_none(), "{}", crate::broker::tail(&launch.log, 5));
            ensure!(disk.outside("mounted").exists(), "not mounted");
            Ok(())
        })
        .await?;
        Ok(disk)
    }

    /// The command that starts another on a machine that has this disk.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let mut command = vec!["nsenter".to_owned(), format!("--target={}", self.holder.id()), "--mount".to_owned()];
        if !Uid::effective().is_root() {
            command.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        command.push("--".to_owned());
        command
    }

    /// A file of the disk, for who was started by [`Disk::command`].
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// The same file, for everybody else.
    #[must_use]
    pub fn outside(&self, file: &str) -> PathBuf {
        let path = self.path(file);
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(path.strip_prefix("/").unwrap_or(&path))
    }

    /// Takes all room that is left.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.outside(BALLAST))?;
        for block in [vec![0; 1 << 20], vec![0; 4096], vec![0; 1]] {
            loop {
                match ballast.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("filling the disk"),
                }
            }
        }
        Ok(())
    }

    /// Gives that room back.
    pub fn relieve(&self) -> Result<()> {
        Ok(fs::remove_file(self.outside(BALLAST))?)
    }
}
