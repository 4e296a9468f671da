//! The producer's settings: flags and environment variables of the same name, checked together at start.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use protocol::amqp::Address;
use protocol::faults::FaultSettings;
use protocol::settings::{BadSetting, BrokerSettings, LogSettings, duration, secret_file};
use protocol::topology::Topology;

use crate::callbacks::command::Callbacks;
use crate::definitions::Definitions;
use crate::key::{Scope, Token};

/// Accepts tasks over HTTP, keeps them, publishes them to RabbitMQ and records their results
#[derive(Parser)]
#[command(name = "producer", version)]
pub struct Cli {
    /// Without one it serves.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What else the binary does.
#[derive(Subcommand)]
pub enum Command {
    /// Ask the producer of these settings whether it is ready
    Healthcheck,
    /// Print RabbitMQ definitions for these settings as JSON: all that is shared, and a user for each service that may
    /// do no more than it must
    Definitions(Definitions),
    /// Make, list and revoke the API keys of the store, while the producer runs or not
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Look after callbacks; the producer may be running
    #[command(subcommand)]
    Callbacks(Callbacks),
}

/// What is done to API keys.
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it, which is done once
    Create(NewKey),
    /// List keys: what they allow and how much of it is used
    List,
    /// Revoke a key; the running producer refuses it within a second
    Revoke {
        /// Its id, the second part of the key
        id: String,
    },
}

/// A key to be made.
#[derive(Args)]
pub struct NewKey {
    /// What it is for
    #[arg(long, value_parser = key_name)]
    pub name: String,

    /// What it allows, comma-separated
    #[arg(long, required = true, value_delimiter = ',')]
    pub scope: Vec<Scope>,

    /// Requests a second, each task of a batch counted as one
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests_per_second: Option<u32>,

    /// Unfinished tasks
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub open_tasks: Option<u32>,

    /// Bytes of the arguments of unfinished tasks
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub waiting_bytes: Option<u64>,
}

fn key_name(text: &str) -> Result<String, String> {
    let fits = (1..=100).contains(&text.len()) && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("1 to 100 bytes without control characters".to_owned()) }
}

/// Below a second nothing could have come back before it counts as lost.
fn reconcile_after(text: &str) -> Result<Duration, String> {
    let after = duration(text).map_err(|error| error.to_string())?;
    if after >= Duration::from_secs(1) { Ok(after) } else { Err("at least 1s".to_owned()) }
}

/// The settings as given.
#[derive(Args)]
pub struct Settings {
    #[command(flatten)]
    broker: BrokerSettings,

    /// What and how to log.
    #[command(flatten)]
    pub log: LogSettings,

    /// What goes wrong on purpose, in a build that knows how.
    #[command(flatten)]
    pub faults: FaultSettings,

    /// Where the HTTP API listens
    #[arg(long, env = "PRODUCER_LISTEN", default_value = "127.0.0.1:8080")]
    pub producer_listen: SocketAddr,

    /// The store; created when missing
    #[arg(long, env = "DATABASE_URL", default_value = "sqlite:errand.db", hide_env_values = true)]
    pub database_url: String,

    /// A file that holds an API key, which is made known to the store with the scope admin
    #[arg(long, env = "API_KEY_FILE")]
    api_key_file: Option<PathBuf>,

    /// How long an ended task can be read
    #[arg(long, env = "RESULT_TTL", default_value = "7d", value_parser = duration)]
    result_ttl: Duration,

    /// Unfinished tasks of one queue at the broker, at most; the rest waits in the store
    #[arg(long, env = "RELAY_WINDOW", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    relay_window: u32,

    /// Due and unfinished tasks in the store, at most; beyond it a submit is answered 503
    #[arg(long, env = "OUTBOX_CAP", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    outbox_cap: u64,

    /// Those of QUEUES that stock Celery workers consume, comma-separated
    #[arg(long, env = "FOREIGN_QUEUES", value_delimiter = ',')]
    foreign_queues: Vec<String>,

    /// How long Celery's workers may say nothing of a task, after it was handed to them or their last report, and its time
    /// limit; then it is FAILURE
    #[arg(long, env = "FOREIGN_TIMEOUT", default_value = "1h", value_parser = duration)]
    foreign_timeout: Duration,

    /// For how long a task that the broker should have must be missed before it is published again; three AMQP heartbeats
    /// at least, within which the broker notices that a worker is gone
    #[arg(long, env = "RECONCILE_AFTER", default_value = "30s", value_parser = reconcile_after)]
    reconcile_after: Duration,

    /// Refuse tasks that no worker has announced yet
    #[arg(long, env = "REQUIRE_KNOWN_TASKS", default_value_t = false, action = clap::ArgAction::Set)]
    require_known_tasks: bool,

    /// The longest time limit that a task may ask for
    #[arg(long, env = "MAX_TIME_LIMIT", default_value = "15m", value_parser = duration)]
    max_time_limit: Duration,

    /// Hosts and networks that callbacks may reach though they are not public, and over http, comma-separated:
    /// hooks.internal, 10.0.0.0/8
    #[arg(long, env = "CALLBACK_ALLOW", value_delimiter = ',')]
    callback_allow: Vec<String>,

    /// DNS servers that callbacks ask, comma-separated (default: the system's)
    #[arg(long, env = "CALLBACK_NAMESERVERS", value_delimiter = ',')]
    callback_nameservers: Vec<SocketAddr>,
}

/// The settings, checked.
#[derive(Debug)]
pub struct Config {
    /// The broker.
    pub broker: Address,
    /// The names on it.
    pub topology: Topology,
    /// The queues that are accepted.
    pub queues: Vec<String>,
    /// Those of them that stock Celery workers consume.
    pub foreign_queues: Vec<String>,
    /// How long these may say nothing of a task.
    pub foreign_timeout: Duration,
    /// For how long a task must be missed before it counts as lost.
    pub reconcile_after: Duration,
    /// Where HTTP listens.
    pub listen: SocketAddr,
    /// The store's URL.
    pub database_url: String,
    /// A key that is made known to the store.
    pub api_key: Option<Token>,
    /// How long an ended task is kept.
    pub result_ttl: Duration,
    /// Unfinished tasks of a queue at the broker.
    pub relay_window: u32,
    /// Due and unfinished tasks in the store.
    pub outbox_cap: u64,
    /// Whether only announced tasks are accepted.
    pub require_known_tasks: bool,
    /// The longest time limit.
    pub max_time_limit: Duration,
    /// Who may be called back though it is not public.
    pub callback_allow: Vec<String>,
    /// Who is asked for receivers' addresses; the system's when empty.
    pub callback_nameservers: Vec<SocketAddr>,
}

impl Settings {
    /// The queues, and those of them that are foreign.
    fn queues(&self) -> Result<(Vec<String>, Vec<String>), BadSetting> {
        let queues = self.broker.queues()?;
        let foreign_queues: Vec<String> = self.foreign_queues.iter().map(|queue| queue.trim().to_owned()).collect();
        if foreign_queues.iter().any(|queue| !queues.contains(queue)) {
            return Err(BadSetting::Queues("FOREIGN_QUEUES must be some of QUEUES"));
        }
        Ok((queues, foreign_queues))
    }

    /// RabbitMQ definitions for these settings. Foreign queues are left to whoever consumes them.
    ///
    /// # Errors
    /// A setting that cannot be used, by its name.
    pub fn definitions(&self, wanted: &Definitions) -> Result<serde_json::Value, BadSetting> {
        let (mut queues, foreign) = self.queues()?;
        queues.retain(|queue| !foreign.contains(queue));
        wanted.of(&self.broker.topology(), &queues)
    }

    /// Checks the settings together.
    ///
    /// # Errors
    /// The first that cannot be used, by its name.
    pub fn check(&self) -> Result<Config, BadSetting> {
        let (queues, foreign_queues) = self.queues()?;
        Ok(Config {
            broker: self.broker.address()?,
            topology: self.broker.topology(),
            queues,
            foreign_queues,
            foreign_timeout: self.foreign_timeout,
            reconcile_after: self.reconcile_after,
            listen: self.producer_listen,
            database_url: self.database_url.clone(),
            api_key: self.api_key()?,
            result_ttl: self.result_ttl,
            relay_window: self.relay_window,
            outbox_cap: self.outbox_cap,
            require_known_tasks: self.require_known_tasks,
            max_time_limit: self.max_time_limit,
            callback_allow: self.callback_allow.clone(),
            callback_nameservers: self.callback_nameservers.clone(),
        })
    }
}

impl Settings {
    fn api_key(&self) -> Result<Option<Token>, BadSetting> {
        const NAME: &str = "API_KEY_FILE";
        let Some(path) = &self.api_key_file else { return Ok(None) };
        let token = Token::parse(secret_file(NAME, path)?.trim());
        token.map(Some).ok_or(BadSetting::NoKey { name: NAME, path: path.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str]) -> Result<Config, BadSetting> {
        Cli::try_parse_from(std::iter::once(&"producer").chain(args)).unwrap().settings.check()
    }

    #[test]
    fn the_defaults_are_those_of_the_manual() {
        let config = check(&[]).unwrap();
        assert_eq!(config.relay_window, 10_000);
        assert_eq!(config.result_ttl, Duration::from_hours(7 * 24));
        assert_eq!(config.queues, ["default"]);
        assert_eq!(config.foreign_timeout, Duration::from_hours(1));
        assert_eq!(config.reconcile_after, Duration::from_secs(30));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn a_key_has_a_name_and_scopes_that_there_are() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["producer", "keys", "create"], args].concat()).is_ok();
        assert!(parse(&["--name", "a", "--scope", "submit,read", "--open-tasks", "1"]));
        for bad in [
            &["--name", "a"][..],
            &["--scope", "read"],
            &["--name", "", "--scope", "read"],
            &["--name", "a\tb", "--scope", "read"],
            &["--name", "a", "--scope", "root"],
            &["--name", "a", "--scope", "read", "--open-tasks", "0"],
        ] {
            assert!(!parse(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_is_missed_for_less_than_a_second_is_not_lost() {
        let parse =
            |after| Cli::try_parse_from(["producer", "--reconcile-after", after]).map_err(|error| error.to_string());
        assert!(parse("1s").is_ok());
        assert!(parse("999ms").is_err_and(|error| error.contains("--reconcile-after")));
    }

    #[test]
    fn foreign_queues_must_be_accepted_ones() {
        assert!(check(&["--queues", "default,py", "--foreign-queues", "py"]).is_ok());
        let error = check(&["--foreign-queues", "py"]).unwrap_err().to_string();
        assert!(error.contains("FOREIGN_QUEUES"), "{error}");
    }
}
