//! Tells workers what is revoked and paused: after each commit that changed it, to a worker that asks, and all of it to
//! all of them after every new connection and every hour. Nothing of it is confirmed: a worker that missed it asks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::amqp::{Publish, Publisher};
use protocol::control::{Control as Command, MAX_IDS, TELL_INTERVAL};
use protocol::faults::{Point, point};
use protocol::message::Message;
use protocol::timestamp::now_ms;
use protocol::topology::Topology;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError, UnixMs};

/// Questions that wait for an answer; a worker repeats one that was dropped.
pub const QUESTIONS: usize = 64;
/// How often workers are told the time: clocks are set right while everything runs, and machines are suspended.
const TIME_EVERY: Duration = Duration::from_secs(20);
/// How soon what could not be told is told again.
const RETRY: Duration = Duration::from_secs(5);
/// How long to wait for room among what goes to the broker.
const PAUSE: Duration = Duration::from_millis(20);

/// The paused queues, each with since when.
type Pauses = watch::Receiver<BTreeMap<String, UnixMs>>;

/// The loop's parts.
pub struct Control {
    store: Store,
    publisher: Publisher,
    topology: Topology,
    /// Those that this producer relays.
    queues: Vec<String>,
}

/// Where an answer goes.
#[derive(Debug, Clone)]
enum To {
    All,
    One { queue: String, question: Option<String> },
}

impl Control {
    /// For a store's tasks in those queues.
    #[must_use]
    pub fn new(store: Store, publisher: Publisher, topology: Topology, queues: Vec<String>) -> Self {
        Self { store, publisher, topology, queues }
    }

    /// Tells and answers until `stop`.
    pub async fn run(self, mut questions: mpsc::Receiver<Message>, stop: CancellationToken) {
        let (mut link, mut pauses) = (self.publisher.watch(), self.store.paused_queues());
        let mut ticks = interval(TELL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut times = interval(TIME_EVERY);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answered = VecDeque::new();
        loop {
            // What is short and urgent goes first.
            let told = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = pauses.changed() => {
                    self.tell_queues(&To::All, &mut pauses).await;
                    Ok(())
                }
                revoked = self.store.untold() => {
                    point(Point::RevokeStored).await;
                    self.tell_revoked(&To::All, revoked).await;
                    Ok(())
                }
                Ok(()) = link.changed() => self.tell_all(&To::All, &mut pauses).await,
                _ = ticks.tick() => self.tell_all(&To::All, &mut pauses).await,
                _ = times.tick() => {
                    self.say(&To::All, &self.answered()).await;
                    Ok(())
                }
                Some(question) = questions.recv() => self.answer(question, &mut answered, &mut pauses).await,
            };
            if let Err(error) = told {
                tracing::error!(%error, "workers are not told what is revoked yet");
                ticks.reset_after(RETRY);
            }
        }
    }

    /// Whoever may publish to `workers` may ask, but the answer goes to a worker's queue only. A worker repeats its question
    /// until it has the answer: one that was answered is passed over, and one that cannot be answered just now is not.
    async fn answer(
        &self,
        question: Message,
        answered: &mut VecDeque<String>,
        pauses: &mut Pauses,
    ) -> Result<(), StoreError> {
        let properties = question.properties;
        if properties.correlation_id.as_ref().is_some_and(|question| answered.contains(question)) {
            return Ok(());
        }
        let queue = properties.reply_to.filter(|queue| self.topology.is_control_queue(queue));
        let Some(queue) = queue else {
            tracing::warn!("a question that names no worker's queue");
            return Ok(());
        };
        let mut link = self.publisher.watch();
        if !link.borrow_and_update().is_ready() {
            return Ok(());
        }
        let to = To::One { queue, question: properties.correlation_id.clone() };
        self.tell_all(&to, pauses).await?;
        self.say(&to, &self.answered()).await;
        if link.has_changed().unwrap_or(true) {
            return Ok(());
        }
        answered.extend(properties.correlation_id);
        if answered.len() > QUESTIONS {
            answered.pop_front();
        }
        Ok(())
    }

    fn answered(&self) -> Command {
        Command::Answered { by: Some(self.store.id().to_owned()), now: Some(now_ms()) }
    }

    /// Queues that are paused or resumed meanwhile are told in between.
    async fn tell_all(&self, to: &To, pauses: &mut Pauses) -> Result<(), StoreError> {
        self.tell_queues(to, &mut self.store.paused_queues()).await;
        let mut before = i64::MAX;
        while self.publisher.link().is_ready() {
            if pauses.has_changed().unwrap_or(false) {
                self.tell_queues(&To::All, pauses).await;
            }
            let tasks = self.store.revoked_before(before).await?;
            let Some(last) = tasks.last() else { break };
            before = last.seq;
            let mut by_reason: BTreeMap<String, Vec<(String, UnixMs)>> = BTreeMap::new();
            for task in tasks {
                by_reason.entry(task.reason).or_default().push((task.id, task.at));
            }
            self.tell_revoked(to, by_reason).await;
        }
        Ok(())
    }

    /// Of each queue, so that whoever missed a change is right again.
    async fn tell_queues(&self, to: &To, paused: &mut Pauses) {
        let paused = paused.borrow_and_update().clone();
        for queue in &self.queues {
            let (queue, by) = (queue.clone(), self.store.id().to_owned());
            let is_paused = paused.contains_key(&queue);
            let command = if is_paused { Command::Pause { queue, by } } else { Command::Resume { queue, by } };
            self.say(to, &command).await;
        }
    }

    async fn tell_revoked(&self, to: &To, revoked: BTreeMap<String, Vec<(String, UnixMs)>>) {
        for (reason, tasks) in revoked {
            for tasks in tasks.chunks(MAX_IDS) {
                let (task_ids, at) = tasks.iter().cloned().unzip();
                self.say(to, &Command::Revoke { task_ids, at, reason: reason.clone() }).await;
            }
        }
    }

    /// While the broker is away nothing is said; all is told when it is back.
    async fn say(&self, to: &To, command: &Command) {
        let mut message = match command.encode() {
            Ok(message) => message,
            Err(error) => return tracing::error!(%error, "a command that cannot be said"),
        };
        let (exchange, routing_key) = match to {
            To::All => (self.topology.control(), String::new()),
            To::One { queue, question } => {
                message.properties.correlation_id.clone_from(question);
                (String::new(), queue.clone())
            }
        };
        let publish = Publish::to(exchange, routing_key, message);
        while self.publisher.link().is_ready() && !self.publisher.publish_transient(publish.clone()) {
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::amqp::{Address, AmqpUrl, Broker};
    use protocol::message::Properties;
    use protocol::topology::Table;
    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_question_that_came_before_the_broker_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("errand.db").display());
        let store = Store::open(&url, &TaskTracker::new()).await.unwrap();
        let address = Address { url: AmqpUrl::parse("amqp://127.0.0.1:1").unwrap(), tls: None };
        let broker = Broker::new(address, "test").unwrap();
        let (publisher, _never_connected) = Publisher::new(broker, Table::default());
        let topology = Topology::new("errand.");
        let asks = topology.control_queue("w1").queues[0].name.clone();
        let control = Control::new(store, publisher, topology, vec!["default".to_owned()]);
        let properties =
            Properties { reply_to: Some(asks), correlation_id: Some("q".to_owned()), ..Properties::default() };
        let question = Message { properties, body: Vec::new() };
        let mut answered = VecDeque::new();
        let mut pauses = control.store.paused_queues();
        control.answer(question, &mut answered, &mut pauses).await.unwrap();
        assert!(answered.is_empty());
    }
}
