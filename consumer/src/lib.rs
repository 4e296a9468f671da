//! Runs tasks from RabbitMQ: the worker, and the library for a worker of one's own.
//!
//! Implement [`handler::Handler`], register it in a [`registry::Registry`], and hand that to [`worker::serve`]. The worker
//! has no database and does not know the producer: what it knows of a task is in the message.

pub mod args;
pub mod config;
pub mod context;
pub mod disposition;
pub mod handler;
pub mod registry;
pub mod tasks;
pub mod worker;
