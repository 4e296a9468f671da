//! Publishes what follows a task by its client's wish, ahead of the task's result.
//!
//! A successor that no queue takes has failed: it becomes a dead letter, and whoever waits for it, or for what was to
//! come after it, is told. The task that it follows stands as it is.

use std::time::Duration;

use futures_util::future::join_all;
use protocol::amqp::{Publish, PublishError};
use protocol::message::truncate;
use protocol::reply::{ErrorInfo, Reply, Report};
use protocol::task::Task;
use protocol::workflow::{Destination, Following, Successor, Unreached, after_failure};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::settle::{Origin, Settle};

/// The type of error of a task that no queue took.
const UNROUTABLE: &str = "Unroutable";
/// What of an error's message is told to those who wait for what was to follow.
const MAX_TOLD_BYTES: usize = 1024;
/// How long a successor waits for room in its queue.
const FULL_PATIENCE: Duration = Duration::from_mins(1);

impl Settle {
    /// Publishes successors until the broker has each of them, or it is known why it does not take it.
    pub(super) async fn follow(&self, parent_queue: &str, successors: Vec<Successor>) {
        let mut waiting = successors;
        // One that fails may have error callbacks, which lie within it: each round is smaller than the one before.
        while !waiting.is_empty() {
            let sent = waiting.into_iter().map(|successor| self.successor(parent_queue, successor));
            let failed = join_all(sent).await;
            waiting = join_all(failed.into_iter().flatten().map(|lost| self.unroutable(lost)))
                .await
                .into_iter()
                .flatten()
                .collect();
        }
    }

    /// Tells the same end to whoever waits for the rest of a chain.
    pub(super) fn tell(&self, unreached: &[Unreached], report: &Report, parent_id: &str) -> Vec<Publish> {
        let (now, report) = (OffsetDateTime::now_utc(), brief(report));
        let reply = |Unreached { task_id, reply_to, group }: &Unreached| {
            let reply = Reply {
                worker: Some(self.worker.clone()),
                date_done: Some(now),
                group_id: group.clone(),
                parent_id: Some(parent_id.to_owned()),
                ..Reply::of(task_id, report.clone())
            };
            let message = reply.encode(task_id, false);
            Publish::to_queue(reply_to.clone(), message)
        };
        unreached.iter().map(reply).collect()
    }

    async fn successor(&self, parent_queue: &str, successor: Successor) -> Option<Lost> {
        let Successor { destination, mut message } = successor;
        let task = Task::decode(&message).ok()?;
        self.redactions.apply(&mut message.properties.headers, &task.task, &task.args, &task.kwargs);
        // Straight to the queue: the exchange of tasks has an alternate, so that what no queue takes would not come back.
        let queue = match destination {
            Destination::Parent => self.topology.queue(parent_queue),
            Destination::Queue(name) => name,
            Destination::Exchange(None, key) => self.topology.queue(&key),
            Destination::Exchange(Some(exchange), key) if exchange == self.topology.tasks() => {
                self.topology.queue(&key)
            }
            Destination::Exchange(Some(exchange), key) if exchange.is_empty() => key,
            Destination::Exchange(Some(exchange), key) => {
                let why = format!("exchange {exchange:?} is not one that tasks are published to from here");
                return Some(Lost { publish: Publish::to(exchange, key, message), task, why });
            }
        };
        let publish = Publish::to_queue(queue, message);
        let mut refused_since = None;
        let gives_up = |error: &PublishError| match error {
            PublishError::Returned(_) => true,
            // A queue that is full may stay so, and this holds one of the worker's places.
            PublishError::Nacked => refused_since.get_or_insert_with(Instant::now).elapsed() > FULL_PATIENCE,
            _ => {
                refused_since = None;
                false
            }
        };
        let error = self.delivered(publish.clone().into(), gives_up).await.err()?;
        let why = format!("queue {:?}: {error}", publish.routing_key);
        Some(Lost { publish, task, why })
    }

    /// What follows a successor that nobody will run.
    async fn unroutable(&self, lost: Lost) -> Vec<Successor> {
        let Lost { publish: Publish { routing_key: queue, message, .. }, task, why } = lost;
        tracing::warn!(task_id = %task.id, task = %task.task, %why, "no queue takes what follows a task");
        let error = ErrorInfo::new(UNROUTABLE, why);
        let now = self.now(&task);
        let Following { successors, unreached, .. } = after_failure(&task, now);
        let origin = Origin { task: &task, message: &message, queue: &queue };
        let letter = self.dead_letter(&origin, &error, now);
        let report = Report::Failure(error);
        let told = self.tell(&unreached, &report, &task.id);
        let reply = self.last_word(&task, report, now);
        let publishes = [letter].into_iter().chain(reply).chain(told);
        join_all(publishes.map(|publish| self.confirmed(publish, false))).await;
        successors
    }
}

/// Told to thousands perhaps, of whom none failed by itself.
fn brief(report: &Report) -> Report {
    match report {
        Report::Failure(error) => {
            Report::Failure(ErrorInfo::new(&error.kind, truncate(&error.message, MAX_TOLD_BYTES)))
        }
        other => other.clone(),
    }
}

/// A successor that was not published, and why.
struct Lost {
    publish: Publish,
    task: Task,
    why: String,
}
