//! The running pair against a real RabbitMQ node, and the testbed itself.

mod compose;
mod harness;
mod up;
