//! Why there is no response.
//!
//! Messages name the host, never a URL's path or query: those may hold secrets.

use std::error::Error;
use std::fmt;

use reqwest::header::HeaderName;
use url::Url;

use super::resolver::LookupError;

/// Why there is no response, or no more of it. It is no [`Error`], so that no `?` decides what it means.
#[derive(Debug)]
pub enum FetchError {
    /// It is not an absolute URL.
    InvalidUrl(url::ParseError),
    /// It cannot be written into a request.
    UnusableUrl {
        /// Its host.
        host: String,
    },
    /// A header that is the client's to set.
    InvalidHeader(HeaderName),
    /// The URL leads to where nobody may go.
    AddressRefused {
        /// The host, or the scheme.
        what: String,
        /// Why.
        reason: &'static str,
    },
    /// A redirect to what is not a URL.
    InvalidRedirect {
        /// The host that sent it.
        host: String,
    },
    /// One redirect more than are followed.
    TooManyRedirects {
        /// As many as are.
        max: usize,
    },
    /// The body is longer than was asked for.
    ResponseTooLarge {
        /// In bytes.
        max: usize,
    },
    /// The deadline, or the client's own for connecting.
    Timeout {
        /// Who did not answer in time.
        host: String,
    },
    /// No connection, a broken one, or what is not HTTP.
    Failed {
        /// Whose.
        host: String,
        /// What the client says.
        reason: String,
    },
    /// The client could not be made.
    Unavailable(anyhow::Error),
}

impl FetchError {
    pub(super) fn refused(url: &Url, reason: &'static str) -> Self {
        Self::AddressRefused { what: host(url), reason }
    }

    pub(super) fn timeout(url: &Url) -> Self {
        Self::Timeout { host: host(url) }
    }

    pub(super) fn from_client(url: &Url, error: reqwest::Error) -> Self {
        let first: Option<&(dyn Error + 'static)> = error.source();
        let mut sources = std::iter::successors(first, |error| (*error).source());
        let lookup = sources.find_map(|source| source.downcast_ref::<LookupError>());
        match lookup {
            Some(LookupError::Refused(reason)) => return Self::refused(url, reason),
            Some(LookupError::Timeout) => return Self::timeout(url),
            _ if error.is_timeout() => return Self::timeout(url),
            _ if error.is_builder() => return Self::UnusableUrl { host: host(url) },
            _ => {}
        }
        let reason = match (lookup, first) {
            (Some(lookup), _) => chain(lookup),
            (None, Some(first)) => chain(first),
            (None, None) => error.without_url().to_string(),
        };
        Self::Failed { host: host(url), reason }
    }

    /// Whether it may be different next time: what the server or the network did may be, what the URL says is not.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Failed { .. } | Self::Unavailable(_))
    }

    /// A bare name, for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InvalidUrl(_) | Self::UnusableUrl { .. } => "InvalidUrl",
            Self::InvalidHeader(_) => "InvalidHeader",
            Self::AddressRefused { .. } => "AddressRefused",
            Self::InvalidRedirect { .. } => "InvalidRedirect",
            Self::TooManyRedirects { .. } => "TooManyRedirects",
            Self::ResponseTooLarge { .. } => "ResponseTooLarge",
            Self::Timeout { .. } => "FetchTimeout",
            Self::Failed { .. } | Self::Unavailable(_) => "FetchFailed",
        }
    }
}

/// The error and its sources, outermost first.
fn chain(error: &(dyn Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| (*error).source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidUrl(error) => write!(f, "not a URL: {error}"),
            Self::UnusableUrl { host } => write!(f, "{host}: a URL that no request can carry"),
            Self::InvalidHeader(name) => write!(f, "header `{name}`: the client sets it itself"),
            Self::AddressRefused { what, reason } => write!(f, "{what}: {reason}"),
            Self::InvalidRedirect { host } => write!(f, "{host} redirects to what is not a URL"),
            Self::TooManyRedirects { max } => write!(f, "more than {max} redirects"),
            Self::ResponseTooLarge { max } => write!(f, "the response is longer than {max} bytes"),
            Self::Timeout { host } => write!(f, "{host} did not answer in time"),
            Self::Failed { host, reason } => write!(f, "{host}: {reason}"),
            Self::Unavailable(error) => write!(f, "no HTTP client: {error:#}"),
        }
    }
}
