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
