//! A message as plain data: the properties in use and the body.
//!
//! It owns the names and sizes of our headers and the one way from a received message to its JSON body. It knows no
//! broker: [`crate::amqp`] converts to and from the client library's types.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::ZlibDecoder;
use serde_json::Value;

/// AMQP header table, JSON-shaped: null=Void, bool, integer, double, string=LongString, array, object=table.
pub type Headers = serde_json::Map<String, Value>;

/// The only content type that is emitted or read. Exactly this: a stock client raises in its caller on
/// `application/json; charset=utf-8`.
pub const CONTENT_TYPE: &str = "application/json";
/// The content encoding that is emitted; on receipt it says nothing, JSON is UTF-8.
pub const CONTENT_ENCODING: &str = "utf-8";

/// Header, table: the [`crate::retry::RetryOptions`] that were chosen; none when none were.
pub const RETRY: &str = "errand-retry";
/// Header, string such as `4s`: the level of the delay queue that a message waits in.
pub const DELAY: &str = "errand-delay";
/// Header, integer: the milliseconds still to wait after the level.
pub const DELAY_LEFT_MS: &str = "errand-delay-left-ms";
/// Header, [`REPLY_DURABLE`]: what kind of queue `reply_to` names.
pub const REPLY: &str = "errand-reply";
/// The value of [`REPLY`] for a queue that outlives its producer: replies are persistent and confirmed.
pub const REPLY_DURABLE: &str = "durable";
/// Header, integer: how many times the producer has published this task, for telling a late loss from a new one.
pub const PUBLISH: &str = "errand-publish";
/// Header, integer, ms since 1970: since when this life of the task lasts, its acceptance or its latest replay. A
/// revocation from before is not for it.
pub const SINCE: &str = "errand-since";
/// Header, integer: how often workers that died gave back the messages before this one, which the broker counts anew.
pub const RETURNS: &str = "errand-returns";
/// Header, integer: the newest form of [`PACK`] that whoever reads `reply_to` unpacks. A client of Celery's says nothing.
pub const PACKS: &str = "errand-packs";
/// Header, integer: the message is a pack of others, in this form, see [`crate::pack`]. It lies in a reply queue.
pub const PACK: &str = "errand-pack";

/// Header, the queue without the prefix: the message is a task that a running one submits, for the producer that its
/// `reply_to` belongs to. It lies in that producer's reply queue and not in a task queue.
pub const SUBMIT: &str = "errand-submit";

/// Header, string: the message is a tracer and its mark, see [`crate::trace`]. It lies in a task queue.
pub const TRACE: &str = "errand-trace";
/// Header, string: a worker has met the tracer of that mark. It lies in a reply queue.
pub const TRACED: &str = "errand-traced";
/// Header, integer: for how many milliseconds the task of the correlation id waits at the broker. It lies in a reply queue.
pub const HELD_MS: &str = "errand-held-ms";

/// From the second return by workers that died, a message is suspected (DESIGN section 2).
const SUSPECT_AFTER: u64 = 2;

/// No header value of ours is longer (DESIGN section 3).
pub const MAX_HEADER_BYTES: usize = 2 * 1024;
/// All headers of a message together are not longer: 140 KB close the connection (measured).
pub const MAX_HEADERS_BYTES: usize = 32 * 1024;
/// A compressed body that inflates to more is refused. It is RabbitMQ 4's largest message.
pub const MAX_INFLATED_BYTES: usize = 16 * 1024 * 1024;

/// The properties in use of AMQP's `basic` class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties {
    /// MIME type of the body.
    pub content_type: Option<String>,
    /// Character set, or `binary`.
    pub content_encoding: Option<String>,
    /// The header table.
    pub headers: Headers,
    /// Delivery mode 2.
    pub persistent: bool,
    /// 0 to 255; Celery always sends it.
    pub priority: Option<u8>,
    /// What a reply carries back, the task id unless the caller chose another.
    pub correlation_id: Option<String>,
    /// The queue that replies go to, through the default exchange.
    pub reply_to: Option<String>,
    /// Milliseconds as text. Received only: we never set it and strip it on every forward (DESIGN section 3).
    pub expiration: Option<String>,
}

/// A message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// Everything but the body.
    pub properties: Properties,
    /// The body as sent, compressed if the sender did that.
    pub body: Vec<u8>,
}

/// Why a message has no JSON body.
#[derive(Debug, thiserror::Error)]
pub enum ContentFault {
    /// One of Celery's other serializers, by its name.
    #[error("the body is {0}, only application/json is accepted")]
    Serializer(&'static str),
    /// Some other content type.
    #[error("content type {0:?} is not application/json")]
    ContentType(String),
    /// The message does not say what it is.
    #[error("the content type is missing")]
    NoContentType,
    /// A compression other than zlib, by its name.
    #[error("compression {0} is not supported, only application/x-gzip is")]
    Compression(String),
    /// The header is not a string.
    #[error("header compression is not a string")]
    CompressionType,
    /// What claims to be a zlib stream is none.
    #[error("the body is not a zlib stream")]
    Inflate(#[source] std::io::Error),
    /// The body inflates to more than [`MAX_INFLATED_BYTES`].
    #[error("the body inflates to more than {max} bytes")]
    TooLarge {
        /// The bound.
        max: usize,
    },
}

impl Message {
    /// Whether workers may have died of it. A hint only: what was beside the one that killed them counts too, and so does
    /// what a worker gave back as it ended.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.returns() >= SUSPECT_AFTER
    }

    /// How often it came back from workers, before it was sent on too.
    #[must_use]
    pub fn returns(&self) -> u64 {
        let count = |header| self.properties.headers.get(header).and_then(Value::as_u64).unwrap_or_default();
        count("x-delivery-count").saturating_add(count(RETURNS))
    }

    /// Keeps the count on a message that goes back to wait; 0 drops it.
    pub fn set_returns(&mut self, returns: u64) {
        let headers = &mut self.properties.headers;
        if returns > 0 {
            headers.insert(RETURNS.to_owned(), returns.min(1 << 31).into());
        } else {
            headers.remove(RETURNS);
        }
    }

    /// The bytes of the JSON body, inflated if need be. That they are JSON is not checked.
    ///
    /// # Errors
    /// The content type is missing or not JSON, or the body is compressed with something else than zlib, is broken, or
    /// inflates to more than [`MAX_INFLATED_BYTES`].
    pub fn json_body(&self) -> Result<Cow<'_, [u8]>, ContentFault> {
        match self.properties.content_type.as_deref() {
            None => return Err(ContentFault::NoContentType),
            Some(name) if !is_json(name) => return Err(refused(name)),
            Some(_) => {}
        }
        match self.properties.headers.get("compression") {
            None | Some(Value::Null) => Ok(Cow::Borrowed(&self.body)),
            // Celery's name says gzip, its bytes are a bare zlib stream.
            Some(Value::String(name)) if name == "application/x-gzip" => inflate(&self.body).map(Cow::Owned),
            Some(Value::String(name)) => Err(ContentFault::Compression(truncate(name, 100).to_owned())),
            Some(_) => Err(ContentFault::CompressionType),
        }
    }
}

fn is_json(content_type: &str) -> bool {
    let (mime, parameter) = content_type.split_once(';').unwrap_or((content_type, "charset=utf-8"));
    mime.trim().eq_ignore_ascii_case(CONTENT_TYPE) && parameter.trim().eq_ignore_ascii_case("charset=utf-8")
}

fn refused(content_type: &str) -> ContentFault {
    match content_type {
        "application/x-python-serialize" => ContentFault::Serializer("pickle"),
        "application/x-yaml" => ContentFault::Serializer("yaml"),
        "application/x-msgpack" => ContentFault::Serializer("msgpack"),
        other => ContentFault::ContentType(truncate(other, 100).to_owned()),
    }
}

fn inflate(body: &[u8]) -> Result<Vec<u8>, ContentFault> {
    let mut inflated = Vec::new();
    let bound = MAX_INFLATED_BYTES as u64 + 1;
    ZlibDecoder::new(body).take(bound).read_to_end(&mut inflated).map_err(ContentFault::Inflate)?;
    if inflated.len() > MAX_INFLATED_BYTES {
        return Err(ContentFault::TooLarge { max: MAX_INFLATED_BYTES });
    }
    Ok(inflated)
}

/// Headers that a broker adds to what was delivered or dead-lettered, which in a new message would tell of another; and
/// those that it reads as further queues, which closes the channel when they are no arrays.
#[must_use]
pub fn is_of_the_broker(header: &str) -> bool {
    matches!(header, "x-death" | "x-delivery-count" | "x-acquired-count" | "CC" | "BCC")
        || header.starts_with("x-first-death-")
        || header.starts_with("x-last-death-")
}

/// The bytes of headers' names and values, without what types and lengths take on the wire.
#[must_use]
pub fn headers_size<'a>(headers: impl IntoIterator<Item = (&'a String, &'a Value)>) -> usize {
    let bytes = |value: &Value| value.as_str().map_or_else(|| value.to_string().len(), str::len);
    headers.into_iter().map(|(name, value)| name.len() + bytes(value)).sum()
}

/// The longest start of `text` that has at most `max_bytes` bytes and ends at a character's end.
#[must_use]
pub fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::ZlibEncoder};
    use std::io::Write;

    fn of(content_type: &str, compression: Value, body: Vec<u8>) -> Message {
        let mut message = Message { body, ..Message::default() };
        message.properties.content_type = Some(content_type.to_owned());
        message.properties.headers.insert("compression".to_owned(), compression);
        message
    }

    fn deflated(bytes: usize) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&vec![b' '; bytes]).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn json_is_accepted_with_utf_8_only() {
        for good in ["application/json", "Application/JSON", "application/json; charset=utf-8"] {
            assert!(of(good, Value::Null, vec![]).json_body().is_ok(), "{good}");
        }
        for bad in ["", "text/json", "application/json; charset=latin-1", "application/json;", "application/jsonx"] {
            assert!(matches!(of(bad, Value::Null, vec![]).json_body(), Err(ContentFault::ContentType(_))), "{bad}");
        }
    }

    #[test]
    fn other_serializers_and_compressions_are_refused_by_name() {
        let said = |content_type: &str, compression: &str| {
            of(content_type, compression.into(), vec![]).json_body().unwrap_err().to_string()
        };
        assert!(said("application/x-python-serialize", "").contains("pickle"));
        assert!(said("application/x-yaml", "").contains("yaml"));
        assert!(said("application/x-msgpack", "").contains("msgpack"));
        assert!(said("application/json", "application/x-bz2").contains("x-bz2"));
        assert!(said("application/json", "application/x-lzma").contains("x-lzma"));
    }

    #[test]
    fn a_body_inflates_up_to_the_bound_and_not_beyond() {
        let inflate =
            |bytes| of(CONTENT_TYPE, "application/x-gzip".into(), deflated(bytes)).json_body().map(|b| b.len());
        assert_eq!(inflate(MAX_INFLATED_BYTES).unwrap(), MAX_INFLATED_BYTES);
        assert!(matches!(inflate(MAX_INFLATED_BYTES + 1), Err(ContentFault::TooLarge { .. })));
    }

    #[test]
    fn what_is_no_zlib_stream_is_refused() {
        let message = of(CONTENT_TYPE, "application/x-gzip".into(), b"[[],{},{}]".to_vec());
        assert!(matches!(message.json_body(), Err(ContentFault::Inflate(_))));
    }

    #[test]
    fn truncation_ends_at_a_character() {
        assert_eq!(truncate("aé€", 2), "a");
        assert_eq!(truncate("aé€", 3), "aé");
        assert_eq!(truncate("aé€", 100), "aé€");
        assert_eq!(truncate("€", 0), "");
    }
}
