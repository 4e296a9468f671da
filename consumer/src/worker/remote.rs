//! What producers tell this worker: which tasks are revoked, which queues are paused, what time it is. It asks before it consumes.
//!
//! It only knows. `intake` and `run` look here before they start anything, and `runs` cancels what runs already.

mod revoked;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::amqp::{Publish, Publisher, QueueSpec, Steering, Wanted};
use protocol::control::{Control, PATIENCE, TOLD_TTL};
use protocol::message::Message;
use protocol::task::Task;
use protocol::timestamp::unix_ms;
use protocol::topology::Topology;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) use self::revoked::Revocation;
use self::revoked::Revoked;
use super::clocks::Clocks;

/// How often the question is repeated while nobody has answered: a producer may just be connecting.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How far a store's clock may be ahead of what is known here, in which a task may just have been submitted.
const AHEAD: Duration = Duration::from_secs(5);
/// How long the answers of other producers may take after the first.
const OTHERS: Duration = Duration::from_millis(100);
/// How often old pauses are looked for.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// Unsettled commands, which the broker client holds in memory.
const PREFETCH: u16 = 100;
/// The most pauses remembered, whoever speaks on the exchange.
const MAX_PAUSES: usize = 10_000;

pub(super) struct Remote {
    queue: String,
    topology: Topology,
    clocks: Arc<Clocks>,
    revoked: Mutex<Revoked>,
    /// Queues without the prefix, each with the store that pauses it, and when that was last said.
    pauses: Mutex<HashMap<(String, String), Instant>>,
    steering: Steering,
    /// The latest question that a producer has answered in full.
    answered: watch::Sender<String>,
}

impl Remote {
    /// Hears commands from the queue that [`control_queue`] names.
    pub(super) fn new(queue: String, topology: Topology, clocks: Arc<Clocks>, steering: Steering) -> Self {
        let (revoked, pauses) = (Mutex::default(), Mutex::default());
        Self { queue, topology, clocks, revoked, pauses, steering, answered: watch::Sender::default() }
    }

    /// The full name of the queue that commands come from.
    pub(super) fn queue(&self) -> &str {
        &self.queue
    }

    /// Takes in a command; what it revokes, for those of them that run. What is none is a stranger's.
    pub(super) fn hear(&self, message: &Message) -> Vec<Revocation> {
        match Control::decode(message) {
            Ok(Control::Revoke { task_ids, at, reason }) => {
                tracing::debug!(count = task_ids.len(), reason, "told that tasks are revoked");
                let revocations = Revocation::of(task_ids, &at);
                lock(&self.revoked).insert(&revocations, &reason, Instant::now());
                return revocations;
            }
            Ok(Control::Pause { queue, by }) => self.pause(queue, by),
            Ok(Control::Resume { queue, by }) => self.resume(queue, by),
            Ok(Control::Answered { by, now }) => {
                if let Some((by, now)) = by.zip(now) {
                    self.clocks.set(self.topology.results(&by), now);
                }
                if let Some(question) = &message.properties.correlation_id {
                    self.answered.send_replace(question.clone());
                }
            }
            Ok(Control::Ask { .. }) => {}
            Err(error) => tracing::warn!(%error, "a message in the control queue is passed over"),
        }
        Vec::new()
    }

    /// Revokes tasks from now on, of whichever life: those that are not started end so.
    pub(super) fn revoke(&self, task_ids: Vec<String>, reason: &str) -> Vec<Revocation> {
        let at = unix_ms(self.clocks.latest() + AHEAD);
        let at = vec![at; task_ids.len()];
        let revocations = Revocation::of(task_ids, &at);
        lock(&self.revoked).insert(&revocations, reason, Instant::now());
        revocations
    }

    /// The ids that are known as revoked, at most so many.
    pub(super) fn revoked_ids(&self, max: usize) -> Vec<String> {
        lock(&self.revoked).ids(max)
    }

    fn pause(&self, queue: String, by: String) {
        let mut pauses = lock(&self.pauses);
        let pause = (queue, by);
        if let Some(said) = pauses.get_mut(&pause) {
            *said = Instant::now();
        } else if pauses.len() < MAX_PAUSES {
            tracing::info!(queue = %pause.0, "paused");
            pauses.insert(pause, Instant::now());
        }
        self.steer(&pauses);
    }

    /// A pause of which nothing is heard any more was a store's that is gone: producers tell theirs again every hour.
    fn forget_pauses(&self) {
        let mut pauses = lock(&self.pauses);
        for (pause, _) in pauses.extract_if(|_, said| said.elapsed() >= TOLD_TTL) {
            tracing::warn!(queue = %pause.0, "no producer says any more that it is paused; it is consumed again");
        }
        self.steer(&pauses);
    }

    fn resume(&self, queue: String, by: String) {
        let mut pauses = lock(&self.pauses);
        let pause = (queue, by);
        if pauses.remove(&pause).is_some() {
            tracing::info!(queue = %pause.0, "resumed");
        }
        self.steer(&pauses);
    }

    fn steer(&self, pauses: &HashMap<(String, String), Instant>) {
        let queues: BTreeSet<String> = pauses.keys().map(|(queue, _)| self.topology.queue(queue)).collect();
        self.steering.wanted.send_if_modified(|wanted| {
            let changed = wanted.paused != queues;
            wanted.paused = queues;
            changed
        });
    }

    /// Why a task is not to be run, `None` when it is.
    pub(super) fn revoked(&self, task: &Task) -> Option<Arc<str>> {
        lock(&self.revoked).reason(&task.id, task.since, Instant::now())
    }

    /// Whether a queue, without the prefix, is not to be consumed.
    pub(super) fn is_paused(&self, queue: &str) -> bool {
        let wanted = self.steering.wanted.borrow();
        !wanted.paused.is_empty() && wanted.paused.contains(&self.topology.queue(queue))
    }

    /// Waits until a paused queue is not consumed any more, or paused no more: what goes back sooner would come here again.
    pub(super) async fn left(&self, queue: &str) {
        let name = self.topology.queue(queue);
        let (mut consumed, mut wanted) = (self.steering.consumed.clone(), self.steering.wanted.subscribe());
        tokio::select! {
            _ = consumed.wait_for(|consumed| !consumed.contains(&name)) => {}
            _ = wanted.wait_for(|wanted| !wanted.paused.contains(&name)) => {}
        }
    }

    /// Asks on every new connection, and then lets it consume, until `close`.
    pub(super) async fn run(&self, worker: &str, publisher: &Publisher, close: &CancellationToken) {
        let mut sessions = self.steering.sessions.clone();
        let mut looks = interval(LOOK_EVERY);
        loop {
            let changed = tokio::select! {
                () = close.cancelled() => return,
                changed = sessions.changed() => changed,
                _ = looks.tick() => {
                    self.forget_pauses();
                    continue;
                }
            };
            if changed.is_err() {
                return;
            }
            let session = *sessions.borrow_and_update();
            if close.run_until_cancelled(self.ask(worker, publisher)).await.is_none() {
                return;
            }
            self.steering.wanted.send_modify(|Wanted { session: allowed, .. }| *allowed = session);
        }
    }

    async fn ask(&self, worker: &str, publisher: &Publisher) {
        let question = Uuid::now_v7().simple().to_string();
        let mut answered = self.answered.subscribe();
        let asked = async {
            tokio::select! {
                () = self.ask_on(worker, publisher, &question) => {}
                _ = answered.wait_for(|latest| *latest == question) => {}
            }
        };
        if timeout(PATIENCE, asked).await.is_ok() {
            sleep(OTHERS).await;
        } else {
            tracing::warn!("no producer has said what is revoked or paused; tasks are taken all the same");
        }
    }

    async fn ask_on(&self, worker: &str, publisher: &Publisher, question: &str) {
        let ask = Control::Ask { worker: worker.to_owned() };
        let mut message = match ask.encode() {
            Ok(message) => message,
            Err(error) => return tracing::error!(%error, "a question that cannot be asked"),
        };
        message.properties.reply_to = Some(self.queue.clone());
        message.properties.correlation_id = Some(question.to_owned());
        let publish = Publish::to(self.topology.workers(), String::new(), message);
        loop {
            publisher.ready().await;
            let _ = publisher.publish_transient(publish.clone());
            sleep(ASK_EVERY).await;
        }
    }
}

/// The control queue as a subscription consumes it.
pub(super) fn control_queue(name: &str) -> QueueSpec {
    QueueSpec { name: name.to_owned(), prefetch: PREFETCH }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
