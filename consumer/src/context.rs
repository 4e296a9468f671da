//! What a running handler knows of its run and tells about it, and the worker's end of the same.
//!
//! Progress is one slot that holds the latest report, cancellation one slot that holds the weightiest reason: neither
//! ever blocks a handler or grows. Publishing progress, and how often, is the worker's. A child is submitted when the
//! worker has said so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::message::truncate;
use protocol::reply::Progress;
use protocol::task::child_id;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::signature::{Signature, SubmitError};

/// Submissions that wait for the worker to take them up.
const SUBMISSIONS: usize = 16;
/// A longer line of progress is cut.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Why a run is asked to end, the lightest reason first: a later, weightier reason replaces a lighter one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// The task's name.
    pub task: String,
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
    submissions: mpsc::Sender<Submission>,
    /// How often the same call was submitted in this run, by the id that the first of them has.
    repeated: Mutex<HashMap<Uuid, u32>>,
    /// All reports of progress, in tests of a handler only.
    recorded: Option<Mutex<Vec<Progress>>>,
}

/// The worker's end of a [`Context`].
#[derive(Debug)]
pub struct ContextControl {
    progress: watch::Receiver<Option<Progress>>,
    cancelled: watch::Sender<Option<Cancelled>>,
}

/// A child that a handler submits, and where to say what became of it.
#[derive(Debug)]
pub struct Submission {
    /// The child's id.
    pub task_id: String,
    /// The call, checked. Boxed: a run has room for some of them, and mostly none.
    pub signature: Box<Signature>,
    /// What the handler waits for.
    pub done: oneshot::Sender<Result<(), SubmitError>>,
}

impl Context {
    /// A context, its control, and the children that are submitted through it. Dropping the control cancels nothing;
    /// after the receiver is dropped nothing can be submitted.
    #[must_use]
    pub fn new(parts: ContextParts) -> (Self, ContextControl, mpsc::Receiver<Submission>) {
        Self::build(parts, None)
    }

    /// The same, and every report of progress is kept.
    pub(crate) fn recording(parts: ContextParts) -> (Self, ContextControl, mpsc::Receiver<Submission>) {
        Self::build(parts, Some(Mutex::default()))
    }

    fn build(
        parts: ContextParts,
        recorded: Option<Mutex<Vec<Progress>>>,
    ) -> (Self, ContextControl, mpsc::Receiver<Submission>) {
        let (progress, reported) = watch::channel(None);
        let (cancel, cancelled) = watch::channel(None);
        let (submissions, submitted) = mpsc::channel(SUBMISSIONS);
        let repeated = Mutex::default();
        let shared = Arc::new(Shared { parts, progress, cancelled, submissions, repeated, recorded });
        (Self { shared }, ContextControl { progress: reported, cancelled: cancel }, submitted)
    }

    /// The task's id, the same over all attempts.
    #[must_use]
    pub fn task_id(&self) -> &str {
        &self.shared.parts.task_id
    }

    /// A key for services that do a request once a key: the same over all attempts of the task, and no other task's.
    #[must_use]
    pub fn idempotency_key(&self) -> &str {
        &self.shared.parts.task_id
    }

    /// The task's name.
    #[must_use]
    pub fn task(&self) -> &str {
        &self.shared.parts.task
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

    /// What is left until the hard time limit.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Submits a child task and returns its id. When this returns the child is safe: it will run even if this attempt
    /// fails, and before this task's result is published.
    ///
    /// The id follows from this task's id and the call, so that the next attempt, or a second run after a failure,
    /// submits the same children again without doubling them. Two equal calls in one run are two children.
    ///
    /// A child of a task that came over HTTP is a task of its own there, with this one as parent. A child of a task that a
    /// Celery client sent is published to its queue, and nobody hears of its result. Since nobody keeps such children, a
    /// second run doubles them, though with the same ids; one for a queue that does not exist becomes a dead letter.
    ///
    /// # Errors
    /// The signature cannot be used, or the broker does not take it.
    pub async fn submit(&self, signature: Signature) -> Result<String, SubmitError> {
        signature.check()?;
        let task_id = signature.task_id.clone().unwrap_or_else(|| self.child_id(&signature));
        let gone = || SubmitError::Unavailable("the run has ended".to_owned());
        let (done, answer) = oneshot::channel();
        let submission = Submission { task_id: task_id.clone(), signature: Box::new(signature), done };
        self.shared.submissions.send(submission).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())??;
        Ok(task_id)
    }

    /// For whoever passes on what a handler in another process submits.
    pub(crate) fn submissions(&self) -> mpsc::Sender<Submission> {
        self.shared.submissions.clone()
    }

    fn child_id(&self, signature: &Signature) -> String {
        let call = serde_json::to_vec(signature).unwrap_or_default();
        let first = child_id(self.task_id(), &call);
        let mut repeated = self.shared.repeated.lock().unwrap_or_else(PoisonError::into_inner);
        let times = repeated.entry(first).or_default();
        let id = if *times == 0 { first } else { Uuid::new_v5(&first, &times.to_be_bytes()) };
        *times += 1;
        id.to_string()
    }

    /// Reports progress. Only the latest report counts, so it may be called as often as is convenient.
    pub fn progress(&self, current: u64, total: impl Into<Option<u64>>) {
        self.report(Progress { current, total: total.into(), message: None });
    }

    /// Reports progress with a line for people to read, of at most 4 KiB.
    pub fn progress_message(&self, current: u64, total: impl Into<Option<u64>>, message: impl Into<String>) {
        let mut message = message.into();
        message.truncate(truncate(&message, MAX_MESSAGE_BYTES).len());
        self.report(Progress { current, total: total.into(), message: Some(message) });
    }

    pub(crate) fn report(&self, progress: Progress) {
        if let Some(recorded) = &self.shared.recorded {
            recorded.lock().unwrap_or_else(PoisonError::into_inner).push(progress.clone());
        }
        self.shared.progress.send_replace(Some(progress));
    }

    /// Every report so far; none unless it is [recording](Self::recording).
    pub(crate) fn recorded(&self) -> Vec<Progress> {
        let recorded = self.shared.recorded.as_ref();
        recorded.map(|all| all.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
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

    fn new() -> (Context, ContextControl) {
        let (task_id, task, worker) = ("t".to_owned(), "task".to_owned(), "w".to_owned());
        let parts = ContextParts { task_id, task, attempt: 3, worker, deadline: None };
        let (context, control, _) = Context::new(parts);
        (context, control)
    }

    #[test]
    fn the_latest_progress_is_what_the_worker_sees() {
        let (ctx, control) = new();
        assert_eq!(*control.progress().borrow(), None);
        ctx.progress(1, 10);
        ctx.progress_message(2, None, "halfway");
        let latest = Progress { current: 2, total: None, message: Some("halfway".to_owned()) };
        assert_eq!(*control.progress().borrow(), Some(latest));
    }

    #[test]
    fn progress_outlives_the_control_and_ends_with_the_context() {
        let (ctx, control) = new();
        let progress = control.progress();
        drop(control);
        ctx.clone().progress(1, 2);
        assert!(progress.has_changed().unwrap());
        drop(ctx);
        assert!(progress.has_changed().is_err());
    }

    #[tokio::test]
    async fn every_clone_hears_of_a_cancellation() {
        let (ctx, control) = new();
        let clone = ctx.clone();
        let (reason, ()) = tokio::join!(clone.cancelled(), async { control.cancel(Cancelled::Revoked) });
        assert_eq!((reason, ctx.is_cancelled()), (Cancelled::Revoked, Some(Cancelled::Revoked)));
    }

    #[test]
    fn a_weightier_reason_replaces_a_lighter_one_only() {
        let (ctx, control) = new();
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
        let (ctx, control) = new();
        let ended = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown);
        tokio::pin!(ended);
        control.cancel(Cancelled::Shutdown);
        assert_eq!(ended.as_mut().now_or_never(), None);
        control.cancel(Cancelled::SoftTimeLimit);
        assert_eq!(ended.now_or_never(), Some(Cancelled::SoftTimeLimit));
    }

    #[test]
    fn a_dropped_control_cancels_nothing() {
        let (ctx, _) = new();
        assert_eq!(ctx.cancelled().now_or_never(), None);
        assert_eq!((ctx.task_id(), ctx.attempt(), ctx.worker(), ctx.deadline()), ("t", 3, "w", None));
    }

    #[test]
    fn a_child_has_the_same_id_in_every_attempt_and_another_one_for_every_call() {
        let ids = |context: &Context| {
            [Signature::new("a").arg(1), Signature::new("a").arg(2), Signature::new("a").arg(1)]
                .map(|call| context.child_id(&call))
        };
        let first = ids(&new().0);
        assert_eq!(first, ids(&new().0));
        assert!(first[0] != first[1] && first[0] != first[2]);
    }

    #[tokio::test]
    async fn a_child_is_submitted_when_the_worker_says_so() {
        let parts = ContextParts { task_id: "t".to_owned(), ..new().0.shared.parts.clone() };
        let (context, _control, mut submitted) = Context::new(parts);
        let worker = async {
            let Submission { task_id, done, .. } = submitted.recv().await.unwrap();
            done.send(Ok(())).unwrap();
            task_id
        };
        let (id, told) = tokio::join!(context.submit(Signature::new("a")), worker);
        assert_eq!(id.unwrap(), told);
        drop(submitted);
        let error = context.submit(Signature::new("a")).await.unwrap_err();
        assert!(matches!(error, SubmitError::Unavailable(_)));
    }
}
