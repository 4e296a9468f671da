//! The worker's settings: flags and environment variables of the same name, checked together at start.

mod tasks;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use protocol::amqp::Address;
use protocol::faults::FaultSettings;
use protocol::settings::{BadSetting, BrokerSettings, LogSettings, duration};
use protocol::topology::Topology;

pub use self::tasks::TaskSettings;

/// Runs tasks from RabbitMQ
#[derive(Parser)]
#[command(version)]
pub struct Cli<T: Args> {
    /// Without one it serves.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings.
    #[command(flatten)]
    pub settings: Settings,
    /// Settings of the worker's tasks.
    #[command(flatten)]
    pub tasks: T,
}

/// What else the binary does.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Command {
    /// Ask the worker of these settings whether it is ready
    Healthcheck,
    /// Print what the worker's tasks take and return, and their limits, as JSON
    Tasks,
    /// Run one task that the worker sends over standard input; the worker itself starts this
    #[command(hide = true)]
    Child,
}

/// No settings, of a worker whose tasks need none.
#[derive(Args)]
pub struct NoSettings {}

/// The settings as given.
#[derive(Args)]
#[group(skip)] // clap would name a group after the struct, and those of a worker's own tasks may have that name too.
pub struct Settings {
    #[command(flatten)]
    broker: BrokerSettings,

    /// What and how to log.
    #[command(flatten)]
    pub log: LogSettings,

    /// What goes wrong on purpose, in a build that knows how.
    #[command(flatten)]
    pub faults: FaultSettings,

    /// Where health and metrics listen
    #[arg(long, env = "CONSUMER_LISTEN", default_value = "127.0.0.1:8081")]
    pub consumer_listen: SocketAddr,

    /// Tasks that run at once; shared out among the queues as prefetch
    #[arg(long, env = "CONCURRENCY", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,

    /// Threads for tasks that block (default: four per CPU, at least 8)
    #[arg(long, env = "BLOCKING_THREADS", value_parser = clap::value_parser!(u16).range(1..))]
    blocking_threads: Option<u16>,

    /// Processes for tasks that run apart (default: four per CPU, at least 32)
    #[arg(long, env = "CHILD_PROCESSES", value_parser = clap::value_parser!(u16).range(1..))]
    child_processes: Option<u16>,

    /// How long a task may run when it does not say
    #[arg(long, env = "TIME_LIMIT", default_value = "5m", value_parser = duration)]
    time_limit: Duration,

    /// The longest time limit; a task that asks for more gets this
    #[arg(long, env = "MAX_TIME_LIMIT", default_value = "15m", value_parser = duration)]
    max_time_limit: Duration,

    /// The broker's `consumer_timeout`, after which it takes deliveries back; `MAX_TIME_LIMIT` is at most half of it
    #[arg(long, env = "CONSUMER_TIMEOUT", default_value = "30m", value_parser = duration)]
    consumer_timeout: Duration,

    /// The largest result, in bytes of JSON
    #[arg(long, env = "MAX_RESULT_BYTES", default_value_t = 1024 * 1024)]
    max_result_bytes: usize,

    /// How long running tasks have after SIGTERM; a second signal ends at once
    #[arg(long, env = "SHUTDOWN_GRACE", default_value = "30s", value_parser = duration)]
    shutdown_grace: Duration,

    /// Whether Celery's tools, `celery inspect`, `celery control` and Flower, see this worker and may command it
    #[arg(long, env = "CELERY_CONTROL", default_value_t = true, action = clap::ArgAction::Set)]
    celery_control: bool,

    /// Whether it sends Celery's task events from the start; Flower switches them on by itself
    #[arg(long, env = "CELERY_EVENTS", default_value_t = false, action = clap::ArgAction::Set)]
    celery_events: bool,

    /// The worker's name, unique among the living (default: errand-PID@HOST)
    #[arg(long, env = "WORKER_NAME", value_parser = worker_name)]
    worker_name: Option<String>,
}

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The broker.
    pub broker: Address,
    /// The names on it.
    pub topology: Topology,
    /// The queues that are served.
    pub queues: Vec<String>,
    /// Where health and metrics listen.
    pub listen: SocketAddr,
    /// Tasks that run at once.
    pub concurrency: u16,
    /// Threads for tasks that block.
    pub blocking_threads: u16,
    /// Processes for tasks that run apart.
    pub child_processes: u16,
    /// The hard time limit of a task that names none.
    pub time_limit: Duration,
    /// The longest hard time limit.
    pub max_time_limit: Duration,
    /// The largest result, in bytes of JSON.
    pub max_result_bytes: usize,
    /// How long running tasks have at the end.
    pub shutdown_grace: Duration,
    /// Whether Celery's tools are answered.
    pub celery_control: bool,
    /// Whether Celery's task events are sent from the start.
    pub celery_events: bool,
    /// The worker's name.
    pub worker_name: String,
}

impl Settings {
    /// Checks the settings together.
    ///
    /// # Errors
    /// The first that cannot be used, by its name.
    pub fn check(&self) -> Result<Config, BadSetting> {
        if self.time_limit > self.max_time_limit || self.time_limit.is_zero() {
            return Err(BadSetting::Limit("TIME_LIMIT must be above zero and at most MAX_TIME_LIMIT"));
        }
        // Half: a delivery may have waited for a place, and what follows the run is still to be published.
        if self.max_time_limit > self.consumer_timeout / 2 {
            return Err(BadSetting::Limit(
                "MAX_TIME_LIMIT must be at most half of CONSUMER_TIMEOUT, the broker's consumer_timeout",
            ));
        }
        Ok(Config {
            broker: self.broker.address()?,
            topology: self.broker.topology(),
            queues: self.broker.queues()?,
            listen: self.consumer_listen,
            concurrency: self.concurrency,
            blocking_threads: self.blocking_threads.unwrap_or_else(|| per_cpu(4).max(8)),
            child_processes: self.child_processes.unwrap_or_else(|| per_cpu(4).max(32)),
            time_limit: self.time_limit,
            max_time_limit: self.max_time_limit,
            max_result_bytes: self.max_result_bytes,
            shutdown_grace: self.shutdown_grace,
            celery_control: self.celery_control,
            celery_events: self.celery_events,
            worker_name: self.worker_name.clone().unwrap_or_else(default_name),
        })
    }
}

fn per_cpu(count: u16) -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    u16::try_from(cpus).unwrap_or(u16::MAX).saturating_mul(count)
}

fn worker_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > 100 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must be 1 to 100 printable ASCII characters without blanks".to_owned());
    }
    Ok(name.to_owned())
}

fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("errand-{}@{}", std::process::id(), if host.is_empty() { "localhost" } else { host })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str]) -> Result<Config, BadSetting> {
        Cli::<NoSettings>::try_parse_from(std::iter::once(&"consumer").chain(args)).unwrap().settings.check()
    }

    #[test]
    fn the_defaults_are_those_of_the_manual() {
        let config = check(&[]).unwrap();
        assert_eq!((config.concurrency, config.time_limit), (256, Duration::from_mins(5)));
        assert!(config.worker_name.starts_with(&format!("errand-{}@", std::process::id())));
    }

    #[test]
    fn settings_of_tasks_may_have_any_name() {
        mod own {
            #[derive(clap::Args)]
            pub(super) struct Settings {
                #[arg(long)]
                _shop: Option<String>,
            }
        }
        <Cli<own::Settings> as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_time_limit_is_within_its_maximum() {
        let error = check(&["--time-limit", "20m"]).unwrap_err().to_string();
        assert!(error.contains("TIME_LIMIT"), "{error}");
        assert!(check(&["--time-limit", "10m", "--max-time-limit", "10m"]).is_ok());
    }

    #[test]
    fn no_task_may_run_for_more_than_half_of_the_brokers_patience() {
        let error = check(&["--max-time-limit", "16m"]).unwrap_err().to_string();
        assert!(error.contains("MAX_TIME_LIMIT") && error.contains("CONSUMER_TIMEOUT"), "{error}");
        assert!(check(&["--max-time-limit", "16m", "--consumer-timeout", "32m"]).is_ok());
        assert!(check(&["--consumer-timeout", "29m"]).is_err(), "the default is held against it too");
    }
}
