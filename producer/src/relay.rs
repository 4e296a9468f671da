//! Publishes due rows: by priority, mandatory, confirmed, many in flight, at most a window of unfinished tasks a queue.
//!
//! Woken by the commit that made rows due, or when its window was full by the one that took tasks off the broker; it looks
//! by itself only at start. It never touches a state.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use protocol::amqp::{Publish, PublishError, Publisher};
use protocol::faults::{Point, point};
use protocol::message::Message;
use protocol::task::TaskMessage;
use protocol::timestamp::{from_unix_ms, now_ms};
use protocol::topology::Topology;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::store::{DueTask, HandedTo, Published, Store, StoreError, Taken};
use crate::workers::Workers;

/// Rows that are published together.
const BATCH: u32 = 512;
/// Arguments that are held in memory together.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How long to wait after the broker refused or the store failed.
const PAUSE: Duration = Duration::from_millis(500);

/// The relay of one queue. The queues do not wait for each other: a full one must not hold up the rest.
pub struct Relay {
    store: Store,
    publisher: Publisher,
    topology: Topology,
    route: Route,
    reply_to: String,
    origin: Arc<str>,
    window: u32,
    /// Rows that were in its hands may not have got to the broker: those of them that are revoked end here.
    held_back: bool,
    /// Who knows which arguments are not to be shown.
    workers: Workers,
}

/// Where a queue's tasks are published.
#[derive(Debug, Clone)]
pub struct Route {
    /// The queue, without the prefix when it is ours.
    pub queue: String,
    /// Whether stock Celery workers consume it: published through the default exchange, never declared.
    pub foreign: bool,
}

impl Relay {
    /// A relay that keeps at most `window` unfinished tasks of its queue at the broker.
    #[must_use]
    pub fn new(
        store: Store,
        publisher: Publisher,
        topology: Topology,
        route: Route,
        window: u32,
        workers: Workers,
    ) -> Self {
        let reply_to = topology.results(store.id());
        let origin = format!("producer-{}", std::process::id()).into();
        Self { store, publisher, topology, route, reply_to, origin, window, workers, held_back: false }
    }

    /// Publishes until `stop`, which is looked at between batches: what was confirmed is always marked.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut due = self.store.wake().due.subscribe();
        let mut room = self.store.wake().room.subscribe();
        let mut pauses = self.store.paused_queues();
        while stop.run_until_cancelled(self.publisher.ready()).await.is_some() {
            due.mark_unchanged();
            room.mark_unchanged();
            pauses.mark_unchanged();
            let progress = self.publish_due(&stop).await.unwrap_or_else(|error| {
                tracing::error!(queue = %self.route.queue, %error, "the relay cannot use the store");
                Progress::Refused
            });
            match progress {
                Progress::More => {}
                Progress::Idle => tokio::select! {
                    () = stop.cancelled() => {}
                    _ = due.changed() => {}
                    _ = pauses.changed() => {}
                },
                Progress::Full => tokio::select! {
                    () = stop.cancelled() => {}
                    _ = room.changed() => {}
                    _ = pauses.changed() => {}
                },
                Progress::Refused => {
                    stop.run_until_cancelled(sleep(PAUSE)).await;
                }
            }
        }
    }

    async fn publish_due(&mut self, stop: &CancellationToken) -> Result<Progress, StoreError> {
        if self.held_back {
            self.store.end_revoked(now_ms()).await?;
            self.held_back = false;
        }
        if self.store.paused_at(&self.route.queue).is_some() {
            return Ok(Progress::Idle);
        }
        let room = self.room().await?;
        if room == 0 {
            return Ok(Progress::Full);
        }
        let due = self.store.take_due(&self.route.queue, room, BATCH_BYTES).await;
        self.held_back = due.is_err();
        let Taken { tasks: due, is_all } = due?;
        if due.is_empty() && is_all {
            return Ok(Progress::Idle);
        }
        point(Point::RelayTaken).await;
        let taken: Vec<String> = due.iter().map(|task| task.id.clone()).collect();
        let published = self.publish(due, stop).await;
        self.store.let_go(taken.iter()).await;
        self.held_back = matches!(published, Progress::Refused);
        // What became due or was revoked meanwhile has waked.
        Ok(if is_all && !self.held_back { Progress::Idle } else { published })
    }

    /// How many rows the window takes now. It is counted only where it might be few: no more are queued than unfinished.
    async fn room(&self) -> Result<u32, StoreError> {
        let unfinished = u32::try_from(self.store.outstanding()).unwrap_or(u32::MAX);
        if self.window.saturating_sub(unfinished) >= BATCH {
            return Ok(BATCH);
        }
        Ok(self.window.saturating_sub(self.store.queued(&self.route.queue).await?).min(BATCH))
    }

    async fn publish(&self, due: Vec<DueTask>, stop: &CancellationToken) -> Progress {
        let verdicts = join_all(due.iter().map(|task| self.publisher.publish(self.message(task)))).await;
        let mut published = Vec::with_capacity(due.len());
        let (mut unconfirmed, mut refused) = (Vec::new(), None);
        for (task, verdict) in due.into_iter().zip(verdicts) {
            match verdict {
                Ok(()) => published.push(Published(task.id, task.publish)),
                Err(error) => {
                    if let PublishError::Unknown(_) = error {
                        unconfirmed.push(Published(task.id.clone(), task.publish));
                    }
                    refused = Some((task.id, error));
                }
            }
        }
        point(Point::RelayConfirmed).await;
        metrics::counter!("errand_relay_published_total").increment(published.len() as u64);
        let to = if self.route.foreign { HandedTo::Celery(now_ms()) } else { HandedTo::Workers(now_ms()) };
        self.mark(published.into(), to, stop).await;
        self.mark(unconfirmed.into(), HandedTo::Nobody, stop).await;
        refused.map_or(Progress::More, |(task_id, error)| self.report_refusal(&task_id, &error))
    }

    /// Tries for as long as it takes: reading on would publish the same rows again and again while the store fails.
    async fn mark(&self, published: Arc<[Published]>, to: HandedTo, stop: &CancellationToken) {
        if published.is_empty() {
            return;
        }
        while let Err(error) = self.store.mark(published.clone(), to).await {
            if matches!(error, StoreError::Closed) || stop.is_cancelled() {
                return;
            }
            tracing::error!(queue = %self.route.queue, %error, "published tasks wait to be marked");
            sleep(PAUSE).await;
        }
    }

    /// What was not confirmed stays a row, and is published again.
    fn report_refusal(&self, task_id: &str, error: &PublishError) -> Progress {
        metrics::counter!("errand_relay_refused_total").increment(1);
        if let PublishError::Unavailable(_) = error {
            tracing::debug!(queue = %self.route.queue, %error, "the relay waits for the broker");
        } else {
            tracing::warn!(queue = %self.route.queue, task_id, %error, "not published yet");
        }
        Progress::Refused
    }

    fn message(&self, task: &DueTask) -> Publish {
        let exchange = if self.route.foreign { String::new() } else { self.topology.tasks() };
        let mut message = envelope(task, &self.route, &self.reply_to, &self.origin);
        self.workers.redact(&mut message.properties.headers, &task.task, &task.args, &task.kwargs);
        Publish::to(exchange, self.route.queue.clone(), message)
    }
}

fn envelope(task: &DueTask, route: &Route, reply_to: &str, origin: &str) -> Message {
    TaskMessage {
        priority: task.priority,
        // A stock worker holds its own maximum against it, which a replay is to have anew, and reports no attempt.
        retries: if route.foreign { 0 } else { task.retries },
        expires: task.expires.and_then(from_unix_ms),
        time_limit: task.time_limit.map(Duration::from_secs_f64),
        soft_time_limit: task.soft_time_limit.map(Duration::from_secs_f64),
        reply_to: Some(reply_to),
        packed_replies: !route.foreign,
        terse: !route.foreign,
        retry: task.retry,
        publish: Some(task.publish),
        since: Some(task.since),
        origin,
        root_id: task.parent.as_ref().map(|parent| parent.root_id.as_str()),
        parent_id: task.parent.as_ref().map(|parent| parent.id.as_str()),
        ..TaskMessage::of(&task.id, &task.task, &task.args, &task.kwargs)
    }
    .message()
}

enum Progress {
    /// There may be more to publish at once.
    More,
    /// Nothing to do before rows become due.
    Idle,
    /// Nothing to do before tasks leave the broker.
    Full,
    /// The broker took not all of it.
    Refused,
}

#[cfg(test)]
mod tests;
