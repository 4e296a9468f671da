//! Reads a request's JSON body within bounds of size and time.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use actix_web::web::{BytesMut, Payload};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::problem::Problem;
use super::server::{PIECE, body_ended};
use crate::rules::MAX_BYTES;

/// How much of a body that is too large is read away, so that a client that is still sending gets to read the answer.
const DRAIN_BYTES: usize = 64 * 1024 * 1024;
/// How long a body waits for its place.
const ROOM_DEADLINE: Duration = Duration::from_secs(10);
/// actix's own timeout covers the head only.
const DEADLINE: Duration = Duration::from_secs(10);

/// The body's bytes.
///
/// # Errors
/// 415 for another content type or any content encoding, 413 above the bound, 408 when it does not come in time.
pub async fn read_json(request: &HttpRequest, payload: Payload) -> Result<BytesMut, Problem> {
    read_body(request, payload, &SUBMIT).await.map(|body| body.bytes)
}

/// As [`read_json`], but a request may come without a body, and then without a content type.
///
/// # Errors
/// As of [`read_json`].
pub async fn read_if_any(request: &HttpRequest, payload: Payload) -> Result<BytesMut, Problem> {
    let headers = request.headers();
    let is_empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0");
    if is_empty && !headers.contains_key(TRANSFER_ENCODING) {
        return Ok(BytesMut::new());
    }
    read_json(request, payload).await
}

/// What a body may be.
pub struct Bounds {
    /// Media types.
    pub types: &'static [&'static str],
    /// Its size.
    pub bytes: usize,
    /// How long it may take to come.
    pub time: Duration,
    /// What all such bodies may have in memory together, in [`PIECE`]s; a small body needs no place.
    pub room: Option<&'static Semaphore>,
}

/// A body and its place among all of its kind.
pub struct Body {
    /// What came.
    pub bytes: BytesMut,
    place: Option<SemaphorePermit<'static>>,
}

const SUBMIT: Bounds = Bounds { types: &["application/json"], bytes: MAX_BYTES, time: DEADLINE, room: None };

/// The body's bytes, within bounds.
///
/// # Errors
/// As of [`read_json`], and 503 when it found no place.
pub async fn read_body(request: &HttpRequest, payload: Payload, bounds: &Bounds) -> Result<Body, Problem> {
    if let Some(problem) = refuse_by_head(request, bounds) {
        // Whatever becomes of the rest, the answer is this one.
        let _ = read(payload, &Bounds { bytes: 0, time: DEADLINE, ..*bounds }).await;
        return Err(problem);
    }
    let body = read(payload, bounds).await;
    body_ended(request);
    body
}

/// The content type without its parameters.
pub fn media_type(request: &HttpRequest) -> &str {
    let header = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim()
}

fn refuse_by_head(request: &HttpRequest, bounds: &Bounds) -> Option<Problem> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type(request);
    if !bounds.types.iter().any(|known| media_type.eq_ignore_ascii_case(known)) {
        let detail = format!("the content type must be {}, not {media_type:?}", bounds.types.join(" or "));
        return Some(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail));
    }
    let encoding = header(CONTENT_ENCODING).trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        let detail = "the body must not be compressed";
        return Some(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-content-encoding", detail));
    }
    let length = header(CONTENT_LENGTH).parse::<usize>().unwrap_or(0);
    (length > bounds.bytes).then(|| too_large(bounds.bytes))
}

async fn read(mut payload: Payload, bounds: &Bounds) -> Result<Body, Problem> {
    let (limit, deadline) = (bounds.bytes, bounds.time);
    let all = async {
        let mut body = Body { bytes: BytesMut::new(), place: None };
        let mut received = 0;
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| {
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    "body-incomplete",
                    format!("the body did not come whole: {error}"),
                )
            })?;
            received += chunk.len();
            if received > DRAIN_BYTES {
                break;
            }
            if received <= limit {
                body.grow(&chunk, bounds.room).await?;
            }
        }
        if received > limit { Err(too_large(limit)) } else { Ok(body) }
    };
    timeout(deadline, all).await.unwrap_or_else(|_| {
        let detail = format!("the body did not come within {} s", deadline.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", detail))
    })
}

impl Body {
    /// Takes places as it grows, so that only what has come takes any.
    async fn grow(&mut self, chunk: &[u8], room: Option<&'static Semaphore>) -> Result<(), Problem> {
        let size = self.bytes.len() + chunk.len();
        let taken = self.place.as_ref().map_or(0, SemaphorePermit::num_permits);
        if let Some(room) = room.filter(|_| size / PIECE > taken) {
            let more = u32::try_from(size / PIECE - taken).unwrap_or(u32::MAX);
            let Ok(Ok(more)) = timeout(ROOM_DEADLINE, room.acquire_many(more)).await else {
                let detail = "too many bodies are being taken in; nothing was accepted";
                return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "batches-busy", detail));
            };
            match &mut self.place {
                Some(place) => place.merge(more),
                none => *none = Some(more),
            }
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is larger than {limit} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail)
}
