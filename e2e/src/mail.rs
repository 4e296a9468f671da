//! Owns a private SMTP server (aiosmtpd), and shows what it accepted as another program reads it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::broker::tail;
use crate::guard::{self, Launch, Process};
use crate::{Env, installed, ports, until};

/// A recipient's name says what becomes of the mail: see there.
const SERVER: &str = include_str!("mail_server.py");
const READY: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A server that does not run yet. Its port is fixed, so that clients can be told.
#[derive(Debug)]
pub struct MailServer {
    dir: TempDir,
    port: u16,
    login: Option<(String, String)>,
    process: Option<Process>,
}

impl MailServer {
    /// One that asks for no login.
    pub fn new() -> Result<Self> {
        Ok(Self { dir: guard::scratch_dir("mail-")?, port: ports::free()?, login: None, process: None })
    }

    /// One that speaks TLS from the first byte and takes mails from this user only.
    pub fn with_login(user: &str, password: &str) -> Result<Self> {
        let server = Self { login: Some((user.to_owned(), password.to_owned())), ..Self::new()? };
        let made = Command::new("/usr/bin/openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=errand test", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "certificate.pem"])
            .current_dir(server.dir.path())
            .output()
            .context("openssl")?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        Ok(server)
    }

    /// Where it listens on localhost.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of one with a login.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// Starts it and waits until it listens.
    pub async fn start(&mut self) -> Result<()> {
        let config = json!({"port": self.port, "directory": self.dir.path(), "login": self.login});
        let log = self.dir.path().join("server.log");
        let launch = Launch {
            program: python()?,
            args: ["-I", "-B", "-c", SERVER, &config.to_string()].map(Into::into).into(),
            env: Env::new(),
            dir: self.dir.path().to_owned(),
            log: log.clone(),
            user: None,
        };
        let mut process = Process::spawn(&launch)?;
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
            if let Some(status) = process.try_wait()? {
                bail!("the mail server ended: {status}\n{}", tail(&log, 20));
            }
            ensure!(start.elapsed() < READY, "the mail server is not ready\n{}", tail(&log, 20));
            sleep(POLL).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// The mails so far, in the order of their coming: `message_id`, `subject`, `from`, `to`, `recipients`, the `parts`
    /// with their `type` and `text`, and the client's `peer` address.
    pub fn mails(&self) -> Result<Vec<Value>> {
        let mut mails = Vec::new();
        loop {
            let path = self.dir.path().join(format!("{}.json", mails.len() + 1));
            if !path.exists() {
                return Ok(mails);
            }
            mails.push(serde_json::from_slice(&std::fs::read(path)?)?);
        }
    }

    /// Waits for so many mails.
    pub async fn await_mails(&self, count: usize, deadline: Duration) -> Result<Vec<Value>> {
        until(&format!("{count} mails"), deadline, async || {
            let mails = self.mails()?;
            ensure!(mails.len() >= count, "there are {}", mails.len());
            Ok(mails)
        })
        .await
    }
}

/// The interpreter of the environment that `deploy/install --test` makes in the build's directory.
pub fn python() -> Result<PathBuf> {
    installed("python/bin/python", "deploy/install --test")
}
