//! What Celery's tools see of this worker, `celery inspect`, `celery control`, `celery events` and Flower, and what they
//! may command.
//!
//! A room of its own, with a connection of its own. What it is told it takes or drops at once: no run and no settling
//! waits for it. Nothing here publishes a task or a result.

mod answers;
mod events;
mod present;
mod requests;
mod talk;

use std::sync::Arc;
use std::time::Instant;

use protocol::amqp::{Broker, Mailbox};
use protocol::message::Message;
use protocol::reply::Report;
use protocol::task::Task;
use protocol::topology::Topology;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::events::Told;
use self::events::{Events, received, report, runtime};
use self::present::{Present, Seen};
use super::Worker;
use super::runs::Key;
use crate::config::Config;

/// What the worker tells.
pub(super) struct Celery {
    events: Events,
    /// What is here, kept only when somebody may ask.
    present: Option<Present>,
    born: Instant,
    /// Cancelled when a tool told the worker to end.
    pub(super) shutdown: CancellationToken,
}

impl Celery {
    /// By the settings, and where its events come out; nowhere if it is switched off.
    pub(super) fn new(config: &Config) -> (Self, Option<Told>) {
        let speaks = config.celery_control || config.celery_events;
        let (events, told) = Events::new(&config.worker_name, config.celery_events);
        let present = speaks.then(Present::default);
        (Self { events, present, born: Instant::now(), shutdown: CancellationToken::new() }, speaks.then_some(told))
    }

    /// A task is here, until what is returned is dropped.
    pub(super) fn received(&self, key: &Key, task: &Task, message: &Message, queue: &str) -> Option<Seen<'_>> {
        self.events.tell("task-received", || received(task, message));
        self.present.as_ref().map(|present| present.enter(key, task, message, queue))
    }

    /// A run of it has begun.
    pub(super) fn started(&self, key: &Key, task: &Task, at: OffsetDateTime) {
        if let Some(present) = &self.present {
            present.start(key, at);
        }
        self.events.tell("task-started", || events::of(task));
    }

    /// An attempt ended so, whether or not it had begun. What cannot be read as a task may have no id, and no event then.
    pub(super) fn ended(&self, task: &Task, said: &Report, started_at: Option<OffsetDateTime>, now: OffsetDateTime) {
        let Some(kind) = events::kind(said).filter(|_| !task.id.is_empty()) else { return };
        self.events.tell(kind, || report(task, said, runtime(started_at, now)));
    }
}

/// Talks with Celery's tools until `close`. That it cannot stops no worker.
pub(super) fn start(
    worker: &Arc<Worker>,
    broker: Broker,
    told: Option<Told>,
    links: &TaskTracker,
    close: &CancellationToken,
) {
    let Some(told) = told else { return };
    let config = &worker.config;
    let table = config.topology.celery(&config.worker_name, config.celery_control);
    let queue = config.celery_control.then(|| Topology::celery_mailbox(&config.worker_name));
    let (mailbox, task) = Mailbox::new(broker, table, queue);
    let task = task.run(close.clone());
    links.spawn(async move {
        if let Err(fault) = task.await {
            tracing::error!(%fault, "Celery's tools do not see this worker");
        }
    });
    links.spawn(talk::run(worker.clone(), mailbox, told, close.clone()));
}
