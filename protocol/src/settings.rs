//! The settings that both services take, so that they are spelled and checked the same.
//!
//! Flags and environment variables of the same name. Values that may hold a secret are hidden from help and errors.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::amqp::{Address, AmqpUrl, BadTls, BadUrl, Identity, Tls};
use crate::topology::{BadQueueName, MAX_PREFIX_BYTES, Topology};

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// Which broker, and the names on it.
#[derive(Args, Clone)]
#[group(skip)]
pub struct BrokerSettings {
    /// The broker: amqp://user:password@host:port/vhost, or amqps. [default: guest on 127.0.0.1:5672]
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: Option<String>,

    /// A file that holds the broker's URL, for secrets
    #[arg(long, env = "AMQP_URL_FILE", conflicts_with = "amqp_url")]
    amqp_url_file: Option<PathBuf>,

    /// A PEM file of the authorities that the certificate of an amqps broker must come from [default: Mozilla's]
    #[arg(long, env = "AMQP_CA_FILE")]
    amqp_ca_file: Option<PathBuf>,

    /// A PEM file of the certificate that this client shows to an amqps broker, if it is to show one
    #[arg(long, env = "AMQP_CERT_FILE", requires = "amqp_key_file")]
    amqp_cert_file: Option<PathBuf>,

    /// A PEM file of the certificate's private key
    #[arg(long, env = "AMQP_KEY_FILE", requires = "amqp_cert_file")]
    amqp_key_file: Option<PathBuf>,

    /// Whether to declare the exchanges and queues that both services use; if not, they are only looked for, which a
    /// user without that right needs
    #[arg(long, env = "AMQP_DECLARE", default_value_t = true, action = clap::ArgAction::Set)]
    amqp_declare: bool,

    /// What every exchange's and queue's name starts with
    #[arg(long, env = "AMQP_PREFIX", default_value = "errand.", value_parser = prefix)]
    amqp_prefix: String,

    /// Task queues, comma-separated, without the prefix: those a producer accepts, those a consumer serves
    #[arg(long, env = "QUEUES", default_value = "default", value_delimiter = ',')]
    queues: Vec<String>,
}

/// What and how to log.
#[derive(Args, Clone)]
#[group(skip)]
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
    /// The files for TLS.
    #[error(transparent)]
    Tls(#[from] BadTls),
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
    /// Where the broker is, with the URL from the file when one is named.
    ///
    /// # Errors
    /// A file cannot be read or holds nothing usable, the URL is none, or has no use for the files.
    pub fn address(&self) -> Result<Address, BadSetting> {
        let url = self.url()?;
        let authorities = self.amqp_ca_file.as_deref();
        let identity = self.amqp_cert_file.clone().zip(self.amqp_key_file.clone());
        if !url.is_tls() {
            // Whoever gives them believes the connection safe.
            let given = authorities.is_some() || identity.is_some();
            let unused = "AMQP_CA_FILE, AMQP_CERT_FILE: AMQP_URL is not amqps://, so nothing would be verified";
            return if given { Err(BadSetting::Limit(unused)) } else { Ok(Address { url, tls: None }) };
        }
        let identity = identity.map(|(certificate, key)| Identity { certificate, key });
        Ok(Address { url, tls: Some(Tls::new(authorities, identity.as_ref())?) })
    }

    fn url(&self) -> Result<AmqpUrl, BadSetting> {
        let text = match &self.amqp_url_file {
            Some(path) => secret_file("AMQP_URL_FILE", path)?,
            None => self.amqp_url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned()),
        };
        Ok(AmqpUrl::parse(text.trim())?)
    }

    /// The names on the broker.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let topology = Topology::new(&self.amqp_prefix);
        if self.amqp_declare { topology } else { topology.declared_elsewhere() }
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
        let filter = EnvFilter::try_new(&self.rust_log)?;
        let registry =
            tracing_subscriber::registry().with(filter).with(filter_fn(|event| !is_indiscreet(event.target())));
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

/// Crates that log what they send or receive: lapin whole returned messages and, at trace, frames, of which one is the
/// login; lettre each line of a session. `RUST_LOG` cannot turn them on. Their faults are reported by who uses them.
const INDISCREET: [&str; 3] = ["lapin", "amq_protocol", "lettre"];

fn is_indiscreet(target: &str) -> bool {
    INDISCREET.iter().any(|name| target.starts_with(name))
}

/// A secret that stands in a file, without the line end.
///
/// # Errors
/// The file cannot be read.
pub fn secret_file(name: &'static str, path: &Path) -> Result<String, BadSetting> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| BadSetting::File { name, path: path.to_owned(), source })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn prefix(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if text.len() > MAX_PREFIX_BYTES || !text.bytes().all(fits) {
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
    fn files_for_tls_go_with_amqps_only() {
        let error = parse(&["--amqp-ca-file", "/nowhere/ca.pem"]).address().unwrap_err().to_string();
        assert!(error.contains("AMQP_CA_FILE") && error.contains("amqps"), "{error}");
        let error = parse(&["--amqp-url", "amqps://h/%2f", "--amqp-ca-file", "/nowhere/ca.pem"]).address();
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("AMQP_CA_FILE: "), "{error}");
    }

    #[test]
    fn a_bad_url_is_refused_without_showing_it() {
        let error = parse(&["--amqp-url", "http://u:s3cret@h"]).url().unwrap_err().to_string();
        assert!(error.starts_with("AMQP_URL: ") && !error.contains("s3cret"), "{error}");
    }
}
