//! Owns a node's directory, ports, files and environment: how an installed RabbitMQ becomes a private one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, User};

use super::{Options, release};
use crate::guard::{self, Launch};
use crate::{Env, ports};

/// Not `/usr/sbin/rabbitmq-server`, which refuses every user but root and rabbitmq.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CTL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
const EPMD: &str = "/usr/bin/epmd";

const DATA: &str = "mnesia";

/// No busy waiting: on few cores the schedulers would spin away time that the services need.
const ERL_ARGS: &str = "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none";

#[derive(Debug)]
pub(super) struct Layout {
    tree: Option<PathBuf>,
    dir: PathBuf,
    user: Option<(Uid, Gid)>,
    pub(super) amqp: u16,
    pub(super) management: u16,
    pub(super) epmd: u16,
    dist: u16,
}

impl Layout {
    /// Chooses ports and writes the files. Data that `dir` holds already is kept.
    pub(super) fn create(dir: &Path, options: &Options) -> Result<Self> {
        let layout = Self {
            tree: options.release.tree()?,
            dir: dir.to_owned(),
            user: unprivileged()?,
            amqp: ports::free()?,
            management: options.management_port.map_or_else(ports::free, ports::free_or)?,
            epmd: ports::free()?,
            dist: ports::free()?,
        };
        for part in ["", "home", DATA, "log", "conf.d", "generated"] {
            layout.directory(part)?;
        }
        layout.write("enabled_plugins", "[rabbitmq_management].\n")?;
        layout.write("rabbitmq.conf", &layout.config(options)?)?;
        layout.write("home/.erlang.cookie", "errand")?;
        fs::set_permissions(dir.join("home/.erlang.cookie"), PermissionsExt::from_mode(0o400))?;
        Ok(layout)
    }

    fn config(&self, options: &Options) -> Result<String> {
        let Self { amqp, management, .. } = self;
        let mut config = vec![
            format!("listeners.tcp.1 = 127.0.0.1:{amqp}"),
            "management.tcp.ip = 127.0.0.1".to_owned(),
            format!("management.tcp.port = {management}"),
            "log.console = true".to_owned(),
            "log.file = false".to_owned(),
            // 3.10's default, in bytes; 4.x takes an eighth of it, and what is larger than anybody reads must get here.
            "max_message_size = 134217728".to_owned(),
        ];
        if let Some(definitions) = &options.definitions {
            // A copy: the node's user may not be allowed to read the original.
            let text = fs::read_to_string(definitions).with_context(|| format!("reading {}", definitions.display()))?;
            self.write("definitions.json", &text)?;
            fs::set_permissions(self.dir.join("definitions.json"), PermissionsExt::from_mode(0o600))?;
            config.push(format!("load_definitions = {}", self.dir.join("definitions.json").display()));
        }
        config.push(options.config.clone());
        Ok(config.join("\n"))
    }

    /// Deletes the data of a node that does not run.
    pub(super) fn wipe(&self) -> Result<()> {
        fs::remove_dir_all(self.dir.join(DATA))?;
        self.directory(DATA)
    }

    fn directory(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        self.give(&path)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        if path.exists() {
            fs::remove_file(&path)?;
        }
        fs::write(&path, text)?;
        self.give(&path)
    }

    fn give(&self, path: &Path) -> Result<()> {
        if let Some((user, group)) = self.user {
            chown(path, Some(user.as_raw()), Some(group.as_raw()))?;
        }
        Ok(())
    }

    fn env(&self) -> Env {
        let path = |name: &str| self.dir.join(name).display().to_string();
        [
            ("HOME", path("home")),
            ("LANG", "C.UTF-8".to_owned()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_NODENAME", "errand@localhost".to_owned()),
            ("RABBITMQ_BASE", path("")),
            ("RABBITMQ_MNESIA_BASE", path(DATA)),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_CONFIG_FILES", path("conf.d")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", path("generated")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_PID_FILE", path("rabbit.pid")),
            ("RABBITMQ_DIST_PORT", self.dist.to_string()),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ERL_ARGS.to_owned()),
            ("RABBITMQ_CTL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
            ("ERL_CRASH_DUMP_SECONDS", "0".to_owned()),
            ("ERL_EPMD_PORT", self.epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            // The script then becomes the node instead of waiting for it, so signals reach the node itself.
            ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    fn launch(&self, program: &str, args: &[&str], log: PathBuf) -> Launch {
        let launch = Launch {
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: self.env(),
            dir: self.dir.clone(),
            log,
            user: self.user,
        };
        match &self.tree {
            Some(tree) => release::inside(tree, launch),
            None => launch,
        }
    }

    pub(super) fn server(&self) -> Launch {
        self.launch(SERVER, &[], self.log())
    }

    /// The port mapper in the foreground. Left to itself the node starts one as a daemon that outlives it.
    pub(super) fn port_mapper(&self) -> Launch {
        let args = ["-port", &self.epmd.to_string(), "-address", "127.0.0.1"];
        self.launch(EPMD, &args, self.dir.join("epmd.log"))
    }

    pub(super) fn ctl(&self, args: &[&str], log: PathBuf) -> Launch {
        self.launch(CTL, args, log)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// As root the node runs as the package's user, as it does where it is installed as a service.
fn unprivileged() -> Result<Option<(Uid, Gid)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = User::from_name("rabbitmq")?.context("no user rabbitmq: is rabbitmq-server installed?")?;
    Ok(Some((user.uid, user.gid)))
}

/// The directory that a node without one of its own gets.
pub(super) fn fresh_dir() -> Result<PathBuf> {
    Ok(guard::scratch_dir("rabbitmq-")?.keep())
}
