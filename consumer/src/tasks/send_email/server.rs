//! The mail server: what its URL says, and connections that are kept for the next mail.
//!
//! Not lettre's pool, which takes back a connection whose mail was cancelled halfway: the next mail on it would read
//! the answers to that one's commands. Here only a connection whose mail was answered is kept.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lettre::Message;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout};
use url::{Host, Url};

/// Connections that wait for a mail.
const MAX_IDLE: usize = 4;
/// Below the five minutes that a server must wait (RFC 5321, 4.5.3.2.7).
const MAX_IDLE_TIME: Duration = Duration::from_mins(1);
/// For the address that does not answer, when the name has several.
const CONNECT: Duration = Duration::from_secs(10);
/// For the question whether a kept connection still lives.
const NOOP: Duration = Duration::from_secs(5);

/// Where mails are handed in.
pub(super) struct MailServer {
    host: String,
    port: u16,
    tls: Tls,
    hello: ClientId,
    credentials: Option<Credentials>,
    idle: Mutex<Vec<(AsyncSmtpConnection, Instant)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    /// Never.
    None,
    /// STARTTLS if the server offers it.
    Opportunistic,
    /// STARTTLS or no mail.
    Required,
    /// From the first byte.
    Implicit,
}

/// Why a mail was not accepted.
#[derive(Debug)]
pub(super) enum Failure {
    /// It came to no mail: no connection, no TLS, no login.
    Server(Error),
    /// The server's answer to this mail, or the connection's end meanwhile.
    Mail(Error),
}

impl MailServer {
    /// Reads the URL. No part of it is in an error.
    pub(super) fn new(url: &SecretString) -> anyhow::Result<Self> {
        let url = Url::parse(url.expose_secret().trim()).context("not a URL")?;
        let (tls, port) = security(&url)?;
        let host = url.host().context("it names no host")?;
        let host = match host {
            Host::Ipv6(address) => address.to_string(),
            other => other.to_string(),
        };
        let credentials = credentials(&url)?;
        ensure!(
            credentials.is_none() || matches!(tls, Tls::Required | Tls::Implicit) || is_loopback(&url),
            "a password goes over TLS only: use smtps:// or ?tls=required"
        );
        let hello = match url.path().trim_matches('/') {
            "" => ClientId::default(),
            name => ClientId::Domain(name.to_owned()),
        };
        Ok(Self { host, port: url.port().unwrap_or(port), tls, hello, credentials, idle: Mutex::default() })
    }

    /// Hands in a mail and returns the server's answer. When this is dropped halfway, so is the connection.
    pub(super) async fn send(&self, message: &Message) -> Result<String, Failure> {
        let kept = self.kept().await;
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect().await.map_err(Failure::Server)?,
        };
        let answer = connection.send(message.envelope(), &message.formatted()).await.map_err(Failure::Mail)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push((connection, Instant::now()));
        }
        Ok(answer.message().collect::<Vec<_>>().join(" "))
    }

    /// A kept connection that still lives.
    async fn kept(&self) -> Option<AsyncSmtpConnection> {
        loop {
            let (mut connection, since) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            let fresh = since.elapsed() < MAX_IDLE_TIME;
            if fresh && timeout(NOOP, connection.test_connected()).await.unwrap_or(false) {
                return Some(connection);
            }
        }
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let tls = || TlsParameters::new(self.host.clone());
        let implicit = (self.tls == Tls::Implicit).then(tls).transpose()?;
        let address = (self.host.as_str(), self.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(address, Some(CONNECT), &self.hello, implicit, None).await?;
        if self.tls == Tls::Required || (self.tls == Tls::Opportunistic && connection.can_starttls()) {
            connection.starttls(tls()?, &self.hello).await?;
        }
        if let Some(credentials) = &self.credentials {
            connection.auth(DEFAULT_MECHANISMS, credentials).await?;
        }
        Ok(connection)
    }
}

/// TLS, and the port where that is usual.
fn security(url: &Url) -> anyhow::Result<(Tls, u16)> {
    let mut wanted = None;
    for (name, value) in url.query_pairs() {
        ensure!(name == "tls" && wanted.is_none(), "the only parameter is `tls`, once");
        wanted = Some(value.into_owned());
    }
    Ok(match (url.scheme(), wanted.as_deref()) {
        ("smtps", None) => (Tls::Implicit, 465),
        ("smtp", Some("required")) => (Tls::Required, 587),
        ("smtp", Some("opportunistic")) => (Tls::Opportunistic, 587),
        ("smtp", None) => (Tls::None, 25),
        ("smtp", Some(_)) => bail!("`tls` is neither `required` nor `opportunistic`"),
        ("smtps", Some(_)) => bail!("`tls` goes with smtp: only"),
        _ => bail!("it starts neither with smtp: nor with smtps:"),
    })
}

fn credentials(url: &Url) -> anyhow::Result<Option<Credentials>> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let password = url.password().context("it has a user and no password")?;
    // As a form's value, but for the plus sign, which a password may hold.
    let decode = |text: &str| {
        let form = format!("={}", text.replace('+', "%2B"));
        url::form_urlencoded::parse(form.as_bytes()).map(|(_, value)| value.into_owned()).next().unwrap_or_default()
    };
    Ok(Some(Credentials::new(decode(url.username()), decode(password))))
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str().unwrap_or_default() {
        "localhost" => true,
        // Of a scheme that the URL standard does not know, an address is a name.
        host => host.trim_matches(['[', ']']).parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Result<MailServer, String> {
        MailServer::new(&SecretString::from(url.to_owned())).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_url_says_how_the_server_is_reached() {
        for (url, tls, port) in [
            ("smtps://mail.example.com", Tls::Implicit, 465),
            ("smtp://mail.example.com?tls=required", Tls::Required, 587),
            ("smtp://mail.example.com:2525/?tls=opportunistic", Tls::Opportunistic, 2525),
            ("smtp://[::1]", Tls::None, 25),
        ] {
            let server = server(url).unwrap();
            assert_eq!((server.tls, server.port), (tls, port), "{url}");
            assert!(server.credentials.is_none());
        }
        let server = server("smtps://a%40b:p+%26%2fé@mail.example.com/worker.example.com").unwrap();
        assert!(server.credentials == Some(Credentials::new("a@b".to_owned(), "p+&/é".to_owned())));
        assert_eq!(server.hello.to_string(), "worker.example.com");
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused_and_not_shown() {
        for (url, why) in [
            ("http://u:s3cret@host", "smtp"),
            ("u:s3cret", "smtp"),
            ("s3cret", "not a URL"),
            ("smtp://u:s3cret@mail.example.com", "TLS only"),
            ("smtp://u:s3cret@mail.example.com?tls=opportunistic", "TLS only"),
            ("smtps://s3cret@mail.example.com", "no password"),
            ("smtp://u:s3cret@mail.example.com?tls=s3cret", "neither"),
            ("smtp://mail.example.com?tsl=s3cret", "parameter"),
        ] {
            let error = server(url).err().unwrap();
            assert!(error.contains(why) && !error.contains("s3cret"), "{url}: {error}");
        }
        for url in ["smtp://u:s3cret@localhost", "smtp://u:s3cret@127.0.0.1:25", "smtp://u:s3cret@[::1]"] {
            assert!(server(url).is_ok(), "{url}");
        }
    }
}
