//! Runs tasks from RabbitMQ: the worker, and the library for a worker of one's own.
//!
//! Implement [`handler::Handler`], register it in a [`registry::Registry`], and hand that to [`app::run`]. The worker
//! has no database and does not know the producer: what it knows of a task is in the message.

pub mod app;
pub mod args;
pub mod config;
pub mod context;
pub mod disposition;
pub mod handler;
pub mod options;
pub mod registry;
pub mod signature;
pub mod tasks;
pub mod testing;
pub mod worker;

/// The manual's snippets, as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/tasks.md")]
struct Manual;
