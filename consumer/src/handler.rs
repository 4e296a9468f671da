//! What a task is to the person who writes one: the [`Handler`] trait and the error that says what becomes of the task.
//!
//! It knows nothing of messages or of the worker. Whether a failed attempt is really retried is the policy's decision.

use std::time::Duration;

use protocol::reply::ErrorInfo;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::context::{Cancelled, Context};
use crate::options::TaskOptions;
use crate::signature::Signature;

/// One kind of task.
pub trait Handler: Send + Sync + 'static {
    /// The task's name on the wire and in the registry (Celery's task name).
    const NAME: &'static str;

    /// Where it runs, its limits, its retries.
    const OPTIONS: TaskOptions = TaskOptions::new();

    /// The arguments: positional ones fill a struct's fields in declaration order, the others go by name
    /// (see [`from_call`](crate::args::from_call)). `()` takes none. Its doc comments are the task's documentation.
    type Args: DeserializeOwned + JsonSchema + Send + 'static;

    /// The result, which becomes JSON.
    type Output: Serialize + JsonSchema + Send + 'static;

    /// Runs one attempt. It may run more than once with the same [`task_id`](Context::task_id).
    ///
    /// # Errors
    /// A [`TaskError`] says whether another attempt may help. `?` on any other error says that it may.
    fn run(&self, args: Self::Args, ctx: Context) -> impl Future<Output = Result<Self::Output, TaskError>> + Send;

    /// A call of this task with these arguments by name, for [`Context::submit`]. `Args` must be a struct with named
    /// fields.
    fn signature(args: &Self::Args) -> Signature
    where
        Self::Args: Serialize,
    {
        Signature::with(Self::NAME, args)
    }
}

/// A failed attempt, and what becomes of the task.
///
/// Any [`std::error::Error`] converts into [`Retry`](Self::Retry), so `?` does what most handlers want. For that
/// conversion's sake it is not an `Error` itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum TaskError {
    /// The attempt failed; the task's policy may grant another.
    Retry {
        /// Why.
        error: ErrorInfo,
        /// How long to wait before the next attempt, instead of the policy's backoff.
        delay: Option<Duration>,
    },
    /// The task failed, and no other attempt would change it.
    Fail {
        /// Why.
        error: ErrorInfo,
    },
    /// The worker shuts down and the handler ended early: the attempt does not count, another worker runs it again.
    Interrupted {
        /// Why.
        error: ErrorInfo,
    },
}

impl TaskError {
    /// A failed attempt that may be retried; `kind` is the bare name that clients see as the error's type.
    #[must_use]
    pub fn retry(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Retry { error: error_info(kind.into(), message.into()), delay: None }
    }

    /// A failure at once; `kind` is the bare name that clients see as the error's type.
    #[must_use]
    pub fn fail(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Fail { error: error_info(kind.into(), message.into()) }
    }

    /// The same error with its own delay before the next attempt. What is not to be retried stays as it is.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        match self {
            Self::Retry { error, .. } => Self::Retry { error, delay: Some(delay) },
            other => other,
        }
    }

    /// [`Retry`](Self::Retry) from an `anyhow` error, as in `.map_err(TaskError::from_anyhow)?`. The type that it hides
    /// is unknown, so its kind is `Error`.
    #[must_use]
    pub fn from_anyhow(error: anyhow::Error) -> Self {
        Self::retry(UNNAMED, chain(&*error.into_boxed_dyn_error()))
    }

    /// The same with another error.
    pub(crate) fn map(self, to: impl FnOnce(ErrorInfo) -> ErrorInfo) -> Self {
        match self {
            Self::Retry { error, delay } => Self::Retry { error: to(error), delay },
            Self::Fail { error } => Self::Fail { error: to(error) },
            Self::Interrupted { error } => Self::Interrupted { error: to(error) },
        }
    }

    /// Why it failed.
    #[must_use]
    pub const fn error(&self) -> &ErrorInfo {
        match self {
            Self::Retry { error, .. } | Self::Fail { error } | Self::Interrupted { error } => error,
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self::retry(bare_name(std::any::type_name::<E>()), chain(&error))
    }
}

impl From<Cancelled> for TaskError {
    /// For a handler that ends because it was asked to. Only a shutdown leaves something to try again.
    fn from(reason: Cancelled) -> Self {
        match reason {
            Cancelled::Shutdown => {
                let message = "the worker shut down before the task had ended";
                Self::Interrupted { error: error_info("WorkerShutdown".to_owned(), message.to_owned()) }
            }
            Cancelled::SoftTimeLimit => Self::fail("SoftTimeLimitExceeded", "the soft time limit passed"),
            Cancelled::Revoked => Self::fail("TaskRevoked", "the task was revoked while it ran"),
        }
    }
}

/// The kind of an error that has no name to show.
const UNNAMED: &str = "Error";

/// A client never sees an empty type or message.
fn error_info(kind: String, message: String) -> ErrorInfo {
    let kind = if kind.is_empty() { UNNAMED.to_owned() } else { kind };
    let message = if message.trim().is_empty() { kind.clone() } else { message };
    ErrorInfo { kind, message, traceback: None }
}

/// `alloc::string::FromUtf8Error` → `FromUtf8Error`, generic parameters dropped.
fn bare_name(path: &str) -> &str {
    let path = path.split('<').next().unwrap_or_default();
    path.rsplit("::").next().unwrap_or_default()
}

/// The error and its sources, outermost first, joined by `: `.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut message = error.to_string();
    let sources = std::iter::successors(error.source(), |error| error.source());
    for source in sources.map(ToString::to_string) {
        // Many errors already end in their source's message.
        if !message.ends_with(&source) {
            message = if message.is_empty() { source } else { format!("{message}: {source}") };
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the order")]
    struct Wrapped<T: std::fmt::Debug>(#[source] std::num::ParseIntError, T);

    #[derive(Debug, thiserror::Error)]
    #[error("")]
    struct Silent;

    fn parse(text: &str) -> Result<u8, TaskError> {
        Ok(text.parse::<u8>()?)
    }

    fn info(error: &TaskError) -> (&str, &str) {
        (&error.error().kind, &error.error().message)
    }

    #[test]
    fn a_question_mark_makes_a_retry_named_after_the_error() {
        let error = parse("x").unwrap_err();
        assert!(matches!(error, TaskError::Retry { delay: None, .. }));
        assert_eq!(info(&error), ("ParseIntError", "invalid digit found in string"));
    }

    #[test]
    fn the_message_joins_the_sources_and_the_kind_drops_generics() {
        let source = "x".parse::<u8>().unwrap_err();
        let error = TaskError::from(Wrapped(source, Some(std::marker::PhantomData::<String>)));
        assert_eq!(info(&error), ("Wrapped", "cannot read the order: invalid digit found in string"));
    }

    #[test]
    fn type_and_message_are_never_empty() {
        assert_eq!(info(&TaskError::from(Silent)), ("Silent", "Silent"));
        assert_eq!(info(&TaskError::fail("", " ")), ("Error", "Error"));
    }

    #[test]
    fn anyhow_keeps_its_context() {
        let error = anyhow::Error::from(Silent).context("inner").context("outer");
        assert_eq!(info(&TaskError::from_anyhow(error)), ("Error", "outer: inner"));
    }

    #[test]
    fn only_a_retry_has_a_delay() {
        let second = Duration::from_secs(1);
        let retry = TaskError::retry("Busy", "try later").after(second);
        assert!(matches!(retry, TaskError::Retry { delay: Some(delay), .. } if delay == second));
        assert!(matches!(TaskError::fail("Gone", "no such order").after(second), TaskError::Fail { .. }));
    }
}
