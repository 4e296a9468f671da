//! The running pair against a real RabbitMQ node, and the testbed itself.

mod bad_input;
mod compose;
mod documents;
mod faults;
mod fetch;
mod files;
mod flood;
mod harness;
mod images;
mod life;
mod routing;
mod rows;
mod up;
