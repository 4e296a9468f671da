//! Why a message is no task.

use crate::message::{ContentFault, MAX_HEADERS_BYTES};

/// A message that is no task, with what is known of it, so that a worker can still answer FAILURE.
#[derive(Debug, thiserror::Error)]
#[error("undecodable task message: {reason}")]
pub struct Undecodable {
    /// The task id, from the headers or from a protocol 1 body.
    pub id: Option<String>,
    /// The task's name, from the same place.
    pub task: Option<String>,
    /// The queue to answer to.
    pub reply_to: Option<String>,
    /// What the answer carries back.
    pub correlation_id: Option<String>,
    /// What is wrong.
    #[source]
    pub reason: DecodeFault,
}

/// What is wrong with a message that should be a task.
#[derive(Debug, thiserror::Error)]
pub enum DecodeFault {
    /// No JSON, or not to be inflated.
    #[error(transparent)]
    Content(#[from] ContentFault),
    /// Celery's first protocol, which has no headers.
    #[error("message protocol 1 is not supported, only protocol 2 is")]
    Protocol1,
    /// All headers together, without those of Errand and the broker, are larger than a message that follows may have.
    #[error("the headers have {0} bytes, {MAX_HEADERS_BYTES} are allowed")]
    HeadersTooLarge(usize),
    /// A header that a worker cannot do without is missing, null or empty.
    #[error("header {0} is missing")]
    HeaderMissing(&'static str),
    /// A header is of another type.
    #[error("header {header} is not {expected}")]
    HeaderType {
        /// Its name.
        header: &'static str,
        /// The type expected, with its article.
        expected: &'static str,
    },
    /// A number is negative or too large.
    #[error("header {0} is out of range")]
    HeaderRange(&'static str),
    /// `eta` or `expires` is no time.
    #[error("header {header} is not a time: {text:?}")]
    HeaderTime {
        /// Its name.
        header: &'static str,
        /// The start of its value.
        text: String,
    },
    /// The retry policy is none.
    #[error("header errand-retry is not a retry policy")]
    RetryPolicy(#[source] serde_json::Error),
    /// The body is not JSON, such as `NaN`, which Python emits.
    #[error("the body is not JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// The body is JSON, but no array.
    #[error("the body is not an array")]
    BodyType,
    /// The body has too few or too many elements.
    #[error("the body has {0} elements instead of 3")]
    BodyLength(usize),
    /// The first element is no array.
    #[error("args is not an array")]
    Args,
    /// The second element is no object.
    #[error("kwargs is not an object")]
    Kwargs,
    /// The third element is neither an object nor null.
    #[error("embed is not an object")]
    Embed,
}
