//! What can go wrong between this process and the broker.

use std::time::Duration;

/// AMQP's reply codes for a login or an access that is refused, and for a virtual host that the user may not open or that
/// is not there (specification 1.2.1).
const REFUSALS: [u16; 2] = [403, 530];

/// A fault of a connection, a channel or a declare. All but those of [`Fault::is_fatal`] pass by rebuilding.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// TCP did not connect.
    #[error("broker at {address} is unreachable: {source}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The peer accepts TCP and does not speak AMQP. Connecting to it would hang and leak a thread (measured).
    #[error("{address} accepts connections but does not answer as an AMQP broker")]
    Silent {
        /// Host and port.
        address: String,
    },
    /// TLS does not come about. Tried again all the same: a certificate may be renewed.
    #[error("no TLS with {address}: {error}; {hint}")]
    Tls {
        /// Host and port.
        address: String,
        /// What the handshake ended with.
        error: rustls::Error,
        /// What an operator would look at.
        hint: &'static str,
    },
    /// AMQP in the clear was answered by TLS.
    #[error("{address} is a TLS port; AMQP_URL must be amqps:// there")]
    TlsPort {
        /// Host and port.
        address: String,
    },
    /// The AMQP handshake did not end in time.
    #[error("AMQP handshake did not end within {0:?}")]
    HandshakeTimeout(Duration),
    /// Each handshake that timed out leaks one thread, so the process asks to be restarted after a number of them.
    #[error("{0} AMQP handshakes timed out")]
    TooManyHandshakeTimeouts(u32),
    /// The pool of connections gave none.
    #[error("no connection from the pool: {0}")]
    Pool(String),
    /// The broker's object exists with other arguments than the topology's.
    #[error("{object} exists on the broker with other arguments than this version declares: {detail}")]
    Mismatch {
        /// Kind and name.
        object: String,
        /// The broker's words.
        detail: String,
    },
    /// What somebody else is to declare is not there (yet).
    #[error("{object} is not on the broker, where AMQP_DECLARE=false expects it: {detail}")]
    Missing {
        /// Kind and name.
        object: String,
        /// The broker's words.
        detail: String,
    },
    /// The user may not declare that.
    #[error("the broker refuses access to {object}: {detail}; AMQP_DECLARE=false only looks for what is shared")]
    AccessRefused {
        /// What was accessed.
        object: String,
        /// The broker's words.
        detail: String,
    },
    /// An await on the network had no answer in time.
    #[error("{what} had no answer within {deadline:?}")]
    Deadline {
        /// What was awaited.
        what: &'static str,
        /// How long.
        deadline: Duration,
    },
    /// A consumer's stream ended, which lapin reports without an error (queue deleted, cancel sent by the broker).
    #[error("the consumer of {queue} was cancelled by the broker")]
    ConsumerEnded {
        /// The queue's full name.
        queue: String,
    },
    /// AMQP's short strings (names, routing keys, correlation ids) end at 255 bytes.
    #[error("{0:?} is over 255 bytes, too long for AMQP")]
    NameTooLong(String),
    /// The connection is gone.
    #[error("the connection to the broker is gone")]
    Disconnected,
    /// A mandatory publish to one of our exchanges came back: a queue or a binding of the topology is gone, and is
    /// declared again with the next connection.
    #[error("no queue takes what is published to {exchange}")]
    NoQueue {
        /// The exchange.
        exchange: String,
    },
    /// The channel was not in confirm mode: a programming error that would be silent loss.
    #[error("a publish was not confirmed because the channel is not in confirm mode")]
    NotConfirming,
    /// Anything else that lapin reports.
    #[error("AMQP: {0}")]
    Amqp(#[from] lapin::Error),
}

impl Fault {
    /// Whether the broker is there and refuses: credentials, permissions or certificates, which only an operator changes.
    pub(super) fn is_refusal(&self) -> bool {
        let refused = |error: &lapin::Error| match error.kind() {
            lapin::ErrorKind::ProtocolError(error) => REFUSALS.contains(&error.get_id()),
            _ => false,
        };
        matches!(self, Self::AccessRefused { .. } | Self::Tls { .. } | Self::TlsPort { .. })
            || matches!(self, Self::Amqp(error) if refused(error))
    }

    /// Whether rebuilding cannot help, so that the process must end: a configuration error, or leaked threads.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Mismatch { .. } | Self::TooManyHandshakeTimeouts(_))
    }
}

/// Awaits the broker with a deadline.
pub(super) async fn within<T>(
    what: &'static str,
    deadline: Duration,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Fault::Deadline { what, deadline }),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

    use super::*;

    #[test]
    fn what_only_an_operator_grants_is_a_refusal() {
        let is_refusal = |kind: AMQPErrorKind| {
            let error = lapin::ErrorKind::ProtocolError(AMQPError::new(kind, "no".into()));
            Fault::from(lapin::Error::from(error)).is_refusal()
        };
        assert!(is_refusal(AMQPSoftError::ACCESSREFUSED.into()), "a login, a right");
        assert!(is_refusal(AMQPHardError::NOTALLOWED.into()), "a virtual host");
        assert!(!is_refusal(AMQPSoftError::PRECONDITIONFAILED.into()), "a delivery that took too long");
        assert!(!is_refusal(AMQPHardError::CONNECTIONFORCED.into()), "a broker that stops");
    }
}
