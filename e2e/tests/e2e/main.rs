//! The running pair against a real RabbitMQ node, and the testbed itself.

mod apart;
mod bad_input;
mod children;
mod commands;
mod compose;
mod documents;
mod events;
mod faults;
mod fetch;
mod files;
mod flood;
mod harness;
mod images;
mod life;
mod limits;
mod mail;
mod queries;
mod routing;
mod rows;
mod up;
mod wait;
