//! What each request goes through: its connection knows that it is being served, and a large answer has its place in
//! the memory that all large answers share, until its client has read it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpRequest, HttpResponse, ResponseError};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::problem::Problem;

/// Bytes of an answer that are handed on at once; one that is no larger needs no place.
pub const PIECE: usize = 64 * 1024;
/// Pieces of large answers in memory.
static ROOM: Semaphore = Semaphore::const_new(64 * 1024 * 1024 / PIECE);

/// The requests of a connection.
#[derive(Debug, Default)]
pub struct Requests {
    arrived: Cell<u64>,
    open: Cell<u32>,
    body: Cell<u64>,
}

impl Requests {
    /// How many have come.
    pub fn arrived(&self) -> u64 {
        self.arrived.get()
    }

    /// Whether one is being served: what comes meanwhile is its body, or waits for its turn.
    pub fn is_open(&self) -> bool {
        self.open.get() > 0
    }

    /// The most bytes that may still come of the body of the one that is being served.
    pub fn body(&self) -> u64 {
        self.body.get()
    }

    /// So many bytes came.
    pub fn read(&self, bytes: u64) {
        self.body.set(self.body.get().saturating_sub(bytes));
    }
}

/// Nothing more of this request's body will come, or be used.
pub fn body_ended(request: &HttpRequest) {
    if let Some(requests) = request.conn_data::<Rc<Requests>>() {
        requests.body.set(0);
    }
}

/// The most bytes that may come of a request's body.
fn body(request: &ServiceRequest) -> u64 {
    let header = |name| request.headers().get(name);
    if header(TRANSFER_ENCODING).is_some() {
        return u64::MAX;
    }
    header(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse().ok()).unwrap_or(0)
}

/// A request that is being served.
struct Open(Rc<Requests>);

impl Open {
    fn new(requests: &Rc<Requests>, body: u64) -> Self {
        requests.body.set(body);
        requests.arrived.set(requests.arrived.get() + 1);
        requests.open.set(requests.open.get() + 1);
        Self(Rc::clone(requests))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// An answer that all its readers share: it takes no memory of its own.
pub struct Shared;

/// A place for so many bytes that are on their way to a client, `None` when there is none.
pub fn place(bytes: u64) -> Option<SemaphorePermit<'static>> {
    let pieces = u32::try_from(bytes.div_ceil(PIECE as u64)).unwrap_or(u32::MAX);
    ROOM.try_acquire_many(pieces).ok()
}

/// Serves a request. A read whose answer has no place is answered 503. What was changed is told in any case, by its
/// status and its headers.
pub async fn serve(request: ServiceRequest, next: Next<BoxBody>) -> Result<ServiceResponse<Answer>, Error> {
    let open = request.conn_data::<Rc<Requests>>().map(|requests| Open::new(requests, body(&request)));
    let is_read = request.method().is_safe();
    let mut answer = next.call(request).await?;
    let mut room = None;
    if let BodySize::Sized(bytes) = answer.response().body().size()
        && bytes > PIECE as u64
        && answer.response().extensions().get::<Shared>().is_none()
    {
        room = place(bytes);
        if room.is_none() {
            let instead = if is_read { busy() } else { omitted(answer.response()) };
            answer = answer.into_response(instead);
        }
    }
    Ok(answer.map_body(|_, body| Answer::new(body, open, room)))
}

fn busy() -> HttpResponse {
    let detail = "large answers are being read slowly; ask for fewer at once, or later";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "answers-busy", detail).error_response()
}

/// The answer without its body.
fn omitted(done: &HttpResponse<BoxBody>) -> HttpResponse {
    let detail = "it was done; large answers are being read slowly, so what it came to is to be looked up";
    let mut answer = Problem::new(done.status(), "answer-omitted", detail).error_response();
    for (name, value) in done.headers().iter().filter(|(name, _)| **name != CONTENT_TYPE) {
        answer.headers_mut().insert(name.clone(), value.clone());
    }
    answer
}

/// The body of an answer, handed on in pieces.
pub struct Answer {
    body: Body,
    size: BodySize,
    _open: Option<Open>,
    _room: Option<SemaphorePermit<'static>>,
}

enum Body {
    Whole(Bytes),
    Stream(BoxBody),
}

impl Answer {
    fn new(body: BoxBody, open: Option<Open>, room: Option<SemaphorePermit<'static>>) -> Self {
        let size = body.size();
        let body = body.try_into_bytes().map_or_else(Body::Stream, Body::Whole);
        Self { body, size, _open: open, _room: room }
    }
}

impl MessageBody for Answer {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.size
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        match &mut self.get_mut().body {
            Body::Whole(left) if left.is_empty() => Poll::Ready(None),
            Body::Whole(left) => Poll::Ready(Some(Ok(left.split_to(left.len().min(PIECE))))),
            Body::Stream(stream) => Pin::new(stream).poll_next(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::LOCATION;
    use actix_web::middleware::from_fn;
    use actix_web::{App, test, web};

    #[actix_web::test]
    async fn without_room_a_read_is_refused_and_what_was_done_is_told_without_its_body() {
        let large = || "x".repeat(PIECE + 1);
        let done = move || async move { HttpResponse::Accepted().insert_header((LOCATION, "/there")).body(large()) };
        let read = move || async move { HttpResponse::Ok().body(large()) };
        let shared = move || async move {
            let mut answer = HttpResponse::Ok().body(large());
            answer.extensions_mut().insert(Shared);
            answer
        };
        let app = App::new().wrap(from_fn(serve));
        let app = app.route("/", web::post().to(done)).route("/", web::get().to(read));
        let app = test::init_service(app.route("/shared", web::get().to(shared))).await;
        let all = ROOM.acquire_many(u32::try_from(ROOM.available_permits()).unwrap()).await.unwrap();
        let answer = test::call_service(&app, test::TestRequest::post().uri("/").to_request()).await;
        assert_eq!(
            (answer.status().as_u16(), answer.headers().get(LOCATION).unwrap().as_bytes()),
            (202, &b"/there"[..])
        );
        let body = String::from_utf8(test::read_body(answer).await.to_vec()).unwrap();
        assert!(body.contains("answer-omitted"), "{body}");
        for (uri, status) in [("/", 503), ("/shared", 200)] {
            let answer = test::call_service(&app, test::TestRequest::get().uri(uri).to_request()).await;
            assert_eq!(answer.status().as_u16(), status, "{uri}");
        }
        drop(all);
        let answer = test::call_service(&app, test::TestRequest::post().uri("/").to_request()).await;
        assert_eq!(test::read_body(answer).await.len(), PIECE + 1);
    }
}
