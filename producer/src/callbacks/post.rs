//! One attempt: renders, signs and posts, and says what came of it. It decides nothing about the next.

use std::net::SocketAddr;
use std::time::Duration;

use fetch::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use fetch::{BadNameserver, Response};
use protocol::timestamp::now_ms;
use tokio::time::Instant;

use super::message;
use super::receivers::{Fetchers, Receivers};
use super::schedule::Outcome;
use super::signature::sign;
use crate::store::{DueCallback, Secret, Store, StoreError};
use crate::workers::Workers;

/// All of an attempt, from the name lookup to the head of the answer. Its body is not read.
const DEADLINE: Duration = Duration::from_secs(15);
const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

pub(super) struct Post {
    store: Store,
    workers: Workers,
    fetchers: Fetchers,
}

/// Why there was nothing to post.
#[derive(Debug, thiserror::Error)]
enum Unready {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no secret can be made: {0}")]
    NoSecret(#[from] getrandom::Error),
    #[error("the task cannot be shown: {0}")]
    Body(#[from] serde_json::Error),
    #[error("the task has no callback")]
    NoCallback,
}

impl Post {
    pub(super) fn new(
        store: Store,
        workers: Workers,
        receivers: Receivers,
        nameservers: &[SocketAddr],
    ) -> Result<Self, BadNameserver> {
        Ok(Self { store, workers, fetchers: receivers.fetchers(nameservers)? })
    }

    pub(super) async fn send(&self, due: &DueCallback) -> Outcome {
        self.exchange(due).await.unwrap_or_else(|unready| {
            tracing::error!(error = %unready, webhook_id = due.id, "a callback cannot be posted");
            failed("it could not be made ready".to_owned())
        })
    }

    async fn exchange(&self, due: &DueCallback) -> Result<Outcome, Unready> {
        let callback = due.row.accepted.callback.as_ref().ok_or(Unready::NoCallback)?;
        let own = self.workers.retry(&due.row.accepted.task).unwrap_or_default();
        let body = message::body(due.row.clone(), own)?;
        let timestamp = now_ms() / 1_000;
        let signature =
            sign(&self.secrets(due.row.accepted.owner.as_deref().unwrap_or(NOBODY)).await?, &due.id, timestamp, &body);
        let headers = headers(&due.id, timestamp, &signature);
        let deadline = Instant::now() + DEADLINE;
        let answer = self.fetchers.of(&callback.url).post(&callback.url, headers, body.into(), deadline).await;
        Ok(answer.map_or_else(|error| failed(error.to_string()), |answer| judge(&answer)))
    }

    /// The first that is asked for is made.
    async fn secrets(&self, owner: &str) -> Result<Vec<Secret>, Unready> {
        let now = now_ms();
        let secrets = self.store.secrets(owner, now).await?;
        if !secrets.is_empty() {
            return Ok(secrets);
        }
        self.store.make_secret(owner, Secret::fresh()?, now).await?;
        Ok(self.store.secrets(owner, now).await?)
    }
}

/// Whose secret signs for tasks that were submitted without an API key.
pub(super) const NOBODY: &str = "";

fn headers(id: &str, timestamp: i64, signature: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(TIMESTAMP, timestamp.into());
    for (name, value) in [(ID, id), (SIGNATURE, signature)] {
        // An id is hexadecimal and a signature is base64: both are values of headers.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers
}

fn failed(error: String) -> Outcome {
    Outcome::Failed { error, retry_after: None }
}

fn judge(answer: &Response) -> Outcome {
    let status = answer.status();
    let error = format!("{} answered {status}", answer.url().host_str().unwrap_or_default());
    if status.is_success() {
        return Outcome::Delivered;
    }
    if status.as_u16() == 410 {
        return Outcome::Unwanted(error);
    }
    // A date is not heeded: clocks differ.
    let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Outcome::Failed { error, retry_after: seconds.map(Duration::from_secs) }
}
