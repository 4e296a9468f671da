//! Who is alive, and which task types were announced: the workers' heartbeats, in memory.

mod holding;
mod task_types;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::amqp::Delivery;
use protocol::heartbeat::{HEARTBEAT_INTERVAL, HEARTBEAT_TTL, Heartbeat, TaskType};
use protocol::message::{Headers, Message};
use protocol::retry::RetryPolicy;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use self::holding::Holding;
use self::task_types::TaskTypes;
use crate::arguments::Fault;
use crate::store::{Store, StoreError};

/// The most workers remembered, whoever speaks on the exchange.
const MAX_WORKERS: usize = 10_000;
/// The most bytes that their latest heartbeats had together. Schemas count, but are kept once a type.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// A larger message is no heartbeat: a thousand running tasks and a few hundred types stay well below.
const MAX_HEARTBEAT_BYTES: usize = 1024 * 1024;

/// The workers that were heard of lately; clones share it.
#[derive(Clone)]
pub struct Workers {
    heard: Arc<Mutex<Heard>>,
    since: Instant,
}

#[derive(Default)]
struct Heard {
    workers: HashMap<String, Alive>,
    types: TaskTypes,
    holding: Holding,
}

/// A worker's latest heartbeat, without its schemas.
struct Alive {
    at: Instant,
    bytes: usize,
    heartbeat: Heartbeat,
}

impl Alive {
    /// Whether it takes tasks.
    fn is_alive(&self, now: Instant) -> bool {
        self.is_fresh(now) && !self.heartbeat.stopping
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.at) < HEARTBEAT_TTL
    }
}

/// What is known of a queue's workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// A living worker serves the queue and knows the task.
    Served,
    /// Living workers serve the queue, none knows the task.
    Unknown,
    /// No living worker serves the queue.
    Unserved,
    /// This producer has not listened for long enough to tell.
    Undecided,
}

impl Workers {
    /// Knows nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self { heard: Arc::default(), since: Instant::now() }
    }

    /// Takes in the types that an earlier process has kept.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn remember(&self, store: &Store) -> Result<(), StoreError> {
        for json in store.task_types().await? {
            match serde_json::from_str(&json) {
                Ok(task) => self.lock().types.remember(task),
                Err(error) => tracing::warn!(%error, "a task type of another version is forgotten"),
            }
        }
        Ok(())
    }

    /// Listens until the deliveries end and keeps in the store what they say of task types. What wants a reply is a
    /// question and passed on; a heartbeat wants none.
    pub async fn run(self, store: Store, mut deliveries: mpsc::Receiver<Delivery>, questions: mpsc::Sender<Message>) {
        while let Some(delivery) = deliveries.recv().await {
            if delivery.message.properties.reply_to.is_some() {
                let _ = questions.try_send(delivery.message.clone());
            } else {
                self.read(&delivery.message, Instant::now());
                self.keep(&store).await;
            }
            delivery.ack();
        }
    }

    async fn keep(&self, store: &Store) {
        let unkept = self.lock().types.unkept();
        if unkept.is_empty() {
            return;
        }
        let names: Vec<String> = unkept.iter().map(|kept| kept.0.clone()).collect();
        if let Err(error) = store.keep_task_types(unkept).await {
            // The next heartbeat tries again.
            tracing::warn!(%error, "announced task types are not kept yet");
            self.lock().types.keep_later(names);
        }
    }

    fn read(&self, message: &Message, now: Instant) {
        let bytes = message.body.len();
        if bytes > MAX_HEARTBEAT_BYTES {
            tracing::warn!(bytes, "too large for a heartbeat");
            self.lock().holding.miss(now);
            return;
        }
        match Heartbeat::decode(message) {
            Ok(heartbeat) => self.hear(heartbeat, bytes, now),
            Err(error) => {
                tracing::warn!(%error, "not a heartbeat");
                self.lock().holding.miss(now);
            }
        }
    }

    fn hear(&self, mut heartbeat: Heartbeat, bytes: usize, now: Instant) {
        let mut heard = self.lock();
        let Heard { workers, types, holding } = &mut *heard;
        holding.hear(&heartbeat, now);
        for task in &mut heartbeat.tasks {
            let schemas = (task.arguments.take(), task.result.take());
            types.learn(TaskType { arguments: schemas.0, result: schemas.1, ..task.clone() }, now);
        }
        workers.retain(|name, alive| alive.is_fresh(now) && *name != heartbeat.worker);
        let held: usize = workers.values().map(|alive| alive.bytes).sum();
        if workers.len() < MAX_WORKERS && held + bytes <= MAX_BYTES {
            workers.insert(heartbeat.worker.clone(), Alive { at: now, bytes, heartbeat });
        } else {
            holding.miss(now);
        }
        let alive = workers.values().filter(|alive| alive.is_alive(now)).count();
        metrics::gauge!("errand_workers").set(u32::try_from(alive).unwrap_or(u32::MAX));
    }

    /// How tasks of that name are retried when their caller does not say, as a worker announced it, alive or gone.
    #[must_use]
    pub fn retry(&self, task: &str) -> Option<RetryPolicy> {
        self.lock().types.retry(task)
    }

    /// Takes out of a message's headers what is shown to nobody of its task's arguments, as far as any worker, alive or
    /// gone, has announced it.
    pub fn redact(&self, headers: &mut Headers, task: &str, args: &RawValue, kwargs: &RawValue) {
        let announcement = self.lock().types.redacting(task);
        if let Some(announcement) = announcement {
            announcement.redactions().apply(headers, task, args, kwargs);
        }
    }

    /// Whether a worker, alive or gone, has announced a task of that name.
    #[must_use]
    pub fn is_known(&self, task: &str) -> bool {
        self.lock().types.is_known(task)
    }

    /// What is wrong with these arguments by every announcement of the task that is alive; empty when one of them may
    /// take them, or when there is none.
    #[must_use]
    pub fn faults(&self, task: &str, args: &RawValue, kwargs: &RawValue) -> Vec<Fault> {
        // Compared without the lock: a schema may take long.
        let announced = self.lock().types.living(task, Instant::now());
        let mut told = Vec::new();
        for announcement in announced {
            told = announcement.faults(args, kwargs);
            if told.is_empty() {
                break;
            }
        }
        told
    }

    /// Every type by name, as last announced, with how many of the living know it.
    #[must_use]
    pub fn task_types(&self) -> Vec<(TaskType, usize)> {
        let heard = self.lock();
        let now = Instant::now();
        let mut living: HashMap<&str, usize> = HashMap::new();
        for alive in heard.workers.values().filter(|alive| alive.is_alive(now)) {
            for task in &alive.heartbeat.tasks {
                *living.entry(&task.name).or_default() += 1;
            }
        }
        let types = heard.types.all().filter_map(|json| serde_json::from_str(json).ok());
        let mut types: Vec<(TaskType, usize)> = types
            .map(|task: TaskType| {
                let knowing = living.get(task.name.as_str()).copied().unwrap_or(0);
                (task, knowing)
            })
            .collect();
        types.sort_by(|one, other| one.0.name.cmp(&other.0.name));
        types
    }

    /// The living by name: their latest heartbeats without schemas, and how long ago that was.
    #[must_use]
    pub fn living(&self) -> Vec<(Heartbeat, Duration)> {
        let now = Instant::now();
        let heard = self.lock();
        let living = heard.workers.values().filter(|alive| alive.is_alive(now));
        let mut living: Vec<(Heartbeat, Duration)> =
            living.map(|alive| (alive.heartbeat.clone(), now.duration_since(alive.at))).collect();
        living.sort_by(|one, other| one.0.worker.cmp(&other.0.worker));
        living
    }

    /// How many of the living serve the queue.
    #[must_use]
    pub fn consumers(&self, queue: &str) -> usize {
        let now = Instant::now();
        let heard = self.lock();
        let living = heard.workers.values().filter(|alive| alive.is_alive(now));
        living.filter(|alive| alive.heartbeat.queues.iter().any(|served| served == queue)).count()
    }

    /// Whether anybody alive runs that task from that queue.
    #[must_use]
    pub fn service(&self, queue: &str, task: &str) -> Service {
        self.service_at(queue, task, Instant::now())
    }

    fn service_at(&self, queue: &str, task: &str, now: Instant) -> Service {
        let heard = self.lock();
        let alive = heard.workers.values().filter(|alive| alive.is_alive(now)).map(|alive| &alive.heartbeat);
        let mut serving = alive.filter(|heartbeat| heartbeat.queues.iter().any(|served| served == queue)).peekable();
        if serving.peek().is_none() {
            let settled = now.duration_since(self.since) > HEARTBEAT_INTERVAL;
            return if settled || !heard.workers.is_empty() { Service::Unserved } else { Service::Undecided };
        }
        if serving.any(|heartbeat| heartbeat.tasks.iter().any(|known| known.name == task)) {
            Service::Served
        } else {
            Service::Unknown
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn task_type(name: &str) -> TaskType {
        TaskType {
            name: name.to_owned(),
            arguments: serde_json::Value::Bool(true),
            positional: None,
            aliases: Vec::new(),
            result: serde_json::Value::Bool(true),
            execution: "async".to_owned(),
            retry: protocol::retry::RetryPolicy::default(),
            time_limit: None,
            soft_time_limit: None,
            concurrency_limit: None,
            rate_limit: None,
            redacted: Vec::new(),
        }
    }

    pub(super) fn heartbeat(queues: &[&str], stopping: bool) -> Heartbeat {
        Heartbeat {
            worker: "w@h".into(),
            pid: 1,
            version: String::new(),
            queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
            tasks: vec![task_type("add")],
            concurrency: 1,
            running: Vec::new(),
            cut: false,
            stopping,
        }
    }

    #[test]
    fn a_queue_is_served_while_a_worker_speaks() {
        let workers = Workers::new();
        let now = Instant::now();
        assert_eq!(workers.service_at("default", "add", now), Service::Undecided);
        workers.hear(heartbeat(&["default"], false), 300, now);
        assert_eq!(workers.service_at("default", "add", now), Service::Served);
        assert_eq!(workers.service_at("default", "other", now), Service::Unknown);
        assert_eq!(workers.service_at("mail", "add", now), Service::Unserved);
        let later = now + HEARTBEAT_TTL + Duration::from_secs(1);
        assert_eq!(workers.service_at("default", "add", later), Service::Unserved);
    }

    #[test]
    fn a_worker_that_says_goodbye_is_gone_at_once() {
        let workers = Workers::new();
        let now = Instant::now();
        workers.hear(heartbeat(&["default"], false), 300, now);
        workers.hear(heartbeat(&["default"], true), 300, now);
        assert_eq!(workers.service_at("default", "add", now + Duration::from_secs(6)), Service::Unserved);
    }

    #[test]
    fn a_type_is_remembered_when_its_worker_is_gone() {
        let workers = Workers::new();
        let now = Instant::now();
        workers.hear(heartbeat(&["default"], false), 300, now);
        workers.hear(heartbeat(&["default"], true), 300, now);
        assert_eq!(workers.retry("add"), Some(RetryPolicy::default()));
        assert_eq!(workers.retry("other"), None);
    }

    #[test]
    fn what_any_announcement_hides_is_hidden() {
        let workers = Workers::new();
        let hidden = TaskType { redacted: vec!["card".to_owned()], ..task_type("pay") };
        workers.lock().types.learn(hidden, Instant::now());
        workers.lock().types.learn(task_type("pay"), Instant::now());
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap_or_default();
        let (args, kwargs) = (raw("[]"), raw(r#"{"card": 4242, "amount": 1}"#));
        let said = |task: &str| {
            let mut headers = Headers::from_iter([("kwargsrepr".to_owned(), "{'card': 4242}".into())]);
            workers.redact(&mut headers, task, &args, &kwargs);
            headers["kwargsrepr"].to_string()
        };
        assert!(said("pay").contains("<redacted>") && !said("pay").contains("4242"), "{}", said("pay"));
        assert!(said("other").contains("4242"));
    }

    #[test]
    fn heartbeats_of_strangers_fill_no_memory() {
        let workers = Workers::new();
        let now = Instant::now();
        for number in 0..100 {
            let worker = format!("w{number}");
            workers.hear(Heartbeat { worker, ..heartbeat(&["default"], false) }, MAX_HEARTBEAT_BYTES, now);
        }
        assert_eq!(workers.lock().workers.len(), MAX_BYTES / MAX_HEARTBEAT_BYTES);
        let mut message = heartbeat(&["mail"], false).encode().unwrap();
        message.body.resize(MAX_HEARTBEAT_BYTES + 1, b' ');
        workers.read(&message, now + HEARTBEAT_TTL);
        assert_eq!(workers.service_at("mail", "add", now + HEARTBEAT_TTL), Service::Unserved);
        message.body.truncate(MAX_HEARTBEAT_BYTES);
        workers.read(&message, now + HEARTBEAT_TTL);
        assert_eq!(workers.service_at("mail", "add", now + HEARTBEAT_TTL), Service::Served);
    }
}
