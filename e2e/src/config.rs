//! Owns the environment that `deploy/up` and `deploy/test` pass on.
#![expect(clippy::disallowed_methods, reason = "this is where the environment is read")]

use std::env::var;
use std::path::PathBuf;

use crate::broker::Release;

/// What `up` is told.
#[derive(Debug)]
pub struct Config {
    /// `AMQP_URL`: the broker to use instead of a private node.
    pub amqp_url: Option<String>,
    /// `ERRAND_DATA`: where the store, the node's data and the logs stay. Without it they go when `up` ends.
    pub data: Option<PathBuf>,
    /// `UP_ONCE`: end by itself once the first task has succeeded.
    pub once: bool,
    /// `RUST_LOG` for the services.
    pub log: String,
}

impl Config {
    /// Reads the environment. An empty variable counts as unset.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            amqp_url: read("AMQP_URL"),
            data: read("ERRAND_DATA").map(PathBuf::from),
            once: read("UP_ONCE").is_some(),
            log: read("RUST_LOG").unwrap_or_else(|| "info".to_owned()),
        }
    }
}

/// `ERRAND_RABBITMQ`: the RabbitMQ of nodes that are not asked for another.
#[must_use]
pub fn release() -> Release {
    read("ERRAND_RABBITMQ").map_or(Release::Distribution, Release::Installed)
}

fn read(name: &str) -> Option<String> {
    var(name).ok().filter(|value| !value.is_empty())
}
