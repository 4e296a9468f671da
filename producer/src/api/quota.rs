//! What a caller is told of the limits of its key: `RateLimit-Policy` and `RateLimit` as of
//! draft-ietf-httpapi-ratelimit-headers-10, and 429. Without limits nothing is said.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use actix_web::{HttpResponse, ResponseError};

use super::problem::Problem;
use crate::rate::Left;
use crate::store::KeyLimits;

/// What is left of the limits, one policy an item.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A limit by the name that it has in both headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Requests a second.
    Requests,
    /// Unfinished tasks.
    OpenTasks,
    /// Bytes of the arguments of unfinished tasks.
    WaitingBytes,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Requests => "\"requests\"",
            Self::OpenTasks => "\"open-tasks\"",
            Self::WaitingBytes => "\"waiting-bytes\"",
        })
    }
}

/// 429 for a request too many.
pub fn too_many(wait: Duration) -> HttpResponse {
    let detail = "more requests came than this key may send; a batch counts as its tasks";
    let mut answer = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail).error_response();
    answer.headers_mut().insert(RETRY_AFTER, seconds(wait).into());
    answer
}

/// Adds the limits of a key to an answer. How many requests are left is another item than what a refused submit said.
pub fn say(headers: &mut HeaderMap, limits: KeyLimits, left: Option<Left>) {
    let requests = limits.requests.map(|rate| format!("{};q={rate};w=1", Policy::Requests));
    let tasks = limits.open_tasks.map(|max| format!("{};q={max}", Policy::OpenTasks));
    let bytes = limits.waiting_bytes.map(|max| format!("{};q={max};qu=\"content-bytes\"", Policy::WaitingBytes));
    let policies: Vec<String> = [requests, tasks, bytes].into_iter().flatten().collect();
    append(headers, RATE_LIMIT_POLICY, &policies.join(", "));
    let left = left.map(|left| {
        let (more, wait) = match left {
            Left::Some(more, full) => (more, full),
            Left::Nothing(wait) => (0, wait),
        };
        format!("{};r={more};t={}", Policy::Requests, seconds(wait))
    });
    append(headers, RATE_LIMIT, &left.unwrap_or_default());
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
        headers.append(name, value);
    }
}

/// Whole ones, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
