//! The settings of the tasks that come with the worker.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use fetch::{Allow, Fetcher};
use protocol::settings::secret_file;
use secrecy::SecretString;

/// The settings of the tasks that come with the worker, as given. Each task checks its own when it is made.
#[derive(Args, Clone, Default)]
pub struct TaskSettings {
    /// Register the tasks that crash, panic and block, to try what then happens
    #[arg(long, env = "ENABLE_FAULT_TASKS", default_value_t = false, action = clap::ArgAction::Set)]
    pub enable_fault_tasks: bool,

    /// Hosts and networks that fetches may reach though they are not public, comma-separated: wiki.internal, 10.0.0.0/8
    #[arg(long, env = "FETCH_ALLOW", value_delimiter = ',')]
    pub fetch_allow: Vec<String>,

    /// DNS servers that fetches ask, comma-separated (default: the system's)
    #[arg(long, env = "FETCH_NAMESERVERS", value_delimiter = ',')]
    pub fetch_nameservers: Vec<SocketAddr>,

    /// The longest body that `fetch_url` reads, in bytes
    #[arg(long, env = "FETCH_MAX_BYTES", default_value_t = 512 * 1024)]
    pub fetch_max_bytes: usize,

    /// The mail server of `send_email`: `smtps://user:password@host`, or `smtp://host:port?tls=required`
    #[arg(long, env = "SMTP_URL", hide_env_values = true)]
    pub smtp_url: Option<String>,

    /// A file that holds the mail server's URL, for secrets
    #[arg(long, env = "SMTP_URL_FILE", conflicts_with = "smtp_url")]
    pub smtp_url_file: Option<PathBuf>,

    /// The sender of `send_email`: Errand <errand@example.com>
    #[arg(long, env = "SMTP_FROM", default_value = "errand@localhost")]
    pub smtp_from: String,

    /// Where `resize_image` writes images when it is asked for a file
    #[arg(long, env = "ARTIFACTS_DIR")]
    pub artifacts_dir: Option<PathBuf>,

    /// Where `process_file` finds files
    #[arg(long, env = "FILES_DIR")]
    pub files_dir: Option<PathBuf>,

    /// A JSON file of the queries that `query_database` knows, by name
    #[arg(long, env = "QUERIES_FILE")]
    pub queries_file: Option<PathBuf>,

    /// A JSON file of the commands that `run_command` knows, by name
    #[arg(long, env = "COMMANDS_FILE")]
    pub commands_file: Option<PathBuf>,
}

impl TaskSettings {
    /// The client of tasks that fetch.
    pub(crate) fn fetcher(&self) -> anyhow::Result<Fetcher> {
        let allow = Allow::parse(&self.fetch_allow).context("FETCH_ALLOW")?;
        Fetcher::new(allow, &self.fetch_nameservers).context("FETCH_NAMESERVERS")
    }

    /// The mail server's URL, read from the file when one is named.
    pub(crate) fn smtp_url(&self) -> anyhow::Result<Option<SecretString>> {
        let Some(path) = &self.smtp_url_file else { return Ok(self.smtp_url.clone().map(SecretString::from)) };
        Ok(Some(SecretString::from(secret_file("SMTP_URL_FILE", path)?)))
    }
}
