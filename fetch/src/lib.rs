//! The one HTTP client for URLs that strangers chose, safe against server-side request forgery.
//!
//! What counts is the address that is really connected to: a name is looked up once, by the client's own
//! resolver, which hands out public addresses only, and every redirect is checked like the first URL. It knows nothing
//! of those who use it: what an error means to them is theirs to say.

mod address;
mod allow;
mod error;
mod headers;
mod redirect;
mod resolver;
mod response;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Client;
use reqwest::header::HeaderMap;
use tokio::time::{Instant, timeout_at};
use url::Url;

pub use reqwest::{Method, StatusCode, header};

pub use self::allow::{Allow, BadEntry};
pub use self::error::FetchError;
pub use self::response::Response;

/// Redirects that are followed.
const REDIRECTS: usize = 10;
/// Name lookup, TCP and TLS of one connection, whatever the request's deadline.
const CONNECT: Duration = Duration::from_secs(15);
/// Connections are kept briefly and few: it is strangers who choose how many hosts there are.
const IDLE: Duration = Duration::from_secs(5);
const IDLE_PER_HOST: usize = 4;

/// What cannot be a name server.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not the address of a server")]
pub struct BadNameserver(SocketAddr);

/// The client. Clones share its connections.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    allow: Arc<Allow>,
    nameservers: Vec<SocketAddr>,
    /// Made by the first request: it reads the system's certificates, which who never fetches need not have.
    client: OnceLock<Client>,
}

/// A request without a body.
pub struct Request {
    /// Any method.
    pub method: Method,
    /// An absolute URL.
    pub url: String,
    /// What is sent beside what the client sets itself.
    pub headers: HeaderMap,
    /// When all of it must be over: redirects, and the response's body.
    pub deadline: Instant,
}

impl Request {
    /// A GET without headers of its own.
    pub fn get(url: impl Into<String>, deadline: Instant) -> Self {
        Self { method: Method::GET, url: url.into(), headers: HeaderMap::new(), deadline }
    }
}

/// A request as the next server gets it.
struct Hop {
    method: Method,
    url: Url,
    headers: HeaderMap,
}

impl Fetcher {
    /// Opens nothing. Without name servers it asks the system's.
    ///
    /// # Errors
    /// One of the name servers cannot be one.
    pub fn new(allow: Allow, nameservers: &[SocketAddr]) -> Result<Self, BadNameserver> {
        let unusable =
            |server: &&SocketAddr| server.port() == 0 || server.ip().is_unspecified() || server.ip().is_multicast();
        if let Some(server) = nameservers.iter().find(unusable) {
            return Err(BadNameserver(*server));
        }
        let shared = Shared { allow: Arc::new(allow), nameservers: nameservers.to_vec(), client: OnceLock::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Sends the request, follows redirects, and returns once the head of the last response is there.
    ///
    /// # Errors
    /// See [`FetchError`]. A status is no error, whatever it is.
    pub async fn send(&self, request: Request) -> Result<Response, FetchError> {
        let Request { method, url, headers, deadline } = request;
        headers::check(&headers)?;
        let mut hop = Hop { method, url: Url::parse(&url).map_err(FetchError::InvalidUrl)?, headers };
        for _ in 0..=REDIRECTS {
            self.shared.allow.check_url(&hop.url)?;
            let response = self.exchange(&hop, Bytes::new(), deadline).await?;
            match redirect::next(&hop, response.status(), response.headers())? {
                Some(next) => hop = next,
                None => return Ok(Response::new(response, deadline)),
            }
        }
        Err(FetchError::TooManyRedirects { max: REDIRECTS })
    }

    /// Sends a body, which a redirect takes nowhere: that is a response like any other.
    ///
    /// # Errors
    /// See [`FetchError`]. A status is no error, whatever it is.
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Response, FetchError> {
        headers::check(&headers)?;
        let hop = Hop { method: Method::POST, url: self.shared.allow.check(url)?, headers };
        Ok(Response::new(self.exchange(&hop, body, deadline).await?, deadline))
    }

    async fn exchange(&self, hop: &Hop, body: Bytes, deadline: Instant) -> Result<reqwest::Response, FetchError> {
        let mut request = reqwest::Request::new(hop.method.clone(), hop.url.clone());
        request.headers_mut().clone_from(&hop.headers);
        if !body.is_empty() {
            *request.body_mut() = Some(body.into());
        }
        let exchange = self.client()?.execute(request);
        let head = timeout_at(deadline, exchange).await.map_err(|_| FetchError::timeout(&hop.url))?;
        head.map_err(|error| FetchError::from_client(&hop.url, error))
    }

    fn client(&self) -> Result<&Client, FetchError> {
        if let Some(client) = self.shared.client.get() {
            return Ok(client);
        }
        // Two first requests may both make one; one of them stays.
        let client = self.shared.connect().map_err(FetchError::Unavailable)?;
        Ok(self.shared.client.get_or_init(|| client))
    }
}

impl Shared {
    #[expect(clippy::disallowed_methods, reason = "this is the client that the others are to use")]
    fn connect(&self) -> anyhow::Result<Client> {
        // An error means that a provider was installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let resolver = resolver::CheckedResolver::new(Arc::clone(&self.allow), &self.nameservers)?;
        let client = Client::builder()
            .dns_resolver(resolver)
            // A proxy from the environment would connect to what it likes.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .user_agent(concat!("errand/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(client)
    }
}

#[cfg(test)]
mod tests;
