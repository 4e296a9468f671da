//! Owns which RabbitMQ a node is: the distribution's, or a newer one that the node's processes see in place of it.
//!
//! A newer one comes with the libc that it needs: its whole `/usr` is mounted over the machine's, in a mount namespace
//! that ends with the process. All else, the node's directory above all, is where it is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::guard::Launch;
use crate::installed;

/// `$0` is the newer one's tree. Each step becomes the next, so the process keeps its number.
const INSIDE: &str = r#"mount --bind "$0/usr" /usr && exec "$@""#;
const LIBRARY: &str = "usr/lib/rabbitmq/lib";

/// Which RabbitMQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Release {
    /// The one of the machine's distribution.
    Distribution,
    /// The one that `deploy/install-rabbitmq` installed under this number: `4.3`.
    Installed(String),
}

impl Release {
    /// The directory whose `/usr` takes the place of the machine's.
    pub(super) fn tree(&self) -> Result<Option<PathBuf>> {
        let Self::Installed(number) = self else { return Ok(None) };
        installed(&format!("rabbitmq-{number}"), &format!("deploy/install-rabbitmq {number}")).map(Some)
    }

    /// The exact version, by what is installed.
    pub fn version(&self) -> Result<String> {
        let library = self.tree()?.unwrap_or_else(|| "/".into()).join(LIBRARY);
        let entries = std::fs::read_dir(&library).with_context(|| format!("reading {}", library.display()))?;
        let names = entries.map_while(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
        let version = names.into_iter().find_map(|name| Some(name.strip_prefix("rabbitmq_server-")?.to_owned()));
        version.with_context(|| format!("no RabbitMQ in {}", library.display()))
    }
}

/// The same launch, with the tree's RabbitMQ where the distribution's is looked for.
///
/// Mounting is root's, and so is becoming the node's user after that. Who is not root is root in a namespace of users,
/// where that is allowed, and remains himself outside.
pub(super) fn inside(tree: &Path, launch: Launch) -> Launch {
    let mut args = Vec::<OsString>::new();
    if launch.user.is_none() {
        args.push("--map-root-user".into());
    }
    args.extend(["--mount".into(), "sh".into(), "-c".into(), INSIDE.into(), tree.into()]);
    if let Some((user, group)) = launch.user {
        let ids = [format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()];
        args.push("setpriv".into());
        args.extend(ids.map(OsString::from));
    }
    args.push(launch.program.into());
    args.extend(launch.args);
    Launch { program: "/usr/bin/unshare".into(), args, user: None, ..launch }
}
