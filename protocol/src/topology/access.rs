//! What each service's user may do on the broker: the least with which it works, as patterns of names.
//!
//! What an operation needs: to bind a queue, write on the queue and read on the exchange; to consume, get or purge, read;
//! to declare or delete, configure; to look whether something is there, any of the three, or up to 4.2 nothing. Write on a
//! queue gives least: with it alone nothing can be bound. The default exchange is `amq.default`.

use super::{CONTROL_QUEUE, EVENTS, PIDBOX, PIDBOX_REPLIES, RESULTS, Table, Topology, WORKERS_QUEUE};

/// Whose user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The producer: publishes tasks and commands, reads results, heartbeats and what was lost.
    Producer,
    /// The worker: reads tasks and commands, publishes what follows from them.
    Consumer,
}

/// Regular expressions over names of exchanges and queues, as RabbitMQ takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// What may be declared and deleted.
    pub configure: String,
    /// Exchanges that may be published to, queues that may be bound.
    pub write: String,
    /// Queues that may be consumed, exchanges that may be bound to.
    pub read: String,
}

/// An id as `Uuid::simple` writes it, of a store or of a process.
const ID: &str = "[0-9a-f]{32}";

/// A worker's mailbox has the worker's name in front, which may be any but this: it would be the exchange of replies.
const NOT_REPLIES: &str = "(?!reply\\.)";

impl Topology {
    /// What the user of a service may do that works with these queues, without prefix.
    #[must_use]
    pub fn access(&self, role: Role, queues: &[String]) -> Access {
        let names = |list: &[String]| list.iter().map(|name| literal(name)).collect::<Vec<_>>();
        let own = |queue: &str| format!("{}{ID}", literal(&self.name(queue)));
        let default_exchange = literal("amq.default");
        let tasks = names(&queues.iter().map(|queue| self.queue(queue)).collect::<Vec<_>>());
        match role {
            Role::Producer => {
                let queues = [own(RESULTS), own(WORKERS_QUEUE)];
                let published = [names(&[self.tasks(), self.control(), self.dead()]), vec![default_exchange]].concat();
                Access {
                    configure: any_of(&queues),
                    write: any_of(&[published, queues.to_vec(), tasks].concat()),
                    read: any_of(&[queues.to_vec(), names(&[self.lost(), self.workers()])].concat()),
                }
            }
            Role::Consumer => {
                let heard = [own(CONTROL_QUEUE), format!("{NOT_REPLIES}.+\\.{}", literal(PIDBOX))];
                let celery = [EVENTS.to_owned(), PIDBOX_REPLIES.to_owned()];
                let published = [&[self.tasks(), self.delay(), self.dead(), self.workers()], &celery[..]].concat();
                let published = [names(&published), vec![default_exchange]].concat();
                let waiting = [format!("{}\\.[0-9]+s", literal(&self.delay())), literal(&self.dead_letters())];
                Access {
                    configure: any_of(&heard),
                    write: any_of(&[&published[..], &heard, &waiting].concat()),
                    read: any_of(&[tasks, names(&[self.control(), PIDBOX.to_owned()]), heard.to_vec()].concat()),
                }
            }
        }
    }

    /// What a service looks for that others declare: all that its user has a right to.
    pub(super) fn expected(&self, role: Role, queues: &[String]) -> Table {
        let mut table = self.definitions(queues);
        match role {
            Role::Producer => {
                table.exchanges.retain(|exchange| exchange.name != self.delay());
                table.queues.retain(|queue| queues.iter().any(|name| self.queue(name) == queue.name));
            }
            Role::Consumer => table.exchanges.retain(|exchange| exchange.name != self.lost()),
        }
        table.declared_elsewhere()
    }
}

/// RabbitMQ finds a pattern anywhere in a name unless it is anchored.
fn any_of(patterns: &[String]) -> String {
    format!("^({})$", patterns.join("|"))
}

/// Of all that a name may hold only the dot means something in a pattern.
fn literal(name: &str) -> String {
    name.replace('.', "\\.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_service_reads_what_the_other_does() {
        let topology = Topology::new("e.");
        let queues = ["default".to_owned()];
        let producer = topology.access(Role::Producer, &queues);
        let consumer = topology.access(Role::Consumer, &queues);
        assert_eq!(producer.configure, format!("^(e\\.results\\.{ID}|e\\.workers\\.{ID})$"));
        let mailbox = r"(?!reply\.).+\.celery\.pidbox";
        assert_eq!(consumer.configure, format!("^(e\\.control\\.{ID}|{mailbox})$"));
        assert!(!producer.read.contains("default") && !producer.read.contains("tasks"), "{}", producer.read);
        let waiting = r"e\.delay\.[0-9]+s|e\.dead-letters)$";
        assert!(consumer.write.ends_with(waiting) && !producer.write.contains("delay"), "{consumer:?} {producer:?}");
        let read = format!("^(e\\.default|e\\.control|celery\\.pidbox|e\\.control\\.{ID}|{mailbox})$");
        assert_eq!(consumer.read, read);
    }

    #[test]
    fn a_service_looks_only_for_what_its_user_has_a_right_to() {
        let topology = Topology::new("e.").declared_elsewhere();
        let queues = ["default".to_owned()];
        let expected =
            |role| topology.shared(role, &queues).expected.iter().map(ToString::to_string).collect::<Vec<_>>();
        let producer = expected(Role::Producer);
        let exchanges = ["lost", "dead", "tasks", "workers", "control"].map(|name| format!("exchange e.{name}"));
        assert_eq!(producer, [&exchanges[..], &["queue e.default".to_owned()]].concat());
        let consumer = expected(Role::Consumer);
        assert!(!consumer.contains(&"exchange e.lost".to_owned()), "{consumer:?}");
        assert_eq!(consumer.len(), 5 + 1 + 1 + 20, "{consumer:?}");
    }
}
