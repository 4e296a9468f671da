//! The running pair against a real RabbitMQ node, and the testbed itself.

mod apart;
mod attempts;
mod bad_input;
mod batch;
mod catalog;
mod children;
mod commands;
mod compose;
mod documents;
mod faults;
mod fetch;
mod files;
mod flood;
mod harness;
mod images;
mod keys;
mod life;
mod limits;
mod list;
mod mail;
mod queries;
mod queues;
mod revoke;
mod routing;
mod rows;
mod up;
