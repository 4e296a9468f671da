//! Publishes what follows an attempt and waits for the confirm. The ack comes after, so that nothing is lost between.

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use protocol::amqp::{Delivery, Publish, PublishError, Publisher};
use protocol::backoff::Backoff;
use protocol::dead_letter::{Verdict, dead_letter};
use protocol::faults::{Point, point};
use protocol::message::{DELAY, Message, truncate};
use protocol::redaction::Redactions;
use protocol::reply::{ErrorInfo, Reply, Report};
use protocol::task::Task;
use protocol::task::forward::{forward_of, retry_of};
use protocol::timestamp::rfc3339;
use protocol::topology::Topology;
use protocol::trace;
use protocol::workflow::{self, Following, Successor};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::celery::Celery;
use super::clocks::Clocks;
use crate::disposition::{Disposition, bounded};

/// The longest pause between two attempts to publish the same.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a result waits for its producer's reply queue to be declared again. A producer that is gone for good must
/// not hold the worker's slots.
const REPLY_PATIENCE: Duration = Duration::from_mins(1);

/// The type of error of a task that cannot be followed by what its client wants.
pub(super) const UNSUPPORTED_WORKFLOW: &str = "UnsupportedWorkflow";

/// What was received.
pub(super) struct Origin<'a> {
    pub(super) task: &'a Task,
    pub(super) message: &'a Message,
    pub(super) queue: &'a str,
}

/// What follows.
pub(super) enum Followup {
    /// It is not due: it goes on waiting at the broker.
    Forward(Duration),
    /// The attempt ended, which started then or never.
    Disposed(Disposition, Option<OffsetDateTime>),
}

/// What is due to the deliveries of an attempt once everything that follows it was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// They are done with, and so is the attempt.
    Ack,
    /// They are done with; the same attempt is on its way again.
    Forwarded,
    /// They go back to the queue.
    Requeue,
}

/// Settles deliveries. Nothing else acks.
pub(super) fn settle(deliveries: Vec<Delivery>, due: Due) {
    for delivery in deliveries {
        match due {
            Due::Ack | Due::Forwarded => delivery.ack(),
            Due::Requeue => delivery.requeue(),
        }
    }
}

pub(super) struct Settle {
    pub(super) publisher: Publisher,
    pub(super) topology: Topology,
    pub(super) worker: String,
    /// What messages show of their arguments.
    pub(super) redactions: Redactions,
    celery: Arc<Celery>,
    clocks: Arc<Clocks>,
}

/// What an attempt came to, in the order in which it is published.
struct Publishes {
    /// Tasks that follow by their client's wish.
    successors: Vec<Successor>,
    /// The result, the retry or dead letter.
    rest: Vec<Publish>,
}

impl Settle {
    pub(super) fn new(
        publisher: Publisher,
        topology: Topology,
        worker: String,
        redactions: Redactions,
        celery: Arc<Celery>,
        clocks: Arc<Clocks>,
    ) -> Self {
        Self { publisher, topology, worker, redactions, celery, clocks }
    }

    /// The time by which the task's eta and expiry are meant.
    pub(super) fn now(&self, task: &Task) -> OffsetDateTime {
        self.clocks.now(task.reply_to.as_deref())
    }

    /// Publishes all that follows, for as long as it takes: until then the delivery stays unacked. A client that has the
    /// result finds its successors at the broker.
    pub(super) async fn publish(&self, origin: &Origin<'_>, followup: Followup) -> Due {
        let window = match followup {
            Followup::Disposed(Disposition::Retry { .. }, _) => Point::RetryConfirmed,
            _ => Point::SettleConfirmed,
        };
        let (publishes, due) = match followup {
            Followup::Forward(wait) => {
                let mut forward = forward_of(origin.message, wait);
                forward.set_returns(origin.message.returns());
                let forward = self.task_publish(forward, origin.queue);
                (iter::once(forward).chain(held(origin.task, wait)).collect(), Due::Forwarded)
            }
            Followup::Disposed(disposition, started_at) => {
                let Some(publishes) = self.dispose(origin, disposition, started_at) else { return Due::Requeue };
                self.follow(origin.queue, publishes.successors).await;
                (publishes.rest, Due::Ack)
            }
        };
        let durable = origin.task.durable_reply;
        join_all(publishes.into_iter().map(|publish| self.confirmed(publish, durable))).await;
        point(window).await;
        due
    }

    /// Says that a task runs, or how far it is. May be lost.
    pub(super) fn announce(&self, task: &Task, report: Report, seq: u32, started_at: OffsetDateTime) {
        if task.ignore_result {
            return;
        }
        let reply = Reply { seq: Some(seq), ..self.reply(task, report, Some(started_at)) };
        if let Some(mut publish) = reply_publish(task, &reply) {
            publish.message.properties.persistent = false;
            let _ = self.publisher.publish_transient(publish);
        }
    }

    /// Answers a tracer. An answer that is lost is asked for again.
    pub(super) fn answer(&self, tracer: &Message) {
        if let Some((routing_key, message)) = trace::answer(tracer) {
            let _ = self.publisher.publish_transient(Publish::to_queue(routing_key, message));
        }
    }

    /// What to publish; `None` when the attempt does not count and nothing follows.
    fn dispose(
        &self,
        origin: &Origin<'_>,
        disposition: Disposition,
        started_at: Option<OffsetDateTime>,
    ) -> Option<Publishes> {
        let task = origin.task;
        let now = self.now(task);
        let (disposition, following) = self::following(task, disposition, now);
        let held_ms = match &disposition {
            Disposition::Retry { wait, .. } => Some(trace::milliseconds(*wait)),
            _ => None,
        };
        let (report, follow) = match disposition {
            Disposition::Succeed(result) => (Report::Success(result), None),
            Disposition::Revoke(reason) => (Report::Revoked { reason }, None),
            Disposition::Requeue => return None,
            Disposition::Retry { error, wait } => {
                tracing::info!(task_id = %task.id, task = %task.task, attempt = task.retries, error = %brief(&error), ?wait, "retry");
                let retry = retry_of(origin.message, task.retries.saturating_add(1), wait);
                let report =
                    Report::Retry { error: bounded(error), eta: now.checked_add(wait.try_into().unwrap_or_default()) };
                (report, Some(self.task_publish(retry, origin.queue)))
            }
            Disposition::GiveUp(error) => {
                tracing::warn!(task_id = %task.id, task = %task.task, attempt = task.retries, error = %brief(&error), "given up");
                let letter = self.dead_letter(origin, &error, now);
                (Report::Failure(bounded(error)), Some(letter))
            }
        };
        metrics::counter!("errand_attempts_total", "state" => report.state().name()).increment(1);
        self.celery.ended(task, &report, started_at, now);
        let told = self.tell(&following.unreached, &report, &task.id);
        let ended = report.state().is_terminal();
        let reply = Reply {
            held_ms,
            date_done: ended.then_some(now),
            children: following.children,
            ..self.reply(task, report, started_at)
        };
        let reply = reply_publish(task, &reply).filter(|_| !task.ignore_result);
        let rest = follow.into_iter().chain(reply).chain(told).collect();
        Some(Publishes { successors: following.successors, rest })
    }

    /// The result of a task that no attempt was made of.
    pub(super) fn last_word(&self, task: &Task, report: Report, now: OffsetDateTime) -> Option<Publish> {
        let reply = Reply { date_done: Some(now), ..self.reply(task, report, None) };
        reply_publish(task, &reply).filter(|_| !task.ignore_result)
    }

    fn reply(&self, task: &Task, report: Report, started_at: Option<OffsetDateTime>) -> Reply {
        Reply {
            task_id: task.id.clone(),
            report,
            retries: Some(task.retries),
            seq: Some(0),
            since: task.since,
            held_ms: None,
            worker: Some(self.worker.clone()),
            started_at,
            date_done: None,
            group_id: task.group.clone(),
            parent_id: task.parent_id.clone(),
            children: Vec::new(),
        }
    }

    /// A task message goes to a delay queue when it names one, else straight to its queue.
    pub(super) fn task_publish(&self, message: Message, queue: &str) -> Publish {
        let delayed = message.properties.headers.contains_key(DELAY);
        let exchange = if delayed { self.topology.delay() } else { self.topology.tasks() };
        Publish::to(exchange, queue.to_owned(), message)
    }

    pub(super) fn dead_letter(&self, origin: &Origin<'_>, error: &ErrorInfo, now: OffsetDateTime) -> Publish {
        let at = rfc3339(now);
        let verdict = Verdict {
            error,
            attempts: origin.task.retries.saturating_add(1),
            worker: &self.worker,
            queue: origin.queue,
            at: &at,
        };
        let message = dead_letter(origin.message, &verdict);
        Publish::to(self.topology.dead(), origin.queue.to_owned(), message)
    }

    /// `durable`: the reply queue outlives its client, so a reply that comes back met one that is being declared again.
    pub(super) async fn confirmed(&self, publish: Publish, durable: bool) {
        let publish = Arc::new(publish);
        let is_reply = publish.exchange.is_empty();
        let mut unwanted_since = None;
        let gives_up = |error: &PublishError| {
            let unwanted = is_reply && matches!(error, PublishError::Returned(_));
            unwanted && (!durable || unwanted_since.get_or_insert_with(Instant::now).elapsed() > REPLY_PATIENCE)
        };
        match self.delivered(publish.clone(), gives_up).await {
            Ok(()) => {}
            Err(PublishError::Returned(_)) => unwanted(&publish, durable),
            Err(error) => tracing::error!(%error, "a message that cannot be published is dropped"),
        }
    }

    /// Publishes until the broker has it. The error is one that `gives_up` says to give up at, or that the message is none.
    pub(super) async fn delivered(
        &self,
        publish: Arc<Publish>,
        mut gives_up: impl FnMut(&PublishError) -> bool,
    ) -> Result<(), PublishError> {
        let mut backoff = Backoff::default();
        loop {
            self.publisher.ready().await;
            let Err(error) = self.publisher.publish(publish.clone()).await else { return Ok(()) };
            if matches!(error, PublishError::Malformed(_)) || gives_up(&error) {
                return Err(error);
            }
            let is_reply = publish.exchange.is_empty() && matches!(error, PublishError::Returned(_));
            if !is_reply && !matches!(error, PublishError::Unavailable(_)) {
                tracing::warn!(%error, exchange = %publish.exchange, "not published yet");
            }
            tokio::time::sleep(backoff.next_delay(LONGEST_PAUSE)).await;
        }
    }
}

/// What follows the task, and the disposition: a success that what follows cannot take over is none.
fn following(task: &Task, disposition: Disposition, now: OffsetDateTime) -> (Disposition, Following) {
    let following = match &disposition {
        Disposition::Succeed(result) => workflow::after_success(task, result, now),
        Disposition::GiveUp(_) => Ok(workflow::after_failure(task, now)),
        Disposition::Revoke(_) => Ok(workflow::after_revocation(task)),
        Disposition::Retry { .. } | Disposition::Requeue => Ok(Following::default()),
    };
    match following {
        Ok(following) => (disposition, following),
        Err(fault) => {
            let error = ErrorInfo::new(UNSUPPORTED_WORKFLOW, fault.to_string());
            (Disposition::GiveUp(error), workflow::after_failure(task, now))
        }
    }
}

/// A reply queue goes with its client, and then nobody wants the reply.
fn unwanted(publish: &Publish, durable: bool) {
    metrics::counter!("errand_unwanted_replies_total").increment(1);
    let reply_to = &publish.routing_key;
    if durable {
        tracing::warn!(%reply_to, "a producer's reply queue is gone; its result is dropped");
    } else {
        tracing::debug!(%reply_to, "nobody waits for this reply");
    }
}

/// The note for its producer that the task is in nobody's hands for a while: before the ack, or it would be taken for lost.
fn held(task: &Task, wait: Duration) -> Option<Publish> {
    let routing_key = task.reply_to.clone().filter(|_| task.durable_reply)?;
    Some(Publish::to_queue(routing_key, trace::held(&task.id, wait)).packable(task.packed_replies))
}

/// To the queue that the task's sender named, through the default exchange.
fn reply_publish(task: &Task, reply: &Reply) -> Option<Publish> {
    let reply_to = task.reply_to.as_ref()?;
    let correlation_id = task.correlation_id.as_deref().unwrap_or(&task.id);
    let message = reply.encode(correlation_id, task.durable_reply);
    Some(Publish::to_queue(reply_to.clone(), message).packable(task.packed_replies))
}

fn brief(error: &ErrorInfo) -> String {
    format!("{}: {}", error.kind, truncate(&error.message, 200))
}
