//! The one HTTP client with which tasks reach URLs that strangers chose, safe against server-side request forgery.
//!
//! What counts is the address that is really connected to: a name is looked up once, by the client's own
//! [`resolver`], which hands out public addresses only, and every redirect is checked like the first URL. It
//! knows nothing of tasks: what an error means to one is in [`error`].

mod address;
mod allow;
mod error;
mod headers;
mod redirect;
mod resolver;
mod response;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::ensure;
use reqwest::Client;
use reqwest::header::HeaderMap;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

pub(crate) use reqwest::Method;

use self::allow::Allow;
pub(crate) use self::error::FetchError;
pub(crate) use self::response::Response;
use crate::config::TaskSettings;

/// Redirects that are followed.
const REDIRECTS: usize = 10;
/// Name lookup, TCP and TLS of one connection, whatever the request's deadline.
const CONNECT: Duration = Duration::from_secs(15);
/// Connections are kept briefly and few: it is strangers who choose how many hosts there are.
const IDLE: Duration = Duration::from_secs(5);
const IDLE_PER_HOST: usize = 4;

/// The client. Clones share its connections.
#[derive(Clone)]
pub(crate) struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    allow: Arc<Allow>,
    nameservers: Vec<SocketAddr>,
    /// Made by the first request: it reads the system's certificates, which a worker that never fetches need not have.
    client: OnceLock<Client>,
}

/// A request without a body.
pub(crate) struct Request {
    /// Any method.
    pub(crate) method: Method,
    /// An absolute URL.
    pub(crate) url: String,
    /// What is sent beside what the client sets itself.
    pub(crate) headers: HeaderMap,
    /// When all of it must be over: redirects, and the response's body.
    pub(crate) deadline: Instant,
}

impl Request {
    /// A GET without headers of its own.
    pub(crate) fn get(url: impl Into<String>, deadline: Instant) -> Self {
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
    /// Checks the settings and opens nothing.
    ///
    /// # Errors
    /// `FETCH_ALLOW` or `FETCH_NAMESERVERS` cannot be used.
    pub(crate) fn new(settings: &TaskSettings) -> anyhow::Result<Self> {
        let allow = Arc::new(Allow::parse(&settings.fetch_allow)?);
        let nameservers = settings.fetch_nameservers.clone();
        for server in &nameservers {
            let usable = server.port() != 0 && !server.ip().is_unspecified() && !server.ip().is_multicast();
            ensure!(usable, "FETCH_NAMESERVERS: {server} is not the address of a server");
        }
        Ok(Self { shared: Arc::new(Shared { allow, nameservers, client: OnceLock::new() }) })
    }

    /// Sends the request, follows redirects, and returns once the head of the last response is there.
    ///
    /// # Errors
    /// See [`FetchError`]. A status is no error, whatever it is.
    pub(crate) async fn send(&self, request: Request) -> Result<Response, FetchError> {
        let Request { method, url, headers, deadline } = request;
        headers::check(&headers)?;
        let mut hop = Hop { method, url: Url::parse(&url).map_err(FetchError::InvalidUrl)?, headers };
        for _ in 0..=REDIRECTS {
            check(&hop.url, &self.shared.allow)?;
            let response = self.exchange(&hop, deadline).await?;
            match redirect::next(&hop, response.status(), response.headers())? {
                Some(next) => hop = next,
                None => return Ok(Response::new(response, deadline)),
            }
        }
        Err(FetchError::TooManyRedirects { max: REDIRECTS })
    }

    async fn exchange(&self, hop: &Hop, deadline: Instant) -> Result<reqwest::Response, FetchError> {
        let mut request = reqwest::Request::new(hop.method.clone(), hop.url.clone());
        request.headers_mut().clone_from(&hop.headers);
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
        protocol::amqp::install_crypto_provider();
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

/// Refuses what can be refused before a name is looked up. An address in the URL never reaches the resolver.
fn check(url: &Url, allow: &Allow) -> Result<(), FetchError> {
    if !matches!(url.scheme(), "http" | "https") {
        let reason = "only http and https URLs are fetched";
        return Err(FetchError::AddressRefused { what: url.scheme().to_owned(), reason });
    }
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "a URL that holds a user or a password is not fetched";
        return Err(FetchError::refused(url, reason));
    }
    let address: IpAddr = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        _ => return Ok(()),
    };
    allow.check(address).map_err(|reason| FetchError::refused(url, reason))
}

#[cfg(test)]
mod tests;
