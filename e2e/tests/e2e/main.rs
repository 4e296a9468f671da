//! The running pair against a real RabbitMQ node, and the testbed itself.

mod bad_input;
mod commands;
mod compose;
mod documents;
mod faults;
mod flood;
mod harness;
mod life;
mod mail;
mod queries;
mod routing;
mod rows;
mod up;
