//! Takes deliveries in: decodes, sends on what is not due, admits the rest and starts their runs.

use std::sync::Arc;
use std::time::Duration;

use protocol::amqp::Delivery;
use protocol::message::Message;
use protocol::reply::ErrorInfo;
use protocol::task::{Task, Undecodable};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::run::run;
use super::runs::{Admission, Key};
use super::settle::{Followup, Origin, Settled};
use crate::disposition::{Disposition, Outcome, decide};

/// Waits shorter than this are held here; the broker's shortest delay is a second.
const HOLD: Duration = Duration::from_secs(1);

pub(super) struct Intake {
    worker: Arc<Worker>,
    stop: CancellationToken,
}

impl Intake {
    pub(super) fn new(worker: Arc<Worker>, stop: CancellationToken) -> Self {
        Self { worker, stop }
    }

    /// Takes in until the deliveries end. After `stop` they go back at once, for another worker.
    pub(super) async fn run(self, mut deliveries: mpsc::Receiver<Delivery>) {
        while let Some(delivery) = deliveries.recv().await {
            if self.stop.is_cancelled() {
                delivery.requeue().await;
            } else {
                self.take(delivery);
            }
        }
    }

    fn take(&self, mut delivery: Delivery) {
        metrics::counter!("errand_deliveries_total").increment(1);
        // The run keeps the message, the delivery only settles it: a redelivery brings nothing new.
        let message = std::mem::take(&mut delivery.message);
        let queue = delivery.routing_key.clone();
        let worker = self.worker.clone();
        match Task::decode(&message) {
            Ok(task) => self.admit(task, message, queue, delivery),
            Err(unreadable) => {
                let spawned = give_up_unread(worker, unreadable, message, queue, delivery);
                self.worker.tracker.spawn(spawned);
            }
        }
    }

    fn admit(&self, task: Task, message: Message, queue: String, delivery: Delivery) {
        let key = (task.id.clone(), task.retries);
        match self.worker.runs.admit(&key, delivery) {
            Admission::Start => {
                self.worker.tracker.spawn(life(self.worker.clone(), key, task, message, queue));
            }
            Admission::Joined => tracing::debug!(task_id = %key.0, "delivered again while it runs"),
            Admission::Settled(delivery) => {
                tracing::debug!(task_id = %key.0, "delivered again after it was settled");
                self.worker.tracker.spawn(delivery.ack());
            }
        }
    }
}

/// One attempt from admission to ack.
async fn life(worker: Arc<Worker>, key: Key, task: Task, message: Message, queue: String) {
    let settled = worker.abandon.run_until_cancelled(attempt(&worker, &key, &task, &message, &queue)).await;
    match settled {
        Some(Settled::Ack) => {
            for delivery in worker.runs.settled(&key) {
                if !delivery.ack().await {
                    tracing::debug!(task_id = %key.0, "settled; its ack was lost with the connection");
                }
            }
        }
        Some(Settled::Requeue) => {
            for delivery in worker.runs.abandoned(&key) {
                delivery.requeue().await;
            }
        }
        // Left unacked: it comes again elsewhere when this process has ended.
        None => drop(worker.runs.abandoned(&key)),
    }
}

async fn attempt(worker: &Arc<Worker>, key: &Key, task: &Task, message: &Message, queue: &str) -> Settled {
    let origin = Origin { task, message, queue };
    let wait = wait_of(task, OffsetDateTime::now_utc());
    if wait >= HOLD {
        return worker.settle.publish(&origin, Followup::Forward(wait)).await;
    }
    tokio::time::sleep(wait).await;
    let Ok(_slot) = worker.slots.acquire().await else { return Settled::Requeue };
    let started_at = OffsetDateTime::now_utc();
    let outcome = if task.expires.is_some_and(|expires| expires <= started_at) {
        Outcome::Expired
    } else if let Some(handler) = worker.registry.get(&task.task) {
        run(worker, key, task, handler, started_at).await
    } else {
        Outcome::NotRegistered(task.task.clone())
    };
    let policy = task.retry.unwrap_or_default();
    let disposition = decide(outcome, &policy, task.retries, worker.config.max_result_bytes, fastrand::f64());
    worker.settle.publish(&origin, Followup::Disposed(disposition, started_at)).await
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
    let error = ErrorInfo { kind: "DecodeError".to_owned(), message: unreadable.reason.to_string(), traceback: None };
    let task = settle_stub(unreadable);
    let origin = Origin { task: &task, message: &message, queue: &queue };
    let followup = Followup::Disposed(Disposition::GiveUp(error), OffsetDateTime::now_utc());
    let published = worker.abandon.run_until_cancelled(worker.settle.publish(&origin, followup)).await;
    if published.is_some() {
        delivery.ack().await;
    }
}

/// What is known of a task whose message cannot be read.
fn settle_stub(unreadable: Undecodable) -> Task {
    Task {
        id: unreadable.id.unwrap_or_default(),
        task: unreadable.task.unwrap_or_default(),
        reply_to: unreadable.reply_to,
        correlation_id: unreadable.correlation_id,
        ..Task::default()
    }
}
