//! The producer's settings: flags and environment variables of the same name, checked together at start.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use protocol::amqp::Address;
use protocol::settings::{BadSetting, BrokerSettings, LogSettings, duration};
use protocol::topology::Topology;

use crate::definitions::Definitions;

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
}

/// The settings as given.
#[derive(Args)]
pub struct Settings {
    #[command(flatten)]
    broker: BrokerSettings,

    /// What and how to log.
    #[command(flatten)]
    pub log: LogSettings,

    /// Where the HTTP API listens
    #[arg(long, env = "PRODUCER_LISTEN", default_value = "127.0.0.1:8080")]
    pub producer_listen: SocketAddr,

    /// The store; created when missing
    #[arg(long, env = "DATABASE_URL", default_value = "sqlite:errand.db", hide_env_values = true)]
    database_url: String,

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

    /// Refuse tasks that no worker has announced yet
    #[arg(long, env = "REQUIRE_KNOWN_TASKS", default_value_t = false, action = clap::ArgAction::Set)]
    require_known_tasks: bool,

    /// The longest time limit that a task may ask for
    #[arg(long, env = "MAX_TIME_LIMIT", default_value = "15m", value_parser = duration)]
    max_time_limit: Duration,
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
    /// Where HTTP listens.
    pub listen: SocketAddr,
    /// The store's URL.
    pub database_url: String,
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
            listen: self.producer_listen,
            database_url: self.database_url.clone(),
            result_ttl: self.result_ttl,
            relay_window: self.relay_window,
            outbox_cap: self.outbox_cap,
            require_known_tasks: self.require_known_tasks,
            max_time_limit: self.max_time_limit,
        })
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
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn foreign_queues_must_be_accepted_ones() {
        assert!(check(&["--queues", "default,py", "--foreign-queues", "py"]).is_ok());
        let error = check(&["--foreign-queues", "py"]).unwrap_err().to_string();
        assert!(error.contains("FOREIGN_QUEUES"), "{error}");
    }
}
