//! The testbed: it starts a private RabbitMQ node, runs the built producer and consumer against it, and breaks each of
//! them on purpose.
//!
//! It knows the services only from outside: their binaries, environment, HTTP and queues. So it depends on none of
//! their crates, and a test cannot pass on what a client or an operator would not see. Everything that it starts dies
//! with the process that started it ([`guard`]).
#![allow(
    clippy::missing_errors_doc,
    reason = "an error here means that the test has failed; there is nothing to tell apart"
)]

pub mod broker;
pub mod certificates;
pub mod chaos;
pub mod client;
pub mod clocks;
pub mod config;
pub mod disk;
pub mod dns;
pub mod events;
pub mod guard;
pub mod installed;
pub mod keys;
pub mod load;
pub mod mail;
pub mod pair;
pub mod ports;
pub mod postgres;
pub mod procfs;
pub mod proxy;
pub mod receiver;
pub mod service;
pub mod strace;
pub mod until;
pub mod up;
pub mod users;
pub mod web;

pub use broker::Broker;
pub use client::Client;
pub use disk::Disk;
pub use dns::NameServer;
pub use events::Events;
pub use installed::installed;
pub use mail::MailServer;
pub use pair::Pair;
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use receiver::Receiver;
pub use service::Service;
pub use strace::Strace;
pub use until::until;
pub use users::Users;
pub use web::Web;

use std::collections::BTreeMap;

/// The environment of a process: all of it, nothing is inherited but what [`guard::PATH`] says.
pub type Env = BTreeMap<String, String>;
