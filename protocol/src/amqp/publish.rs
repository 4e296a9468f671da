//! What is published, and why it may not count.

use super::link::Link;
use crate::message::Message;

/// A message and where it goes. Published mandatory.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// Exchange; empty for the default exchange.
    pub exchange: String,
    /// Routing key, at most 255 bytes.
    pub routing_key: String,
    /// What is published.
    pub message: Message,
    /// Whether it may travel in one message with others that go to the same place: who reads it there unpacks.
    pub packable: bool,
}

impl Publish {
    /// A message that travels by itself.
    #[must_use]
    pub const fn to(exchange: String, routing_key: String, message: Message) -> Self {
        Self { exchange, routing_key, message, packable: false }
    }

    /// One for the queue of that full name, through the default exchange.
    #[must_use]
    pub const fn to_queue(queue: String, message: Message) -> Self {
        Self::to(String::new(), queue, message)
    }

    /// The same, whose reader unpacks or not.
    #[must_use]
    pub fn packable(self, packable: bool) -> Self {
        Self { packable, ..self }
    }
}

/// Why a publish does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker is away or blocks publishers; nothing was sent.
    #[error("not published: {0}")]
    Unavailable(Link),
    /// No queue takes the message.
    #[error("returned by the broker: {0}")]
    Returned(String),
    /// The broker refused it: the queue is full.
    #[error("refused by the broker (negative confirm)")]
    Nacked,
    /// It was sent and the confirm did not come: the broker may have it or not.
    #[error("unknown whether it was published: {0}")]
    Unknown(String),
    /// It cannot be put on the wire.
    #[error("not an AMQP message: {0}")]
    Malformed(String),
}
