//! Owns the broker users of a deployment: their passwords in files, and the definitions that `producer definitions` makes
//! for them.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Env, service};

/// The user of the producer.
pub const PRODUCER: &str = "errand-producer";
/// The user of the workers.
pub const CONSUMER: &str = "errand-consumer";
/// The operator, who may do everything.
pub const ADMIN: &str = "errand-admin";

/// The users, by the directory that holds their passwords.
#[derive(Debug, Clone)]
pub struct Users {
    dir: PathBuf,
}

impl Users {
    /// The users of that directory. Passwords that are there already are kept, the others are made up.
    pub fn of(dir: &Path) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let users = Self { dir: dir.to_owned() };
        for user in [PRODUCER, CONSUMER, ADMIN] {
            if !users.password_file(user).exists() {
                write_secret(&users.password_file(user), &random_password()?)?;
            }
        }
        Ok(users)
    }

    /// The file that holds a user's password.
    #[must_use]
    pub fn password_file(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.password"))
    }

    /// A user's password.
    pub fn password(&self, user: &str) -> Result<String> {
        let file = self.password_file(user);
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// The AMQP URL of a user.
    pub fn url(&self, user: &str, address: SocketAddr, vhost: &str) -> Result<String> {
        Ok(format!("amqp://{user}:{}@{address}/{}", self.password(user)?, vhost.replace('/', "%2f")))
    }

    /// A file with the AMQP URL of a user.
    pub fn url_file(&self, user: &str, address: SocketAddr, vhost: &str) -> Result<PathBuf> {
        let file = self.dir.join(format!("{user}.url"));
        write_secret(&file, &self.url(user, address, vhost)?)?;
        Ok(file)
    }

    /// The definitions for a virtual host, of services with these settings.
    pub fn definitions(&self, vhost: &str, settings: &Env) -> Result<Value> {
        let mut command = Command::new(service::built("producer")?);
        command.env_clear().envs(settings).args(["definitions", "--vhost", vhost]);
        for (flag, user) in [("producer", PRODUCER), ("consumer", CONSUMER), ("admin", ADMIN)] {
            command.arg(format!("--{flag}-password-file")).arg(self.password_file(user));
        }
        let output = command.output()?;
        ensure!(output.status.success(), "producer definitions: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// A file with the definitions for a virtual host, of services without any setting.
    pub fn definitions_file(&self, vhost: &str) -> Result<PathBuf> {
        let file = self.dir.join("definitions.json");
        write_secret(&file, &self.definitions(vhost, &Env::new())?.to_string())?;
        Ok(file)
    }
}

/// Readable by nobody else from its first byte on.
fn write_secret(file: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn random_password() -> Result<String> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}
