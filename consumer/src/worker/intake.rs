//! Takes deliveries in: decodes, sends on what is not due, admits the rest and starts their runs.

use std::sync::Arc;
use std::time::Duration;

use protocol::amqp::Delivery;
use protocol::faults::{Bug, Point, bug, point};
use protocol::message::Message;
use protocol::reply::ErrorInfo;
use protocol::retry::RetryPolicy;
use protocol::task::{Task, Undecodable};
use protocol::trace;
use protocol::workflow;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::Worker;
use super::gates::{Entry, Place};
use super::run::Attempt;
use super::runs::{Admission, Key};
use super::settle::{Due, Followup, Origin, UNSUPPORTED_WORKFLOW, settle};
use crate::disposition::{Disposition, Outcome, decide};
use crate::handler::TaskError;
use crate::registry::ErasedHandler;

/// Waits shorter than this are held here; the broker's shortest delay is a second.
const HOLD: Duration = Duration::from_secs(1);
/// When an attempt that came to nothing is made again.
const AGAIN: Duration = Duration::from_secs(4);

pub(super) struct Intake {
    worker: Arc<Worker>,
}

impl Intake {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self { worker }
    }

    /// Takes in until the deliveries end. After `stop` they go back at once, for another worker.
    pub(super) async fn run(self, mut deliveries: mpsc::Receiver<Delivery>) {
        while let Some(delivery) = deliveries.recv().await {
            let queue = self.worker.config.topology.queue_of(&delivery.queue);
            if *delivery.queue == *self.worker.remote.queue() {
                self.hear(delivery);
            } else if self.worker.stop.is_cancelled() {
                settle(vec![delivery], Due::Requeue);
            } else if self.worker.remote.is_paused(queue) {
                self.worker.tracker.spawn(give_back(self.worker.clone(), delivery));
            } else if trace::is_tracer(&delivery.message) {
                self.answer(delivery);
            } else {
                self.take(delivery);
            }
        }
    }

    /// The id is known as revoked before its runs are cancelled: one that starts in between finds it there.
    fn hear(&self, delivery: Delivery) {
        for revocation in self.worker.remote.hear(&delivery.message) {
            self.worker.runs.revoke(&revocation);
        }
        settle(vec![delivery], Due::Ack);
    }

    /// At once, however much there is to do: a tracer says that all before it is here.
    fn answer(&self, delivery: Delivery) {
        self.worker.settle.answer(&delivery.message);
        self.worker.traced.notify_one();
        settle(vec![delivery], Due::Ack);
    }

    fn take(&self, mut delivery: Delivery) {
        self.worker.counts.deliveries.increment(1);
        // The run keeps the message, the delivery only settles it: a redelivery brings nothing new.
        let mut message = std::mem::take(&mut delivery.message);
        let queue = self.worker.config.topology.queue_of(&delivery.queue).to_owned();
        match Task::decode(&message) {
            Ok(task) => {
                // Whatever follows this message has its headers.
                let headers = &mut message.properties.headers;
                self.worker.settle.redactions.apply(headers, &task.task, &task.args, &task.kwargs);
                self.admit(task, message, queue, delivery);
            }
            Err(unreadable) => {
                if let Some(task) = &unreadable.task {
                    let headers = &mut message.properties.headers;
                    self.worker.settle.redactions.apply(headers, task, RawValue::NULL, RawValue::NULL);
                }
                let work = give_up_unread(self.worker.clone(), unreadable, message, queue, delivery);
                self.worker.tracker.spawn(work);
            }
        }
    }

    fn admit(&self, task: Task, message: Message, queue: String, delivery: Delivery) {
        let key = Key::of(&task);
        let redelivered = delivery.redelivered;
        match self.worker.runs.admit(&key, delivery, redelivered) {
            Admission::Start => {
                self.worker.tracker.spawn(life(self.worker.clone(), key, task, message, queue));
            }
            Admission::Joined => tracing::debug!(task_id = %key.task_id, "delivered again while it runs"),
            Admission::Done(delivery) => {
                tracing::debug!(task_id = %key.task_id, "delivered again after it was done");
                settle(vec![*delivery], Due::Ack);
            }
        }
    }
}

/// What was prefetched of a paused queue goes back once the queue is left, for when it is resumed.
async fn give_back(worker: Arc<Worker>, delivery: Delivery) {
    let queue = worker.config.topology.queue_of(&delivery.queue).to_owned();
    if worker.stop.run_until_cancelled(worker.remote.left(&queue)).await.is_none() {
        tracing::debug!(%queue, "the worker ends before the queue is left");
    }
    settle(vec![delivery], Due::Requeue);
}

/// One attempt from admission to ack.
async fn life(worker: Arc<Worker>, key: Key, task: Task, message: Message, queue: String) {
    let ending = Ending { worker: &worker, key: Some(&key) };
    let seen = worker.celery.received(&key, &task, &message, &queue);
    if bug(Bug::AckBeforeResult) {
        settle(worker.runs.end(&key), Due::Ack);
    }
    let due = worker.abandon.run_until_cancelled(attempt(&worker, &key, &task, &message, &queue)).await;
    let Some(due) = due else { return };
    if due == Due::Ack {
        worker.runs.remember(&key);
    }
    // Before its key is free for a copy that comes back.
    drop(seen);
    settle(ending.end(), due);
}

/// Ends the run however its task ends: a key that stayed would swallow every redelivery.
struct Ending<'a> {
    worker: &'a Worker,
    key: Option<&'a Key>,
}

impl Ending<'_> {
    /// The deliveries to settle. Once only: afterwards the key may be another run's.
    fn end(mut self) -> Vec<Delivery> {
        self.key.take().map(|key| self.worker.runs.end(key)).unwrap_or_default()
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            drop(self.worker.runs.end(key));
        }
    }
}

async fn attempt(worker: &Arc<Worker>, key: &Key, task: &Task, message: &Message, queue: &str) -> Due {
    let origin = Origin { task, message, queue };
    if let Some(due) = refuse_revoked(worker, &origin).await {
        return due;
    }
    let wait = wait_of(task, worker.settle.now(task));
    if wait >= HOLD {
        return worker.settle.publish(&origin, Followup::Forward(wait)).await;
    }
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let handler = match handler_of(worker, task, worker.settle.now(task)) {
        Ok(handler) => handler,
        Err(outcome) => return dispose(worker, &origin, outcome, RetryPolicy::default(), None).await,
    };
    let policy = task.retry.over(handler.options().retry.unwrap_or_default());
    let place = Place::of(handler.options(), message.is_suspect());
    let entered = worker.stop.run_until_cancelled(worker.gates.enter(&task.task, place)).await;
    let pass = match entered {
        None => return Due::Requeue,
        Some(Entry::Later(wait)) => {
            metrics::counter!("errand_sent_back_total", "task" => task.task.clone()).increment(1);
            return worker.settle.publish(&origin, Followup::Forward(wait)).await;
        }
        Some(Entry::Now(pass)) => pass,
    };
    let Ok(slot) = worker.slots.acquire().await else { return Due::Requeue };
    if worker.stop.is_cancelled() {
        return Due::Requeue;
    }
    if worker.remote.is_paused(queue) {
        worker.stop.run_until_cancelled(worker.remote.left(queue)).await;
        return Due::Requeue;
    }
    if let Some(due) = refuse_revoked(worker, &origin).await {
        return due;
    }
    let run = Attempt { worker, key, origin: &origin, handler, place };
    let ran = run.run(pass).await;
    // While its result is on its way another may run.
    drop(slot);
    match ran {
        Ok((outcome, started_at)) => {
            point(Point::RunEnded).await;
            let outcome = unless_stopping(outcome, worker.stop.is_cancelled());
            let outcome = unless_revoked(outcome, worker.remote.revoked(task));
            dispose(worker, &origin, outcome, policy, Some(started_at)).await
        }
        Err(error) => {
            metrics::counter!("errand_void_attempts_total").increment(1);
            tracing::error!(task_id = %task.id, task = %task.task, %error, "an attempt came to nothing and is made again");
            worker.settle.publish(&origin, Followup::Forward(AGAIN)).await
        }
    }
}

async fn dispose(
    worker: &Worker,
    origin: &Origin<'_>,
    outcome: Outcome,
    policy: RetryPolicy,
    started_at: Option<OffsetDateTime>,
) -> Due {
    let retries = origin.task.retries;
    let disposition = decide(outcome, &policy, retries, worker.config.max_result_bytes, fastrand::f64());
    worker.settle.publish(origin, Followup::Disposed(disposition, started_at)).await
}

/// A revoked task is not started, whatever it waited for.
async fn refuse_revoked(worker: &Worker, origin: &Origin<'_>) -> Option<Due> {
    let reason = worker.remote.revoked(origin.task)?;
    let outcome = Outcome::Revoked(reason.to_string());
    Some(dispose(worker, origin, outcome, RetryPolicy::default(), None).await)
}

/// The handler, or why the task is not run at all.
fn handler_of(worker: &Worker, task: &Task, now: OffsetDateTime) -> Result<Arc<dyn ErasedHandler>, Outcome> {
    if task.expires.is_some_and(|expires| expires <= now) {
        return Err(Outcome::Expired);
    }
    if let Err(fault) = workflow::check(task) {
        let message = format!("nothing was run: {fault}");
        return Err(Outcome::Failed(TaskError::fail(UNSUPPORTED_WORKFLOW, message)));
    }
    worker.registry.get(&task.task).ok_or_else(|| Outcome::NotRegistered(task.task.clone()))
}

/// Only a shutdown lets an attempt not count, whatever the handler says; and then a child's death is nobody's fault.
fn unless_stopping(outcome: Outcome, stopping: bool) -> Outcome {
    match outcome {
        Outcome::Failed(TaskError::Interrupted { error }) if !stopping => {
            Outcome::Failed(TaskError::Retry { error, delay: None })
        }
        Outcome::Died(message) if stopping => {
            Outcome::Failed(TaskError::Interrupted { error: ErrorInfo::new("WorkerShutdown", message) })
        }
        outcome => outcome,
    }
}

/// A result that a revoked task's handler returned all the same is told: what it did is done. Any other end is the
/// revocation's, and nothing follows it.
fn unless_revoked(outcome: Outcome, revoked: Option<Arc<str>>) -> Outcome {
    match (outcome, revoked) {
        (outcome @ Outcome::Returned(_), _) | (outcome, None) => outcome,
        (_, Some(reason)) => Outcome::Revoked(reason.to_string()),
    }
}

/// What is left of a delay, or until the `eta` of a client that publishes to our queues itself.
fn wait_of(task: &Task, now: OffsetDateTime) -> Duration {
    let until_eta = task.eta.map(|eta| Duration::try_from(eta - now).unwrap_or_default());
    until_eta.unwrap_or_default().max(task.delay_left.unwrap_or_default())
}

/// A message that cannot be read as a task never will be: it goes to the dead letters with the reason, and whoever
/// waits for its result hears of it.
async fn give_up_unread(
    worker: Arc<Worker>,
    unreadable: Undecodable,
    message: Message,
    queue: String,
    delivery: Delivery,
) {
    tracing::warn!(task_id = unreadable.id, %queue, reason = %unreadable.reason, "a message that is no task");
    let error = ErrorInfo::new("DecodeError", unreadable.reason.to_string());
    let task = stub_of(unreadable);
    let origin = Origin { task: &task, message: &message, queue: &queue };
    let followup = Followup::Disposed(Disposition::GiveUp(error), None);
    if let Some(due) = worker.abandon.run_until_cancelled(worker.settle.publish(&origin, followup)).await {
        settle(vec![delivery], due);
    }
}

/// What is known of a task whose message cannot be read.
fn stub_of(unreadable: Undecodable) -> Task {
    Task {
        id: unreadable.id.unwrap_or_default(),
        task: unreadable.task.unwrap_or_default(),
        reply_to: unreadable.reply_to,
        correlation_id: unreadable.correlation_id,
        ..Task::default()
    }
}
