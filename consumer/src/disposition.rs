//! What becomes of a task after an attempt: one pure function of (outcome, policy, attempt).

use std::time::Duration;

use protocol::message::truncate;
use protocol::reply::ErrorInfo;
use protocol::retry::RetryPolicy;
use serde_json::value::RawValue;

use crate::handler::TaskError;

/// A longer error message is cut.
const MAX_ERROR_BYTES: usize = 512 * 1024;

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// The handler returned.
    Returned(Box<RawValue>),
    /// The handler failed, or was never right for the arguments.
    Failed(TaskError),
    /// The handler panicked; with its words.
    Panicked(String),
    /// The handler returned so many bytes of JSON, more than could be taken in.
    TooLarge(usize),
    /// The process that ran it alone died; how.
    Died(String),
    /// It ran longer than its hard limit.
    TimeLimitExceeded(Duration),
    /// No handler of that name is registered here.
    NotRegistered(String),
    /// It expired before it started.
    Expired,
    /// It was revoked, and was not started, or ended for that; with the reason.
    Revoked(String),
}

/// What is to be done about it.
#[derive(Debug)]
pub enum Disposition {
    /// Publish the result.
    Succeed(Box<RawValue>),
    /// Publish the next attempt, due after `wait`.
    Retry {
        /// Why this attempt failed.
        error: ErrorInfo,
        /// How long to wait.
        wait: Duration,
    },
    /// Publish a dead letter and the failure.
    GiveUp(ErrorInfo),
    /// Publish that nobody wants it any more.
    Revoke(String),
    /// Give the message back: this attempt does not count.
    Requeue,
}

/// Decides. `random` is 0 to 1, for the jitter.
///
/// Errors of the handler and panics are retried while the policy grants it; what the next attempt would only meet again
/// (a time limit, an unknown task, wrong arguments, a result that is too large, a process that died) is given up at once.
#[must_use]
pub fn decide(
    outcome: Outcome,
    policy: &RetryPolicy,
    retries: u32,
    max_result_bytes: usize,
    random: f64,
) -> Disposition {
    let retry = |error: ErrorInfo, delay: Option<Duration>| {
        if retries >= policy.max_retries {
            return Disposition::GiveUp(error);
        }
        Disposition::Retry { error, wait: delay.unwrap_or_else(|| policy.delay(retries, random)) }
    };
    let too_large = |bytes| {
        let message = format!("the result has {bytes} bytes, {max_result_bytes} are allowed");
        Disposition::GiveUp(ErrorInfo::new("ResultTooLarge", message))
    };
    match outcome {
        Outcome::Returned(result) if result.get().len() > max_result_bytes => too_large(result.get().len()),
        Outcome::TooLarge(bytes) => too_large(bytes),
        Outcome::Died(how) => Disposition::GiveUp(ErrorInfo::new("WorkerLost", how)),
        Outcome::Returned(result) => Disposition::Succeed(result),
        Outcome::Failed(TaskError::Retry { error, delay }) => retry(error, delay),
        Outcome::Failed(TaskError::Fail { error }) => Disposition::GiveUp(error),
        Outcome::Failed(TaskError::Interrupted { .. }) => Disposition::Requeue,
        Outcome::Panicked(message) => retry(ErrorInfo::new("Panic", message), None),
        Outcome::TimeLimitExceeded(limit) => Disposition::GiveUp(ErrorInfo::new(
            "TimeLimitExceeded",
            format!("ran longer than {} s", limit.as_secs_f64()),
        )),
        Outcome::NotRegistered(task) => Disposition::GiveUp(ErrorInfo::new("NotRegistered", task)),
        Outcome::Expired => Disposition::Revoke("expired".to_owned()),
        Outcome::Revoked(reason) => Disposition::Revoke(reason),
    }
}

/// The error with a message that a reply can carry.
#[must_use]
pub(crate) fn bounded(mut error: ErrorInfo) -> ErrorInfo {
    error.message.truncate(truncate(&error.message, MAX_ERROR_BYTES).len());
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Cancelled;
    use proptest::prelude::*;

    const POLICY: RetryPolicy = RetryPolicy { max_retries: 3, backoff: 1.0, backoff_max: 600.0, jitter: false };

    fn at(outcome: Outcome, retries: u32) -> Disposition {
        decide(outcome, &POLICY, retries, 10, 0.0)
    }

    #[test]
    fn an_error_is_retried_with_growing_waits_and_then_given_up() {
        for (retries, expected) in [(0, Some(1)), (1, Some(2)), (2, Some(4)), (3, None), (9, None)] {
            let wait = match at(Outcome::Failed(TaskError::retry("E", "m")), retries) {
                Disposition::Retry { wait, .. } => Some(wait.as_secs()),
                Disposition::GiveUp(error) => {
                    assert_eq!(error.kind, "E");
                    None
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(wait, expected, "attempt {retries}");
        }
    }

    #[test]
    fn a_handler_may_choose_the_wait_but_not_the_number() {
        let error = || Outcome::Failed(TaskError::retry("E", "m").after(Duration::from_secs(77)));
        assert!(matches!(at(error(), 0), Disposition::Retry { wait, .. } if wait.as_secs() == 77));
        assert!(matches!(at(error(), 3), Disposition::GiveUp(_)));
    }

    #[test]
    fn what_would_only_happen_again_is_given_up_at_once() {
        let outcomes = [
            (Outcome::Failed(TaskError::fail("Bad", "m")), "Bad"),
            (Outcome::TimeLimitExceeded(Duration::from_secs(1)), "TimeLimitExceeded"),
            (Outcome::NotRegistered("ghost".into()), "NotRegistered"),
            (Outcome::TooLarge(11), "ResultTooLarge"),
            (Outcome::Died("signal 6".into()), "WorkerLost"),
            (Outcome::Returned(RawValue::from_string("\"0123456789\"".into()).unwrap()), "ResultTooLarge"),
        ];
        for (outcome, kind) in outcomes {
            assert!(matches!(at(outcome, 0), Disposition::GiveUp(error) if error.kind == kind), "{kind}");
        }
    }

    #[test]
    fn a_panic_is_an_error_and_an_expired_task_is_revoked() {
        assert!(matches!(at(Outcome::Panicked("boom".into()), 0), Disposition::Retry { .. }));
        assert!(matches!(at(Outcome::Failed(Cancelled::Shutdown.into()), 3), Disposition::Requeue));
        assert!(matches!(at(Outcome::Expired, 0), Disposition::Revoke(reason) if reason == "expired"));
        let result = RawValue::from_string("42".into()).unwrap();
        assert!(matches!(at(Outcome::Returned(result), 0), Disposition::Succeed(result) if result.get() == "42"));
    }

    proptest! {
        #[test]
        fn no_task_has_more_attempts_than_its_policy_grants(max_retries in 0..50_u32, retries in 0..100_u32) {
            let policy = RetryPolicy { max_retries, ..POLICY };
            let outcome = Outcome::Failed(TaskError::retry("E", "m"));
            let retried = matches!(decide(outcome, &policy, retries, 10, 0.5), Disposition::Retry { .. });
            prop_assert_eq!(retried, retries < max_retries);
        }
    }
}
