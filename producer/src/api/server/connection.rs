//! A client's connection under actix's dispatcher: it ends the one whose client is too slow with a head or with reading
//! an answer, and says why a head was refused where the dispatcher answers with a status alone.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_http::Extensions;
use actix_web::http::StatusCode;
use actix_web::rt::net::TcpStream;
use actix_web::web::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::serving::{PIECE, Requests};
use super::{KEEP_ALIVE, LINGER};
use crate::api::problem::Problem;

/// From a head's first byte, or from the start of the connection, to its last.
const HEAD: Duration = Duration::from_secs(15);
/// How long a client may take to read [`PIECE`] bytes of an answer, once it holds the server up.
const READ: Duration = Duration::from_secs(20);

/// Bytes of heads that are read at once: a dispatcher takes all requests in what it has read, and each takes it 7 KB.
const HEADS: usize = 4 * 1024;

/// The connection.
pub struct Connection {
    stream: TcpStream,
    requests: Rc<Requests>,
    /// How many requests had come when last looked.
    seen: u64,
    phase: Phase,
    /// Bytes of heads that were read at once so far.
    at_once: usize,
    /// When the client is too slow, unless a request is being served.
    until: Pin<Box<Sleep>>,
    /// Reads since then.
    overtime: u8,
    /// When the client holds up an answer: until when it must have read the next piece, and what is left of that.
    held_up: Option<(Pin<Box<Sleep>>, usize)>,
    refusal: Option<Refusal>,
}

/// What is to come from the client next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The rest of a head, or the whole first one.
    Head,
    /// A request's body, or nothing until it is answered: that is for whoever serves it to bound.
    Served,
    /// Another request, or the rest of a body that nobody reads.
    Idle,
}

/// An answer to a head that was refused; the connection ends with it.
enum Refusal {
    Sending(Bytes),
    /// What the client still sends is read away until then: closed with bytes unread, a connection is reset and the
    /// answer lost.
    Lingering(Pin<Box<Sleep>>),
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            requests: Rc::default(),
            seen: 0,
            phase: Phase::Head,
            at_once: 0,
            until: Box::pin(sleep(HEAD)),
            overtime: 0,
            held_up: None,
            refusal: None,
        }
    }

    /// Lets the requests of this connection be counted where they are served.
    pub fn share(&self, extensions: &mut Extensions) {
        extensions.insert(Rc::clone(&self.requests));
    }

    /// Ready when what is to come next has not come in time.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let arrived = self.requests.arrived();
        if self.requests.is_open() {
            self.phase = Phase::Served;
            return Poll::Pending;
        }
        if self.phase == Phase::Served || self.seen != arrived {
            self.expect(Phase::Idle, KEEP_ALIVE);
        }
        self.seen = arrived;
        self.until.as_mut().poll(cx)
    }

    /// While a request is served, what the client asks next stays with the kernel; only its end is looked for.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut next = [0];
        match ready!(self.stream.poll_peek(cx, &mut ReadBuf::new(&mut next))) {
            Ok(0) => Poll::Ready(Ok(())),
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn expect(&mut self, phase: Phase, within: Duration) {
        self.phase = phase;
        self.overtime = 0;
        self.until.as_mut().reset(Instant::now() + within);
    }

    /// What came in time is read however late this process gets to it: once, and the dispatcher looks at that before the
    /// client is called too slow. That looks to it as if the client had gone.
    fn poll_last(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.overtime = self.overtime.saturating_add(1);
        match self.overtime {
            1 => {
                let read = Pin::new(&mut self.stream).poll_read(cx, buf);
                if read.is_ready() {
                    return read;
                }
            }
            2 => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        if self.phase == Phase::Head && self.held_up.is_none() {
            let _ = self.stream.try_write(&refusal(StatusCode::REQUEST_TIMEOUT));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(Ok(sent)) => {
                self.held_up = self.held_up.take().and_then(|(until, left)| Some((until, left.checked_sub(sent)?)));
                Poll::Ready(Ok(sent))
            }
            Poll::Pending => {
                let (until, _) = self.held_up.get_or_insert_with(|| (Box::pin(sleep(READ)), PIECE));
                ready!(until.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            failed @ Poll::Ready(_) => failed,
        }
    }

    /// Sends the refusal and waits until the client has had time to read it.
    fn poll_refuse(&mut self, cx: &mut Context<'_>, status: StatusCode) -> Poll<io::Result<()>> {
        loop {
            match self.refusal.take() {
                None => self.refusal = Some(Refusal::Sending(refusal(status))),
                Some(Refusal::Sending(left)) if left.is_empty() => {
                    let _ = Pin::new(&mut self.stream).poll_shutdown(cx)?;
                    self.refusal = Some(Refusal::Lingering(Box::pin(sleep(LINGER))));
                }
                Some(Refusal::Sending(mut left)) => {
                    let sent = self.poll_send(cx, &left);
                    if let Poll::Ready(Ok(sent)) = sent {
                        left = left.slice(sent..);
                    }
                    self.refusal = Some(Refusal::Sending(left));
                    ready!(sent)?;
                }
                Some(Refusal::Lingering(mut until)) => {
                    let (mut away, ended) = ([0; 4096], until.as_mut().poll(cx).is_ready());
                    let mut away = ReadBuf::new(&mut away);
                    let read = Pin::new(&mut self.stream).poll_read(cx, &mut away);
                    self.refusal = Some(Refusal::Lingering(until));
                    match read {
                        _ if ended => return Poll::Ready(Ok(())),
                        Poll::Ready(Ok(())) if !away.filled().is_empty() => {}
                        Poll::Ready(_) => return Poll::Ready(Ok(())),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.poll_late(cx).is_ready() {
            return this.poll_last(cx, buf);
        }
        if this.phase == Phase::Served && this.requests.body() == 0 {
            return this.poll_gone(cx);
        }
        if this.phase != Phase::Served && this.at_once >= HEADS {
            this.at_once = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        match this.phase {
            Phase::Served => this.requests.read(bytes as u64),
            Phase::Head | Phase::Idle => this.at_once = if read.is_ready() { this.at_once + bytes } else { 0 },
        }
        if bytes > 0 && this.phase == Phase::Idle {
            this.expect(Phase::Head, HEAD);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match bare_refusal(bytes) {
            Some((0, status)) => this.poll_refuse(cx, status).map_ok(|()| bytes.len()),
            // What comes before it first.
            Some((place, _)) => this.poll_send(cx, &bytes[..place]),
            None => this.poll_send(cx, bytes),
        }
    }

    /// All that there is was written: whatever comes next is another piece.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.held_up = None;
        // The dispatcher reads when it is woken only, and after an answer nothing else might do that.
        let before = this.phase;
        let _ = this.poll_late(cx);
        if before == Phase::Served && this.phase == Phase::Idle {
            cx.waker().wake_by_ref();
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// The longest head of an answer that is nothing but a status.
const BARE_HEAD: usize = 256;

/// Where in what is to be written the dispatcher's answer to a head that it refuses begins, if there is one: it is the
/// last on its connection. No other answer with such a status is without a body, and none has a carriage return in it.
fn bare_refusal(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let first = bytes.len().saturating_sub(BARE_HEAD);
    let last = &bytes[first..];
    [StatusCode::BAD_REQUEST, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE].into_iter().find_map(|status| {
        let start = format!("HTTP/1.1 {} ", status.as_str());
        let place = last.windows(start.len()).rposition(|window| window == start.as_bytes())?;
        let is_bare = std::str::from_utf8(&last[place..]).is_ok_and(|head| head.contains("\r\ncontent-length: 0\r\n"));
        is_bare.then_some((first + place, status))
    })
}

/// The answer to a head that is refused.
fn refusal(status: StatusCode) -> Bytes {
    let problem = match status {
        StatusCode::REQUEST_TIMEOUT => {
            Problem::new(status, "head-too-slow", format!("no request came within {} s", HEAD.as_secs()))
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            Problem::new(status, "head-too-large", "a request has at most 95 headers and 128 KiB before its body")
        }
        _ => Problem::new(status, "malformed-request", "this is not a request as in RFC 9112"),
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let reason = status.canonical_reason().unwrap_or_default();
    Bytes::from(format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n\
         {body}",
        status.as_str(),
        body.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_is_a_status_alone_is_a_bare_refusal() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".repeat(100);
        let large = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!(bare_refusal(bare.as_bytes()), Some((0, large)));
        assert_eq!(bare_refusal(format!("{ok}{bare}").as_bytes()), Some((ok.len(), large)));
        let said = String::from_utf8(refusal(StatusCode::BAD_REQUEST).to_vec()).unwrap();
        let none = "HTTP/1.1 204 No Content\r\n\r\n";
        for other in [ok.as_str(), "", "\r\n\r\n", none, &said, &said[..said.len() / 2]] {
            assert_eq!(bare_refusal(other.as_bytes()), None, "{other}");
        }
    }
}
