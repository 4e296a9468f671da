//! A response whose head is there and whose body is still on its way.

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::FetchError;

/// A response. Dropping it ends the transfer.
pub struct Response {
    head_and_body: reqwest::Response,
    deadline: Instant,
}

impl Response {
    pub(super) fn new(response: reqwest::Response, deadline: Instant) -> Self {
        Self { head_and_body: response, deadline }
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.head_and_body.status()
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.head_and_body.headers()
    }

    /// The URL that was answered, the last after redirects.
    #[must_use]
    pub fn url(&self) -> &Url {
        self.head_and_body.url()
    }

    /// The length of the body that follows, if the server says it.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.head_and_body.content_length()
    }

    /// More of the body, `None` at its end.
    ///
    /// # Errors
    /// The request's deadline passed, or the connection broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        match timeout_at(self.deadline, self.head_and_body.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(FetchError::from_client(self.url(), error)),
            Err(_) => Err(FetchError::timeout(self.url())),
        }
    }

    /// The whole body, of at most `max` bytes. A longer one is not read to its end, and one that says so not at all.
    ///
    /// # Errors
    /// The same, and [`ResponseTooLarge`](FetchError::ResponseTooLarge).
    pub async fn bytes(mut self, max: usize) -> Result<Bytes, FetchError> {
        let fits = |length: u64| usize::try_from(length).is_ok_and(|length| length <= max);
        if !self.content_length().is_none_or(fits) {
            return Err(FetchError::ResponseTooLarge { max });
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if chunk.len() > max - body.len() {
                return Err(FetchError::ResponseTooLarge { max });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }
}
