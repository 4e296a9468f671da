//! A queue of commands and the answers to them, on one connection of their own: for talk that may be lost.
//!
//! Nothing here is acked or confirmed, and what there is no room for, or no connection, is dropped and counted. A fault of this talk, such
//! as an exchange that is gone, touches no task.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::broker::Broker;
use super::convert::{basic_properties, message, short_string};
use super::declare::declare_on;
use super::fault::{Fault, within};
use super::publish::Publish;
use super::supervise::{Broken, Rebuild};
use crate::message::Message;
use crate::topology::Table;

/// Commands that wait to be read.
const RECEIVED: usize = 100;
/// Publishes that wait for their turn.
const OUTGOING: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(1);
/// How often an idle connection is looked at.
const CHECK: Duration = Duration::from_millis(500);

/// The near end: what comes in, and where to put what goes out.
pub struct Mailbox {
    /// The commands.
    pub received: mpsc::Receiver<Message>,
    /// What is published. When it is dropped, the task publishes what is left and ends.
    pub outgoing: Outgoing,
    /// Whether it is connected; changes with every new connection.
    pub connected: watch::Receiver<bool>,
}

/// Where to put what is to be published.
pub struct Outgoing {
    waiting: mpsc::Sender<Publish>,
    connected: watch::Receiver<bool>,
}

/// The supervised loop, to be spawned.
pub struct MailboxTask {
    broker: Broker,
    table: Table,
    queue: Option<String>,
    received: mpsc::Sender<Message>,
    outgoing: mpsc::Receiver<Publish>,
    connected: watch::Sender<bool>,
}

/// One connection.
struct Session {
    connection: Connection,
    channel: Channel,
    commands: Option<Consumer>,
}

impl Mailbox {
    /// A mailbox that declares `table` whenever it connects, and reads from `queue`, by its full name, if there is one.
    #[must_use]
    pub fn new(broker: Broker, table: Table, queue: Option<String>) -> (Self, MailboxTask) {
        let (received_tx, received) = mpsc::channel(RECEIVED);
        let (waiting, outgoing_rx) = mpsc::channel(OUTGOING);
        let (connected_tx, connected) = watch::channel(false);
        let outgoing = Outgoing { waiting, connected: connected.clone() };
        let task =
            MailboxTask { broker, table, queue, received: received_tx, outgoing: outgoing_rx, connected: connected_tx };
        (Self { received, outgoing, connected }, task)
    }
}

impl Outgoing {
    /// Puts a message on its way, unless there is no connection or no room for it: what is said once the broker is back
    /// of a time when it was away would tell of what is no more.
    pub fn post(&self, publish: Publish) {
        if !*self.connected.borrow() || self.waiting.try_send(publish).is_err() {
            dropped("published", 1);
        }
    }
}

impl MailboxTask {
    /// Reads and publishes until its near end is dropped, and reconnects until `close`.
    ///
    /// # Errors
    /// Only a fault that rebuilding cannot mend.
    pub async fn run(mut self, close: CancellationToken) -> Result<(), Fault> {
        let mut rebuild = Rebuild::new("mailbox of Celery's tools");
        while !close.is_cancelled() {
            match self.session(&close).await {
                Ok(()) => return Ok(()),
                Err(broken) => rebuild.after(broken, &close).await?,
            }
        }
        Ok(())
    }

    async fn session(&mut self, close: &CancellationToken) -> Result<(), Broken> {
        let opened = close.run_until_cancelled(self.open()).await;
        let Some(mut session) = opened.transpose()? else { return Ok(()) };
        let connected = Some(Instant::now());
        self.connected.send_replace(true);
        let served = self.serve(&mut session).await;
        self.disconnected();
        let _ = timeout(CLOSE, session.connection.close(200, "bye".into())).await;
        served.map_err(|fault| Broken { fault, connected })
    }

    async fn open(&self) -> Result<Session, Fault> {
        let connection = self.broker.connect().await?;
        declare_on(&connection, &self.table).await?;
        let channel = within("opening a channel", DEADLINE, connection.create_channel()).await?;
        let commands = match &self.queue {
            None => None,
            Some(queue) => {
                let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
                let consume = channel.basic_consume(short_string(queue)?, "".into(), options, FieldTable::default());
                Some(within("basic.consume", DEADLINE, consume).await?)
            }
        };
        Ok(Session { connection, channel, commands })
    }

    async fn serve(&mut self, session: &mut Session) -> Result<(), Fault> {
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Vec::new();
        loop {
            tokio::select! {
                command = next(&mut session.commands) => {
                    let command = command.ok_or_else(|| self.consumer_ended())??;
                    if self.received.try_send(message(&command.properties, command.data)).is_err() {
                        dropped("received", 1);
                    }
                }
                count = self.outgoing.recv_many(&mut waiting, OUTGOING) => {
                    if count == 0 {
                        return Ok(());
                    }
                    session.publish(&mut waiting).await?;
                }
                _ = check.tick() => {
                    let usable = session.connection.status().connected() && session.channel.status().connected();
                    if !usable {
                        return Err(Fault::Disconnected);
                    }
                }
            }
        }
    }

    /// Nobody can get what still waits.
    fn disconnected(&mut self) {
        self.connected.send_replace(false);
        let waiting = std::iter::from_fn(|| self.outgoing.try_recv().ok()).count();
        dropped("published", waiting);
    }

    fn consumer_ended(&self) -> Fault {
        Fault::ConsumerEnded { queue: self.queue.clone().unwrap_or_default() }
    }
}

impl Session {
    /// While the broker blocks publishers, what is published would hang and come too late.
    #[expect(clippy::disallowed_methods, reason = "the channel is this session's own, and nobody awaits a confirm")]
    async fn publish(&self, waiting: &mut Vec<Publish>) -> Result<(), Fault> {
        for publish in waiting.drain(..) {
            let properties = basic_properties(&publish.message.properties)?;
            if self.connection.status().blocked() {
                dropped("published", 1);
                continue;
            }
            let (exchange, key) = (short_string(&publish.exchange)?, short_string(&publish.routing_key)?);
            let options = BasicPublishOptions::default();
            let sent = self.channel.basic_publish(exchange, key, options, &publish.message.body, properties);
            match within("a publish", DEADLINE, sent).await {
                Err(Fault::Deadline { .. }) if self.connection.status().blocked() => dropped("published", 1),
                sent => drop(sent?),
            }
        }
        Ok(())
    }
}

fn dropped(direction: &'static str, count: usize) {
    metrics::counter!("errand_celery_messages_dropped_total", "direction" => direction).increment(count as u64);
}

/// The next command, for ever none when none are read. Cancel safe.
async fn next(commands: &mut Option<Consumer>) -> Option<Result<lapin::message::Delivery, lapin::Error>> {
    match commands {
        Some(commands) => commands.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::{Address, AmqpUrl};

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_waits_for_a_connection() {
        let url = AmqpUrl::parse("amqp://127.0.0.1:1/%2f").unwrap();
        let broker = Broker::new(Address { url, tls: None }, "test").unwrap();
        let (mailbox, mut task) = Mailbox::new(broker, Table::default(), None);
        let publish = || Publish::to_queue("q".to_owned(), Message::default());
        let mut waiting_after = |posted: usize, connected: Option<bool>| {
            if let Some(connected) = connected {
                task.connected.send_replace(connected);
            } else {
                task.disconnected();
            }
            (0..posted).for_each(|_| mailbox.outgoing.post(publish()));
            task.outgoing.len()
        };
        assert_eq!(waiting_after(3, Some(false)), 0, "before the first");
        assert_eq!(waiting_after(3, Some(true)), 3);
        assert_eq!(waiting_after(3, None), 0, "and what waited at its end is gone");
        assert_eq!(waiting_after(OUTGOING + 3, Some(true)), OUTGOING);
    }
}
