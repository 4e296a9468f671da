//! What tasks have in common whose source may be a URL: telling that it is one, and opening it.

use std::time::Duration;

use tokio::time::Instant;

use crate::context::Context;
use crate::fetch::{Fetcher, Request, Response};
use crate::handler::TaskError;

/// A file's path, or base64, has no `://`. Whether the scheme will do is the client's to say.
pub(super) fn is_url(source: &str) -> bool {
    source.contains("://")
}

/// The response to a GET, when its status is 2xx. All of it must be over by the run's deadline and within `longest`.
pub(super) async fn get(fetcher: &Fetcher, url: &str, longest: Duration, ctx: &Context) -> Result<Response, TaskError> {
    let latest = Instant::now() + longest;
    let deadline = ctx.deadline().map_or(latest, |hard| hard.min(latest));
    let response = fetcher.send(Request::get(url, deadline)).await?;
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
