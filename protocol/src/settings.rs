//! The settings that both services take, so that they are spelled and checked the same.
//!
//! Flags and environment variables of the same name. Values that may hold a secret are hidden from help and errors.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::amqp::{AmqpUrl, BadUrl};
use crate::topology::{BadQueueName, Topology};

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// Which broker, and the names on it.
#[derive(Args, Clone)]
pub struct BrokerSettings {
    /// The broker: amqp://user:password@host:port/vhost, or amqps. [default: guest on 127.0.0.1:5672]
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: Option<String>,

    /// A file that holds the broker's URL, for secrets
    #[arg(long, env = "AMQP_URL_FILE", conflicts_with = "amqp_url")]
    amqp_url_file: Option<PathBuf>,

    /// What every exchange's and queue's name starts with
    #[arg(long, env = "AMQP_PREFIX", default_value = "errand.", value_parser = prefix)]
    amqp_prefix: String,

    /// Task queues, comma-separated, without the prefix: those a producer accepts, those a consumer serves
    #[arg(long, env = "QUEUES", default_value = "default", value_delimiter = ',')]
    queues: Vec<String>,
}

/// What and how to log.
#[derive(Args, Clone)]
pub struct LogSettings {
    /// Log filter, in tracing's syntax
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    rust_log: String,

    /// Log lines for people, or JSON objects
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSetting {
    /// The broker's URL.
    #[error("AMQP_URL: {0}")]
    Url(#[from] BadUrl),
    /// The file that holds a secret.
    #[error("{name}: cannot read {path}: {source}")]
    File {
        /// The variable.
        name: &'static str,
        /// Its value.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that should hold an API key.
    #[error("{name}: {path} holds no key: errand_<id>_<64 hex digits>")]
    NoKey {
        /// The variable.
        name: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A queue's name.
    #[error("QUEUES: {0}")]
    Queue(#[from] BadQueueName),
    /// A queue twice, or none.
    #[error("QUEUES: {0}")]
    Queues(&'static str),
    /// A bound that contradicts another.
    #[error("{0}")]
    Limit(&'static str),
    /// The log filter.
    #[error("RUST_LOG: {0}")]
    Log(#[from] tracing_subscriber::filter::ParseError),
}

impl BrokerSettings {
    /// The broker's URL, read from the file when one is named.
    ///
    /// # Errors
    /// The file cannot be read, or the URL is none.
    pub fn url(&self) -> Result<AmqpUrl, BadSetting> {
        let text = match &self.amqp_url_file {
            Some(path) => secret_file("AMQP_URL_FILE", path)?,
            None => self.amqp_url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned()),
        };
        Ok(AmqpUrl::parse(text.trim())?)
    }

    /// The names on the broker.
    #[must_use]
    pub fn topology(&self) -> Topology {
        Topology::new(&self.amqp_prefix)
    }

    /// The queues, checked.
    ///
    /// # Errors
    /// A name that may not be a queue's, a queue twice, none at all.
    pub fn queues(&self) -> Result<Vec<String>, BadSetting> {
        let queues: Vec<String> = self.queues.iter().map(|queue| queue.trim().to_owned()).collect();
        for (place, queue) in queues.iter().enumerate() {
            Topology::check_queue(queue)?;
            if queues[..place].contains(queue) {
                return Err(BadSetting::Queues("a queue is named twice"));
            }
        }
        if queues.is_empty() {
            return Err(BadSetting::Queues("no queue is named"));
        }
        Ok(queues)
    }
}

impl LogSettings {
    /// Starts logging, to standard error. Call once.
    ///
    /// # Errors
    /// The filter does not parse.
    pub fn init(&self) -> Result<(), BadSetting> {
        // lapin logs whole returned messages, payload included, and every fault that the supervisors report anyway.
        let filter = EnvFilter::try_new(format!("lapin=off,{}", self.rust_log))?;
        let registry = tracing_subscriber::registry().with(filter);
        let layer =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
        let started = match self.log_format {
            LogFormat::Text => registry.with(layer).try_init(),
            LogFormat::Json => registry.with(layer.json()).try_init(),
        };
        // An error means that a test of the process's own had started logging before.
        drop(started);
        Ok(())
    }
}

/// Reads a file that holds a secret, for the setting of that name.
///
/// # Errors
/// It cannot be read.
pub fn secret_file(name: &'static str, path: &Path) -> Result<String, BadSetting> {
    std::fs::read_to_string(path).map_err(|source| BadSetting::File { name, path: path.to_owned(), source })
}

fn prefix(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if text.len() > 64 || !text.bytes().all(fits) {
        return Err("at most 64 of letters, digits, dot, hyphen and underscore".to_owned());
    }
    if text.starts_with("amq.") {
        return Err("names that start with `amq.` are the broker's own".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses a span of time like `30s`, `5m` or `7d`, for clap.
///
/// # Errors
/// The text is none.
pub fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        broker: BrokerSettings,
    }

    fn parse(args: &[&str]) -> BrokerSettings {
        Cli::try_parse_from(std::iter::once(&"test").chain(args)).unwrap().broker
    }

    #[test]
    fn queues_are_checked_together() {
        assert_eq!(parse(&["--queues", "default, mail"]).queues().unwrap(), ["default", "mail"]);
        for bad in ["a.b", "a,a", "a,,b", "dead-letters"] {
            let error = parse(&["--queues", bad]).queues().unwrap_err().to_string();
            assert!(error.starts_with("QUEUES: "), "{error}");
        }
    }

    #[test]
    fn the_url_may_stand_in_a_file() {
        let missing = parse(&["--amqp-url-file", "/nowhere/secret"]).url().unwrap_err().to_string();
        assert!(missing.contains("AMQP_URL_FILE") && missing.contains("/nowhere/secret"), "{missing}");
        assert!(parse(&[]).url().is_ok());
    }

    #[test]
    fn a_bad_url_is_refused_without_showing_it() {
        let error = parse(&["--amqp-url", "http://u:s3cret@h"]).url().unwrap_err().to_string();
        assert!(error.starts_with("AMQP_URL: ") && !error.contains("s3cret"), "{error}");
    }
}
