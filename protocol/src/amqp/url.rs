//! The broker's address, which carries a password: it is parsed once and shown redacted.

use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::{ExposeSecret, SecretString};

use super::tls::Tls;

/// Where the broker is and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Address {
    /// Its URL.
    pub url: AmqpUrl,
    /// The TLS of an `amqps://` URL.
    pub tls: Option<Tls>,
}

/// A checked `amqp://` or `amqps://` URL. Its `Debug` and `Display` leave the password out.
#[derive(Clone)]
pub struct AmqpUrl {
    url: SecretString,
    shown: String,
    host: String,
    port: u16,
    tls: bool,
}

/// Why a URL cannot be the broker's. The URL itself is not repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an AMQP URL (amqp://user:password@host:port/vhost): {0}")]
pub struct BadUrl(String);

impl AmqpUrl {
    /// A dead peer is noticed after two of these (the default of 60 s would take two minutes).
    const HEARTBEAT_S: u16 = 10;

    /// Checks the URL and adds a heartbeat of 10 s unless it names one.
    ///
    /// # Errors
    /// The text is not an AMQP URL.
    pub fn parse(text: &str) -> Result<Self, BadUrl> {
        // The parser repeats the text in some of its errors, and takes an IPv6 host for localhost.
        let reason = |error: String| if error.contains(text) { "no scheme and host".to_owned() } else { error };
        let uri: AMQPUri = text.parse().map_err(|error| BadUrl(reason(error)))?;
        if text.contains("@[") || text.contains("//[") {
            return Err(BadUrl("an IPv6 address cannot be the host; use a name".to_owned()));
        }
        let url = match uri.query.heartbeat {
            Some(_) => text.to_owned(),
            None if text.contains('?') => format!("{text}&heartbeat={}", Self::HEARTBEAT_S),
            None => format!("{text}?heartbeat={}", Self::HEARTBEAT_S),
        };
        let tls = matches!(uri.scheme, AMQPScheme::AMQPS);
        let scheme = if tls { "amqps" } else { "amqp" };
        let authority = &uri.authority;
        Ok(Self {
            shown: format!("{scheme}://{}:{}/{}", authority.host, authority.port, uri.vhost),
            host: authority.host.clone(),
            port: authority.port,
            tls,
            url: url.into(),
        })
    }

    /// The whole URL with its password.
    pub(super) fn expose(&self) -> &str {
        self.url.expose_secret()
    }

    /// Host and port to connect to.
    pub(super) fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Whether the connection is TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl std::fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AmqpUrl({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_user_nor_password_is_shown() {
        let url = AmqpUrl::parse("amqp://alice:s3cret@broker:5673/v").unwrap();
        for shown in [format!("{url}"), format!("{url:?}")] {
            assert!(!shown.contains("s3cret") && shown.contains("broker:5673"), "{shown}");
        }
        for bad in
            ["http://alice:s3cret@broker", "alice:s3cret@broker:5672/v", "amqp:alice:s3cret@b", "amqp://s3cret@[::1]"]
        {
            let error = AmqpUrl::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_heartbeat_is_set_unless_named() {
        let expose = |text: &str| AmqpUrl::parse(text).unwrap().expose().to_owned();
        assert!(expose("amqp://h/%2f").ends_with("?heartbeat=10"));
        assert!(expose("amqp://h/%2f?frame_max=8192").ends_with("&heartbeat=10"));
        assert_eq!(expose("amqp://h/%2f?heartbeat=30"), "amqp://h/%2f?heartbeat=30");
    }
}
