//! What Errand's producer and consumer agree on: the messages, the states and which report may follow which, the
//! topology, and the AMQP connection that both use.
//!
//! It knows nothing of HTTP, of a store or of a handler. lapin is named in [`amqp`] only.

pub mod amqp;
#[cfg(test)]
mod any;
pub mod backoff;
pub mod control;
pub mod dead_letter;
pub mod faults;
pub mod healthcheck;
pub mod heartbeat;
pub mod json;
pub mod lost;
pub mod message;
pub mod pack;
pub mod python_repr;
pub mod redaction;
pub mod reply;
pub mod retry;
pub mod settings;
pub mod state;
pub mod task;
pub mod timestamp;
pub mod topology;
pub mod trace;
pub mod workflow;
