//! What tasks have in common whose source may be a URL: telling that it is one, opening it, and what an error means.

use std::time::Duration;

use fetch::{FetchError, Fetcher, Request, Response};
use tokio::time::Instant;

use crate::context::Context;
use crate::handler::TaskError;

/// A file's path, or base64, has no `://`. Whether the scheme will do is the client's to say.
pub(super) fn is_url(source: &str) -> bool {
    source.contains("://")
}

/// The response to a GET, when its status is 2xx. All of it must be over by the run's deadline and within `longest`.
pub(super) async fn get(fetcher: &Fetcher, url: &str, longest: Duration, ctx: &Context) -> Result<Response, TaskError> {
    let latest = Instant::now() + longest;
    let deadline = ctx.deadline().map_or(latest, |hard| hard.min(latest));
    let response = fetcher.send(Request::get(url, deadline)).await.map_err(|error| task_error(&error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // Without its path and query, which may hold secrets.
    let message = format!("{} answered {status}", response.url().host_str().unwrap_or_default());
    // 408 and 429 ask for another try.
    let transient = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
    Err(if transient { TaskError::retry("HttpStatus", message) } else { TaskError::fail("HttpStatus", message) })
}

/// What the server or the network did may be different next time; what the URL says will not.
pub(super) fn task_error(error: &FetchError) -> TaskError {
    let (kind, message) = (error.kind(), error.to_string());
    match error {
        FetchError::InvalidHeader(_) => TaskError::fail("InvalidArguments", message),
        _ if error.is_transient() => TaskError::retry(kind, message),
        _ => TaskError::fail(kind, message),
    }
}
