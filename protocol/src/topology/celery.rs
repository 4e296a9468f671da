//! Celery's own objects for events and remote control, declared exactly as Celery 5.7 declares them. All workers of a
//! virtual host share them, whatever their prefix: Celery's tools know no other names.

use serde_json::json;

use super::{Exchange, ExchangeKind, Queue, Table, Topology, arguments, bind};

/// The topic exchange of events.
pub const EVENTS: &str = "celeryev";
/// The fanout exchange of commands to all workers.
pub const PIDBOX: &str = "celery.pidbox";
/// The direct exchange of the answers to them.
pub const PIDBOX_REPLIES: &str = "reply.celery.pidbox";

/// A worker's queue goes with its connection, or after so many milliseconds without a consumer.
const MAILBOX_EXPIRES_MS: u32 = 10_000;
/// A command that was not read in so many milliseconds is nobody's any more.
const MAILBOX_TTL_MS: u32 = 300_000;

impl Topology {
    /// The exchanges of Celery's events and remote control, to be declared by somebody.
    #[must_use]
    pub fn celery_definitions() -> Table {
        let exchange = |name: &str, kind, durable| {
            let arguments = arguments(&[]);
            Exchange { name: name.to_owned(), kind, durable, arguments }
        };
        let exchanges = vec![
            exchange(EVENTS, ExchangeKind::Topic, true),
            exchange(PIDBOX, ExchangeKind::Fanout, false),
            exchange(PIDBOX_REPLIES, ExchangeKind::Direct, false),
        ];
        Table { exchanges, ..Table::default() }
    }

    /// What a worker of that name declares, or looks for, to talk with Celery's tools, and the queue in which it hears
    /// commands if it is to.
    #[must_use]
    pub fn celery(&self, worker: &str, control: bool) -> Table {
        let definitions = Self::celery_definitions();
        let shared = if self.declared_elsewhere { definitions.declared_elsewhere() } else { definitions };
        if control { shared.and(mailbox(worker)) } else { shared }
    }

    /// The queue in which a worker of that name hears Celery's commands.
    #[must_use]
    pub fn celery_mailbox(worker: &str) -> String {
        format!("{worker}.{PIDBOX}")
    }
}

fn mailbox(worker: &str) -> Table {
    let name = Topology::celery_mailbox(worker);
    let arguments = arguments(&[("x-expires", json!(MAILBOX_EXPIRES_MS)), ("x-message-ttl", json!(MAILBOX_TTL_MS))]);
    Table {
        bindings: vec![bind(PIDBOX.to_owned(), name.clone(), "", &[])],
        queues: vec![Queue { name, durable: false, exclusive: true, arguments }],
        ..Table::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_those_that_celery_declares() {
        let table = Topology::new("errand.").celery("w1@h1", true);
        let exchanges = table.exchanges.iter().map(|it| (it.name.as_str(), it.kind, it.durable)).collect::<Vec<_>>();
        let expected = [
            ("celeryev", ExchangeKind::Topic, true),
            ("celery.pidbox", ExchangeKind::Fanout, false),
            ("reply.celery.pidbox", ExchangeKind::Direct, false),
        ];
        assert_eq!(exchanges, expected);
        let queue = &table.queues[0];
        assert_eq!((queue.name.as_str(), queue.durable, queue.exclusive), ("w1@h1.celery.pidbox", false, true));
        assert_eq!(json!(queue.arguments), json!({"x-expires": 10_000, "x-message-ttl": 300_000}));
    }

    #[test]
    fn a_service_that_does_not_declare_declares_its_own_queue_only() {
        let table = Topology::new("errand.").declared_elsewhere().celery("w1@h1", true);
        assert_eq!((table.exchanges.len(), table.expected.len(), table.queues.len()), (0, 3, 1));
        assert!(Topology::new("errand.").celery("w1@h1", false).queues.is_empty());
    }
}
