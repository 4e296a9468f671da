//! The broker's objects: one table from which both services declare (DESIGN: every name starts with the prefix, but
//! for Celery's own).
//!
//! Plain data. [`crate::amqp`] declares it; nothing else builds names.

mod access;
mod celery;
mod table;

use serde_json::{Map, Value, json};

pub use self::access::{Access, Role};
pub use self::celery::{EVENTS, PIDBOX, PIDBOX_REPLIES};
pub use self::table::{Binding, Exchange, ExchangeKind, Object, Queue, Table};
use crate::faults::{Bug, bug};
use crate::heartbeat::HEARTBEAT_TTL;

/// Delay levels are 2^0 s to 2^19 s.
pub const DELAY_LEVELS: u32 = 20;

/// Returns from the broker before a message counts as poison. Set explicitly: without it 3.10 redelivers for ever and
/// 4.x gives up after 20.
const DELIVERY_LIMIT: i64 = 20;

/// For queues whose messages must survive being looked at: from 4.0 the default of 20 deletes what was returned 21
/// times, and -1 means zero on 3.10.
const DELIVERY_LIMIT_NEVER: i64 = 1_000_000;

/// Dead letters are kept for 14 days.
const DEAD_LETTER_TTL_MS: i64 = 14 * 24 * 3600 * 1000;

/// Dead letters beyond this drop the oldest.
const DEAD_LETTER_MAX: i64 = 100_000;

/// `AMQP_PREFIX` is not longer: what is put after it has 191 bytes left of AMQP's 255 for a name.
pub const MAX_PREFIX_BYTES: usize = 64;

/// What follows the prefix, before an id, in the names of reply, heartbeat and control queues. Task queues have no dots.
const RESULTS: &str = "results.";
const WORKERS_QUEUE: &str = "workers.";
const CONTROL_QUEUE: &str = "control.";

/// Commands that wait for a worker which does not read them, at most.
const CONTROL_MAX: i64 = 10_000;

/// Exchanges, without the prefix. No queue may be called so: the broker's permissions do not tell them apart.
const EXCHANGES: [&str; 6] = ["tasks", "delay", "dead", "lost", "workers", "control"];

/// The names of the broker's objects under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    prefix: String,
    /// Whether the services find what they share declared.
    declared_elsewhere: bool,
}

/// A queue name that [`Topology::check_queue`] refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQueueName {
    /// Dots would match two topic bindings, and a task would run twice; other signs are hard to type in a URL.
    #[error("queue name {0:?} does not match [a-z0-9_-]{{1,64}}")]
    Pattern(String),
    /// The name is taken by Errand's own queue, or by an exchange, whose permissions would be the queue's.
    #[error("queue name {0:?} is taken by an exchange or a queue of Errand's own")]
    Reserved(String),
}

impl Topology {
    /// Of all names that start with `prefix`, `errand.` by default.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), declared_elsewhere: false }
    }

    /// The same for services whose users may not declare what they share: they look whether it is there.
    #[must_use]
    pub fn declared_elsewhere(self) -> Self {
        Self { declared_elsewhere: true, ..self }
    }

    /// Whether the name may be a task queue's, without the prefix.
    ///
    /// # Errors
    /// The name does not match `[a-z0-9_-]{1,64}`, or is reserved.
    pub fn check_queue(name: &str) -> Result<(), BadQueueName> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
            return Err(BadQueueName::Pattern(name.to_owned()));
        }
        if name == "dead-letters" || EXCHANGES.contains(&name) {
            return Err(BadQueueName::Reserved(name.to_owned()));
        }
        Ok(())
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The topic exchange that tasks are published to; the routing key is the queue's name without the prefix.
    #[must_use]
    pub fn tasks(&self) -> String {
        self.name("tasks")
    }

    /// The full name of a task queue.
    #[must_use]
    pub fn queue(&self, queue: &str) -> String {
        self.name(queue)
    }

    /// The headers exchange in front of the delay queues.
    #[must_use]
    pub fn delay(&self) -> String {
        self.name("delay")
    }

    /// The delay queue of level k, which holds a message for 2^k s.
    #[must_use]
    pub fn delay_queue(&self, level: u32) -> String {
        self.name(&format!("delay.{}", delay_label(level)))
    }

    /// The name without the prefix of a task queue's full name.
    #[must_use]
    pub fn queue_of<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.prefix).unwrap_or(name)
    }

    /// Whether a full queue name is that of a delay queue.
    #[must_use]
    pub fn is_delay_queue(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with("delay."))
    }

    /// The exchange of what a worker gave up on.
    #[must_use]
    pub fn dead(&self) -> String {
        self.name("dead")
    }

    /// The exchange of what the broker gave up on.
    #[must_use]
    pub fn lost(&self) -> String {
        self.name("lost")
    }

    /// The operator's queue.
    #[must_use]
    pub fn dead_letters(&self) -> String {
        self.name("dead-letters")
    }

    /// The reply queue of the producers that share a store.
    #[must_use]
    pub fn results(&self, store_id: &str) -> String {
        self.name(&format!("{RESULTS}{store_id}"))
    }

    /// The exchange of the workers' heartbeats.
    #[must_use]
    pub fn workers(&self) -> String {
        self.name("workers")
    }

    /// The exchange of commands to all workers.
    #[must_use]
    pub fn control(&self) -> String {
        self.name("control")
    }

    /// What both services declare: everything but reply, heartbeat and control queues. Where others declare it, what a
    /// service of this role only looks for. `queues` without prefix.
    #[must_use]
    pub fn shared(&self, role: Role, queues: &[String]) -> Table {
        if self.declared_elsewhere { self.expected(role, queues) } else { self.definitions(queues) }
    }

    /// What has to be declared by somebody, whether by the services or not.
    #[must_use]
    pub fn definitions(&self, queues: &[String]) -> Table {
        let mut table = Table { exchanges: self.exchanges(), ..Table::default() };
        table.queues.push(self.dead_letter_queue());
        for exchange in [self.dead(), self.lost()] {
            table.bindings.push(bind(exchange, self.dead_letters(), "", &[]));
        }
        for queue in queues {
            table.queues.push(self.task_queue(queue));
            table.bindings.push(bind(self.tasks(), self.queue(queue), queue, &[]));
        }
        for level in 0..DELAY_LEVELS {
            table.queues.push(self.level_queue(level));
            let matching = [("x-match", json!("all")), ("errand-delay", json!(delay_label(level)))];
            table.bindings.push(bind(self.delay(), self.delay_queue(level), "", &matching));
        }
        table
    }

    /// What a producer declares besides: its reply queue, which also hears of what the broker lost.
    #[must_use]
    pub fn reply_queue(&self, store_id: &str) -> Table {
        let name = self.results(store_id);
        let arguments =
            arguments(&[("x-queue-type", json!("quorum")), ("x-delivery-limit", json!(DELIVERY_LIMIT_NEVER))]);
        Table {
            bindings: vec![bind(self.lost(), name.clone(), "", &[])],
            queues: vec![Queue { name, durable: true, exclusive: false, arguments }],
            ..Table::default()
        }
    }

    /// What one producer process declares besides: the queue in which it hears the workers' heartbeats.
    #[must_use]
    pub fn heartbeat_queue(&self, producer_id: &str) -> Table {
        let name = self.name(&format!("{WORKERS_QUEUE}{producer_id}"));
        let arguments = arguments(&[("x-message-ttl", json!(HEARTBEAT_TTL.as_secs() * 1000))]);
        Table {
            bindings: vec![bind(self.workers(), name.clone(), "", &[])],
            queues: vec![Queue { name, durable: false, exclusive: true, arguments }],
            ..Table::default()
        }
    }

    /// What one worker process declares besides: the queue in which it hears commands, and answers to its questions.
    #[must_use]
    pub fn control_queue(&self, worker_id: &str) -> Table {
        let name = self.name(&format!("{CONTROL_QUEUE}{worker_id}"));
        let arguments = arguments(&[("x-max-length", json!(CONTROL_MAX))]);
        Table {
            bindings: vec![bind(self.control(), name.clone(), "", &[])],
            queues: vec![Queue { name, durable: false, exclusive: true, arguments }],
            ..Table::default()
        }
    }

    /// Whether a full queue name is that of a worker's control queue.
    #[must_use]
    pub fn is_control_queue(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with(CONTROL_QUEUE))
    }

    fn exchanges(&self) -> Vec<Exchange> {
        // Without an alternate exchange, 32 messages that cannot be routed stop at-least-once dead-lettering for all.
        let alternate = [("alternate-exchange", json!(self.lost()))];
        let exchange =
            |name, kind, args: &[(&str, Value)]| Exchange { name, kind, durable: true, arguments: arguments(args) };
        vec![
            exchange(self.lost(), ExchangeKind::Fanout, &[]),
            exchange(self.dead(), ExchangeKind::Fanout, &[]),
            exchange(self.tasks(), ExchangeKind::Topic, &alternate),
            exchange(self.delay(), ExchangeKind::Headers, &alternate),
            exchange(self.workers(), ExchangeKind::Fanout, &[]),
            exchange(self.control(), ExchangeKind::Fanout, &[]),
        ]
    }

    fn task_queue(&self, queue: &str) -> Queue {
        let limit = [("x-delivery-limit", json!(DELIVERY_LIMIT))];
        Queue {
            name: self.queue(queue),
            durable: true,
            exclusive: false,
            arguments: dead_lettering_to(&self.lost(), &limit),
        }
    }

    fn level_queue(&self, level: u32) -> Queue {
        let ttl = [("x-message-ttl", json!(1000_i64 << level))];
        Queue {
            name: self.delay_queue(level),
            durable: true,
            exclusive: false,
            arguments: dead_lettering_to(&self.tasks(), &ttl),
        }
    }

    fn dead_letter_queue(&self) -> Queue {
        let arguments = arguments(&[
            ("x-queue-type", json!("quorum")),
            ("x-message-ttl", json!(DEAD_LETTER_TTL_MS)),
            ("x-max-length", json!(DEAD_LETTER_MAX)),
            ("x-overflow", json!("drop-head")),
            ("x-delivery-limit", json!(DELIVERY_LIMIT_NEVER)),
        ]);
        Queue { name: self.dead_letters(), durable: true, exclusive: false, arguments }
    }
}

/// The value of the header `errand-delay` that routes to level k: `1s`, `2s`, `4s` and so on. A string, because the
/// headers exchange compares types too.
#[must_use]
pub fn delay_label(level: u32) -> String {
    format!("{}s", 1_u64 << level)
}

/// A quorum queue that dead-letters at least once, which needs reject-publish (measured on 3.10 and 4.3).
fn dead_lettering_to(exchange: &str, more: &[(&str, Value)]) -> Map<String, Value> {
    let mut all = arguments(&[
        ("x-queue-type", json!("quorum")),
        ("x-dead-letter-exchange", json!(exchange)),
        ("x-dead-letter-strategy", json!("at-least-once")),
        ("x-overflow", json!("reject-publish")),
    ]);
    all.extend(arguments(more));
    if bug(Bug::NoDeadLetterExchange) {
        all.retain(|name, _| !name.starts_with("x-dead-letter"));
    }
    all
}

fn arguments(pairs: &[(&str, Value)]) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn bind(exchange: String, queue: String, routing_key: &str, args: &[(&str, Value)]) -> Binding {
    Binding { exchange, queue, routing_key: routing_key.to_owned(), arguments: arguments(args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Topology::new("errand.").shared(Role::Producer, &["default".to_owned(), "mail".to_owned()])
    }

    #[test]
    fn every_exchange_that_dead_letters_reach_has_a_way_out() {
        let table = table();
        for queue in &table.queues {
            let Some(target) = queue.arguments.get("x-dead-letter-exchange") else { continue };
            let target = table.exchanges.iter().find(|exchange| exchange.name == *target).unwrap();
            let fanout = target.kind == ExchangeKind::Fanout;
            assert!(fanout || target.arguments.contains_key("alternate-exchange"), "{} may jam", queue.name);
        }
    }

    #[test]
    fn bindings_name_declared_objects_only() {
        let table = table();
        for binding in &table.bindings {
            assert!(table.exchanges.iter().any(|exchange| exchange.name == binding.exchange));
            assert!(table.queues.iter().any(|queue| queue.name == binding.queue));
        }
    }

    #[test]
    fn every_exchange_has_its_name_to_itself() {
        let names = EXCHANGES.map(|name| format!("errand.{name}"));
        assert!(table().exchanges.iter().all(|exchange| names.contains(&exchange.name)));
        assert_eq!(table().exchanges.len(), names.len());
    }

    #[test]
    fn queue_names_with_dots_or_taken_names_are_refused() {
        for bad in ["", "a.b", "A", "mail#", "dead-letters", "lost", &"x".repeat(65)] {
            assert!(Topology::check_queue(bad).is_err(), "{bad:?}");
        }
        for good in ["default", "mail_2", "a-b", &"x".repeat(64)] {
            assert_eq!(Topology::check_queue(good), Ok(()));
        }
    }

    #[test]
    fn delay_levels_double() {
        let topology = Topology::new("t.");
        assert_eq!(topology.delay_queue(0), "t.delay.1s");
        assert_eq!(topology.delay_queue(19), "t.delay.524288s");
        assert!(topology.is_delay_queue("t.delay.4s") && !topology.is_delay_queue("t.default"));
    }
}
