//! The consumers of one connection, each on a channel of its own since qos is per consumer. A channel stays when its
//! consumer is cancelled: what was delivered is still settled over it.

use std::collections::{BTreeSet, HashMap};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, SelectAll};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::acks::Acks;
use super::convert::short_string;
use super::declare::declare_on;
use super::fault::{Fault, within};
use super::subscription::{Delivery, QueueSpec};
use crate::topology::Table;

const DEADLINE: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(3);

pub(super) struct Consumers {
    connection: Connection,
    tag: String,
    /// Consumers started so far.
    started: u32,
    channels: HashMap<String, Open>,
    settlers: JoinSet<()>,
    /// What all of them receive. One that ends by itself is a fault, one that was cancelled just ends.
    pub(super) deliveries: SelectAll<BoxStream<'static, Result<Delivery, Fault>>>,
}

struct Open {
    channel: Channel,
    acks: Arc<Acks>,
    consumer: Option<Running>,
}

struct Running {
    tag: ShortString,
    cancelled: Arc<AtomicBool>,
}

impl Consumers {
    pub(super) fn new(connection: Connection, tag: &str) -> Self {
        let tag = tag.to_owned();
        let (channels, settlers, deliveries) = (HashMap::new(), JoinSet::new(), SelectAll::new());
        Self { connection, tag, started: 0, channels, settlers, deliveries }
    }

    /// Consumes a queue, unless it is consumed already. Each time under another tag: RabbitMQ 3.10 ends the connection with
    /// `INTERNAL_ERROR` when one comes back to a quorum queue while what it had before is unacked.
    pub(super) async fn start(&mut self, queue: &QueueSpec) -> Result<(), Fault> {
        let (channel, acks) = match self.channels.get(&queue.name) {
            Some(Open { consumer: Some(_), .. }) => return Ok(()),
            Some(Open { channel, acks, .. }) => (channel.clone(), acks.clone()),
            None => self.open(queue).await?,
        };
        let (name, options) = (short_string(&queue.name)?, BasicConsumeOptions::default());
        let tag = short_string(&format!("{}-{}", self.tag, self.started))?;
        self.started = self.started.wrapping_add(1);
        let consume = channel.basic_consume(name, tag, options, FieldTable::default());
        let consumer = within("basic.consume", DEADLINE, consume).await?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let running = Running { tag: consumer.tag(), cancelled: cancelled.clone() };
        if let Some(open) = self.channels.get_mut(&queue.name) {
            open.consumer = Some(running);
        }
        let (name, ended) = (Arc::<str>::from(queue.name.as_str()), queue.name.clone());
        let end = stream::once(async move { (!cancelled.load(Ordering::Relaxed)).then_some(ended) });
        let end = end.filter_map(ready).map(|queue| Err(Fault::ConsumerEnded { queue }));
        let received =
            move |delivery: Result<_, lapin::Error>| Ok(Delivery::new(name.clone(), delivery?, acks.clone()));
        self.deliveries.push(consumer.map(received).chain(end).boxed());
        Ok(())
    }

    /// Declares a table on the same connection. `&mut`: a future that shares the streams could not be sent to another thread.
    pub(super) async fn declare(&mut self, table: &Table) -> Result<(), Fault> {
        declare_on(&self.connection, table).await
    }

    /// Cancels these, all at once: what one gives back must not come to another that is still there.
    pub(super) async fn cancel(&mut self, queues: impl Iterator<Item = &str>) -> Result<(), Fault> {
        let mut cancels = Vec::new();
        for queue in queues {
            let Some(open) = self.channels.get_mut(queue) else { continue };
            let Some(Running { tag, cancelled }) = open.consumer.take() else { continue };
            cancelled.store(true, Ordering::Relaxed);
            let channel = open.channel.clone();
            cancels.push(async move {
                let cancel = channel.basic_cancel(tag, BasicCancelOptions::default());
                within("basic.cancel", DEADLINE, cancel).await
            });
        }
        join_all(cancels).await.into_iter().collect()
    }

    /// The full names of the queues that are consumed.
    pub(super) fn consumed(&self) -> BTreeSet<String> {
        let running = self.channels.iter().filter(|(_, open)| open.consumer.is_some());
        running.map(|(name, _)| name.clone()).collect()
    }

    async fn open(&mut self, queue: &QueueSpec) -> Result<(Channel, Arc<Acks>), Fault> {
        let channel = within("opening a channel", DEADLINE, self.connection.create_channel()).await?;
        let qos = channel.basic_qos(queue.prefetch, BasicQosOptions::default());
        within("basic.qos", DEADLINE, qos).await?;
        let acks = Acks::of(&channel);
        self.settlers.spawn(acks.clone().run(channel.clone()));
        // At once, so that its settler ends with the connection also when the queue cannot be consumed.
        let open = Open { channel: channel.clone(), acks: acks.clone(), consumer: None };
        self.channels.insert(queue.name.clone(), open);
        Ok((channel, acks))
    }

    /// Sends the acks that are due, and closes the connection.
    pub(super) async fn close(mut self) {
        self.channels.values().for_each(|open| open.acks.close());
        let _ = timeout(CLOSE, async { while self.settlers.join_next().await.is_some() {} }).await;
        let _ = timeout(CLOSE, self.connection.close(200, "bye".into())).await;
    }
}
