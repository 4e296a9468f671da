//! Who is alive: the workers' heartbeats, in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use protocol::amqp::Delivery;
use protocol::heartbeat::{HEARTBEAT_INTERVAL, HEARTBEAT_TTL, Heartbeat};
use tokio::sync::mpsc;

/// The most workers remembered, whoever speaks on the exchange.
const MAX_WORKERS: usize = 10_000;

/// The workers that were heard of lately; clones share it.
#[derive(Clone)]
pub struct Workers {
    heard: Arc<Mutex<HashMap<String, (Instant, Heartbeat)>>>,
    since: Instant,
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

    /// Listens until the deliveries end.
    pub async fn run(self, mut deliveries: mpsc::Receiver<Delivery>) {
        while let Some(delivery) = deliveries.recv().await {
            match Heartbeat::decode(&delivery.message) {
                Ok(heartbeat) => self.hear(heartbeat, Instant::now()),
                Err(error) => tracing::warn!(%error, "not a heartbeat"),
            }
            delivery.ack().await;
        }
    }

    fn hear(&self, heartbeat: Heartbeat, now: Instant) {
        let mut heard = self.lock();
        heard.retain(|_, (at, _)| now.duration_since(*at) < HEARTBEAT_TTL);
        if heartbeat.stopping {
            heard.remove(&heartbeat.worker);
        } else if heard.len() < MAX_WORKERS || heard.contains_key(&heartbeat.worker) {
            heard.insert(heartbeat.worker.clone(), (now, heartbeat));
        }
        metrics::gauge!("errand_workers").set(u32::try_from(heard.len()).unwrap_or(u32::MAX));
    }

    /// Whether anybody alive runs that task from that queue.
    #[must_use]
    pub fn service(&self, queue: &str, task: &str) -> Service {
        self.service_at(queue, task, Instant::now())
    }

    fn service_at(&self, queue: &str, task: &str, now: Instant) -> Service {
        let heard = self.lock();
        let alive = heard.values().filter(|(at, _)| now.duration_since(*at) < HEARTBEAT_TTL);
        let mut serving =
            alive.filter(|(_, heartbeat)| heartbeat.queues.iter().any(|served| served == queue)).peekable();
        if serving.peek().is_none() {
            let settled = now.duration_since(self.since) > HEARTBEAT_INTERVAL;
            return if settled || !heard.is_empty() { Service::Unserved } else { Service::Undecided };
        }
        if serving.any(|(_, heartbeat)| heartbeat.tasks.iter().any(|known| known.name == task)) {
            Service::Served
        } else {
            Service::Unknown
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Instant, Heartbeat)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::heartbeat::TaskType;
    use std::time::Duration;

    fn task_type(name: &str) -> TaskType {
        TaskType {
            name: name.to_owned(),
            arguments: serde_json::Value::Bool(true),
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

    fn heartbeat(queues: &[&str], stopping: bool) -> Heartbeat {
        Heartbeat {
            worker: "w@h".into(),
            pid: 1,
            version: String::new(),
            queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
            tasks: vec![task_type("add")],
            concurrency: 1,
            running: Vec::new(),
            stopping,
        }
    }

    #[test]
    fn a_queue_is_served_while_a_worker_speaks() {
        let workers = Workers::new();
        let now = Instant::now();
        assert_eq!(workers.service_at("default", "add", now), Service::Undecided);
        workers.hear(heartbeat(&["default"], false), now);
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
        workers.hear(heartbeat(&["default"], false), now);
        workers.hear(heartbeat(&["default"], true), now);
        assert_eq!(workers.service_at("default", "add", now + Duration::from_secs(6)), Service::Unserved);
    }
}
