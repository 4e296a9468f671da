//! Finds tasks that the broker has lost (a queue purged or deleted, a data directory wiped) and gives them back to the
//! relay. It looks while tasks are at the broker of which nothing was heard for a while, and sleeps otherwise.
//!
//! How it knows. A tracer of its own goes through the queue and is answered by the worker that meets it. Queues are first
//! in, first out, so once the answer is back over the reply queue, all that was published before it has been handed to a
//! worker, and all that workers had reported before is recorded. A task is *missing* in that round when it is open all the
//! same, was last heard of before the tracer was sent, and no worker names it in a heartbeat from after the answer. It may
//! still have been in the hands of a worker that fell silent; the broker takes it back within three AMQP heartbeats, and then
//! it lies before the next tracer. So it is *lost* when it was missing in every round over a longer time than that. Its end
//! may have been reported between an answer and a heartbeat, so one more round decides. What waits at the broker for
//! another attempt or for a limit was announced as such before it left its worker, and is heard of until then
//! (`store/reconcile.rs`).
//!
//! Nothing is concluded from before a pause of the queue, a look without workers for it, a lost connection, a failure of the
//! store, or a sleep of this process. A copy that was not lost after all joins the run or loses by the guard, as any
//! second copy does. Queues of stock Celery workers, who answer no tracer, are left to `FOREIGN_TIMEOUT`.

mod steady;
mod trail;

use std::time::{Duration, Instant};

use protocol::amqp::{Link, Publish, Publisher};
use protocol::heartbeat::HEARTBEAT_TTL;
use protocol::timestamp::now_ms;
use protocol::topology::Topology;
use protocol::trace::{PRIORITIES, Tracer};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::steady::Steady;
use self::trail::Trail;
use crate::store::{Store, StoreError, Unheard, UnixMs};
use crate::workers::Workers;

/// Tracers that came back and wait to be taken in.
pub const TRACERS: usize = 256;
/// Looks in the time that a task must be missed.
const LOOKS: u32 = 10;
const LONGEST: Duration = Duration::from_secs(3);
const SHORTEST: Duration = Duration::from_millis(100);
/// Rows that are read together.
const PAGE: u32 = 1_000;
/// Rows that are written together, so that no commit is long.
const CHUNK: usize = 1_000;
/// Missing rows of a queue that are followed at once; those heard of least come first.
const MAX_MISSING: usize = 20_000;

/// What the reconciler works with.
pub struct Reconciler {
    store: Store,
    publisher: Publisher,
    topology: Topology,
    workers: Workers,
    /// Tells this process's tracers from an earlier one's.
    process: String,
    steady: Steady,
    /// By how much the clock was set, in ms, while that is not yet in the store.
    step: UnixMs,
    every: Duration,
    trails: Vec<(String, Trail)>,
    /// When the next look is due; `None` while no task is at the broker.
    planned: Option<Instant>,
}

impl Reconciler {
    /// A reconciler of these queues, none of them foreign, that takes for lost what it missed for longer than `after`.
    /// `links` are the connections that it publishes, hears replies and hears heartbeats over.
    #[must_use]
    pub fn new(
        store: Store,
        publisher: Publisher,
        topology: Topology,
        workers: Workers,
        queues: Vec<String>,
        after: Duration,
        links: Vec<watch::Receiver<Link>>,
    ) -> Self {
        let every = (after / LOOKS).clamp(SHORTEST, LONGEST);
        let trails = queues.into_iter().map(|queue| (queue, Trail::new(every, after))).collect();
        let process = Uuid::now_v7().simple().to_string();
        let (steady, planned) = (Steady::new(links), Some(Instant::now() + every));
        Self { store, publisher, topology, workers, process, steady, step: 0, every, trails, planned }
    }

    /// Looks until `stop`.
    pub async fn run(mut self, mut tracers: mpsc::Receiver<Tracer>, stop: CancellationToken) {
        metrics::counter!("errand_presumed_lost_total").increment(0);
        let mut wakes = self.store.wake().due.subscribe();
        while !stop.is_cancelled() {
            let planned = self.planned;
            let look = async {
                match planned {
                    Some(at) => sleep_until(at.into()).await,
                    None => drop(wakes.changed().await),
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                Some(tracer) = tracers.recv() => self.hear(&tracer),
                () = look => {
                    wakes.mark_unchanged();
                    let now = Instant::now();
                    match planned {
                        Some(planned) => self.planned = self.look(planned, now).await,
                        None => self.planned = Some(now + self.every),
                    }
                }
            }
        }
    }

    fn hear(&mut self, tracer: &Tracer) {
        let trail = self.trails.iter_mut().find(|(queue, _)| *queue == tracer.queue);
        if let Some((_, trail)) = trail.filter(|_| tracer.process == self.process) {
            trail.answer(tracer.round, tracer.priority, Instant::now());
            self.planned = self.planned.map(|at| at.min(Instant::now() + self.every / 10));
        }
    }

    /// Looks at every queue; says when to look again.
    async fn look(&mut self, planned: Instant, now: Instant) -> Option<Instant> {
        let at = now_ms();
        let complete = self.workers.are_complete(now.checked_sub(HEARTBEAT_TTL).unwrap_or(now));
        let sight = self.steady.look(planned, now, at);
        self.step += sight.step;
        if self.step != 0 && self.store.shift_alive(self.step).await.is_ok() {
            self.step = 0;
        }
        if !sight.holds || self.step != 0 {
            self.trails.iter_mut().for_each(|(_, trail)| trail.restart(now));
            return Some(now + self.every);
        }
        if !complete {
            self.trails.iter_mut().for_each(|(_, trail)| trail.forget(now));
            return Some(now + self.every);
        }
        let mut trails = std::mem::take(&mut self.trails);
        let mut next: Option<Instant> = None;
        for (queue, trail) in &mut trails {
            let look = Look { of: self, queue, now, at };
            let again = look.at(trail).await.unwrap_or_else(|error| {
                tracing::error!(%queue, %error, "the reconciler cannot use the store");
                trail.forget(now);
                Some(now + self.every)
            });
            next = next.into_iter().chain(again).min();
        }
        self.trails = trails;
        // What is due gets to the broker without another wake.
        let next = next.or((self.store.outstanding() > 0).then_some(now + self.every));
        if next.is_none() {
            self.steady.rest();
        }
        next
    }
}

/// One look at one queue.
struct Look<'a> {
    of: &'a Reconciler,
    queue: &'a str,
    now: Instant,
    at: UnixMs,
}

impl Look<'_> {
    /// Judges a round that has been through and sends the next one if tasks are missing; says when to look again.
    async fn at(&self, trail: &mut Trail) -> Result<Option<Instant>, StoreError> {
        let Reconciler { store, workers, every, .. } = self.of;
        if !store.has_at_broker(self.queue).await? {
            trail.forget(self.now);
            return Ok(None);
        }
        if store.paused_at(self.queue).is_some() || workers.consumers(self.queue) == 0 {
            trail.forget(self.now);
            return Ok(Some(self.now + *every));
        }
        if let Some(round) = trail.through(|answered| workers.have_all_spoken(answered)) {
            let missing = self.missing(round.sent_at, MAX_MISSING).await?;
            self.put_back(trail.judge(&missing, self.now), round.sent_at).await?;
        }
        if trail.is_due(self.now, workers.have_room(self.queue)) {
            let quiet_since = self.at - i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
            if self.missing(quiet_since, 1).await?.is_empty() {
                trail.clear();
            } else {
                self.send(trail.send(self.now, self.at));
            }
        }
        Ok(Some(self.now + trail.rest()))
    }

    /// Tasks of which nothing was heard since `before` and that no worker names, at most `limit`.
    async fn missing(&self, before: UnixMs, limit: usize) -> Result<Vec<i64>, StoreError> {
        let mut missing = Vec::new();
        let mut last: Option<Unheard> = None;
        while missing.len() < limit {
            let page = self.of.store.unheard(self.queue, before, last.as_ref(), PAGE).await?;
            last = page.last().cloned();
            let is_full = page.len() == PAGE as usize;
            missing.extend(self.of.workers.unnamed(page, |task| &task.id).into_iter().map(|task| task.seq));
            if !is_full {
                break;
            }
        }
        missing.truncate(limit);
        Ok(missing)
    }

    /// Neither awaited nor confirmed: one that does not come back is followed by another. Past the exchange, whose alternate
    /// would make a dead letter of one that meets no queue.
    fn send(&self, round: u64) {
        let Reconciler { publisher, topology, store, process, .. } = self.of;
        let reply_to = topology.results(store.id());
        for priority in PRIORITIES {
            let tracer = Tracer { process: process.clone(), queue: self.queue.to_owned(), round, priority };
            let (routing_key, message) = (topology.queue(self.queue), tracer.message(&reply_to));
            let _ = publisher.publish_transient(Publish::to_queue(routing_key, message));
        }
    }

    async fn put_back(&self, lost: Vec<i64>, before: UnixMs) -> Result<(), StoreError> {
        for chunk in lost.chunks(CHUNK) {
            let count = self.of.store.presume_lost(chunk.to_vec(), before, self.at).await?;
            metrics::counter!("errand_presumed_lost_total").increment(count);
            if count > 0 {
                tracing::warn!(queue = self.queue, count, "the broker has lost tasks; they are published again");
            }
        }
        Ok(())
    }
}
