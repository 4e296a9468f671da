//! What a running handler knows of its run and tells about it, and the worker's end of the same.
//!
//! Progress is one slot that holds the latest report, cancellation one slot that holds the weightiest reason: neither
//! ever blocks a handler or grows. Publishing progress, and how often, is the worker's.

use std::sync::Arc;

use protocol::reply::Progress;
use tokio::sync::watch;
use tokio::time::Instant;

/// Why a run is asked to end, the lightest reason first: a later, weightier reason replaces a lighter one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cancelled {
    /// The worker shuts down. A run that ends within the grace period counts as usual; the task of one that does not
    /// is run again elsewhere.
    Shutdown,
    /// The soft time limit passed; the hard one follows.
    SoftTimeLimit,
    /// The task was revoked, nobody wants its result.
    Revoked,
}

/// What is fixed about a run when it starts.
#[derive(Debug, Clone)]
pub struct ContextParts {
    /// The task's id, the same over all attempts.
    pub task_id: String,
    /// The attempt (Celery's `retries`), from 0.
    pub attempt: u32,
    /// The name of the worker that runs it.
    pub worker: String,
    /// When the hard time limit ends the run.
    pub deadline: Option<Instant>,
}

/// A handler's view of its run. Clones share it.
#[derive(Debug, Clone)]
pub struct Context {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    parts: ContextParts,
    progress: watch::Sender<Option<Progress>>,
    cancelled: watch::Receiver<Option<Cancelled>>,
}

/// The worker's end of a [`Context`].
#[derive(Debug)]
pub struct ContextControl {
    progress: watch::Receiver<Option<Progress>>,
    cancelled: watch::Sender<Option<Cancelled>>,
}

impl Context {
    /// A context and its control. Dropping the control cancels nothing.
    #[must_use]
    pub fn new(parts: ContextParts) -> (Self, ContextControl) {
        let (progress, reported) = watch::channel(None);
        let (cancel, cancelled) = watch::channel(None);
        let shared = Arc::new(Shared { parts, progress, cancelled });
        (Self { shared }, ContextControl { progress: reported, cancelled: cancel })
    }

    /// A context to test a handler with: no broker, no deadline, and the control to cancel it and read its progress.
    #[must_use]
    pub fn for_test(task_id: impl Into<String>, attempt: u32) -> (Self, ContextControl) {
        Self::new(ContextParts { task_id: task_id.into(), attempt, worker: "test".to_owned(), deadline: None })
    }

    /// The task's id, the same over all attempts.
    #[must_use]
    pub fn task_id(&self) -> &str {
        &self.shared.parts.task_id
    }

    /// The attempt (Celery's `retries`), from 0.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.shared.parts.attempt
    }

    /// The name of the worker that runs this.
    #[must_use]
    pub fn worker(&self) -> &str {
        &self.shared.parts.worker
    }

    /// When the hard time limit ends the run, whatever the handler does.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.shared.parts.deadline
    }

    /// Reports progress. Only the latest report counts, so it may be called as often as is convenient.
    pub fn progress(&self, current: u64, total: impl Into<Option<u64>>) {
        self.report(Progress { current, total: total.into(), message: None });
    }

    /// Reports progress with a line for people to read.
    pub fn progress_message(&self, current: u64, total: impl Into<Option<u64>>, message: impl Into<String>) {
        self.report(Progress { current, total: total.into(), message: Some(message.into()) });
    }

    fn report(&self, progress: Progress) {
        self.shared.progress.send_replace(Some(progress));
    }

    /// Why the run is asked to end, `None` while it is not.
    #[must_use]
    pub fn is_cancelled(&self) -> Option<Cancelled> {
        *self.shared.cancelled.borrow()
    }

    /// Waits until the run is asked to end, for whatever reason. Cancel safe.
    pub async fn cancelled(&self) -> Cancelled {
        self.cancelled_by(|_| true).await
    }

    /// Waits until the run is asked to end for a reason that counts. Cancel safe.
    ///
    /// For a handler that lets a shutdown's grace period run: `cancelled_by(|reason| reason != Cancelled::Shutdown)`.
    pub async fn cancelled_by(&self, counts: impl Fn(Cancelled) -> bool) -> Cancelled {
        let mut reasons = self.shared.cancelled.clone();
        let reason = reasons.wait_for(|reason| reason.is_some_and(&counts)).await.ok().and_then(|reason| *reason);
        match reason {
            Some(reason) => reason,
            // Nobody holds the control any more, so nobody can ask.
            None => std::future::pending().await,
        }
    }
}

impl ContextControl {
    /// Asks the run to end. A reason that weighs no more than the present one changes nothing.
    pub fn cancel(&self, reason: Cancelled) {
        self.cancelled.send_if_modified(|present| {
            let weightier = *present < Some(reason);
            if weightier {
                *present = Some(reason);
            }
            weightier
        });
    }

    /// Why the run was asked to end, `None` when it was not.
    #[must_use]
    pub fn is_cancelled(&self) -> Option<Cancelled> {
        *self.cancelled.borrow()
    }

    /// The latest progress. It closes when the handler has dropped its context.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Option<Progress>> {
        self.progress.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn the_latest_progress_is_what_the_worker_sees() {
        let (ctx, control) = Context::for_test("t", 0);
        assert_eq!(*control.progress().borrow(), None);
        ctx.progress(1, 10);
        ctx.progress_message(2, None, "halfway");
        let latest = Progress { current: 2, total: None, message: Some("halfway".to_owned()) };
        assert_eq!(*control.progress().borrow(), Some(latest));
    }

    #[test]
    fn progress_outlives_the_control_and_ends_with_the_context() {
        let (ctx, control) = Context::for_test("t", 0);
        let progress = control.progress();
        drop(control);
        ctx.clone().progress(1, 2);
        assert!(progress.has_changed().unwrap());
        drop(ctx);
        assert!(progress.has_changed().is_err());
    }

    #[tokio::test]
    async fn every_clone_hears_of_a_cancellation() {
        let (ctx, control) = Context::for_test("t", 0);
        let clone = ctx.clone();
        let (reason, ()) = tokio::join!(clone.cancelled(), async { control.cancel(Cancelled::Revoked) });
        assert_eq!((reason, ctx.is_cancelled()), (Cancelled::Revoked, Some(Cancelled::Revoked)));
    }

    #[test]
    fn a_weightier_reason_replaces_a_lighter_one_only() {
        let (ctx, control) = Context::for_test("t", 0);
        for (reason, then) in [
            (Cancelled::Shutdown, Cancelled::Shutdown),
            (Cancelled::SoftTimeLimit, Cancelled::SoftTimeLimit),
            (Cancelled::Shutdown, Cancelled::SoftTimeLimit),
            (Cancelled::Revoked, Cancelled::Revoked),
        ] {
            control.cancel(reason);
            assert_eq!((ctx.is_cancelled(), control.is_cancelled()), (Some(then), Some(then)));
        }
    }

    #[test]
    fn a_reason_that_does_not_count_is_waited_out() {
        let (ctx, control) = Context::for_test("t", 0);
        let ended = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown);
        tokio::pin!(ended);
        control.cancel(Cancelled::Shutdown);
        assert_eq!(ended.as_mut().now_or_never(), None);
        control.cancel(Cancelled::SoftTimeLimit);
        assert_eq!(ended.now_or_never(), Some(Cancelled::SoftTimeLimit));
    }

    #[test]
    fn a_dropped_control_cancels_nothing() {
        let (ctx, _) = Context::for_test("t", 3);
        assert_eq!(ctx.cancelled().now_or_never(), None);
        assert_eq!((ctx.task_id(), ctx.attempt(), ctx.worker(), ctx.deadline()), ("t", 3, "test", None));
    }
}
