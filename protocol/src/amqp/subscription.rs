//! The supervised consumer: qos first, a stream that ends is a fault, everything is rebuilt with jittered backoff.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker::Broker;
use super::convert::{message, short_string};
use super::declare::declare_on;
use super::fault::{Fault, within};
use super::link::{self, Link};
use super::supervise::{Broken, Rebuild};
use crate::message::Message;
use crate::topology::Table;

const DEADLINE: Duration = Duration::from_secs(10);

/// A queue to consume from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// Full name.
    pub name: String,
    /// The most deliveries that may be unsettled. lapin's buffers have no bound of their own.
    pub prefetch: u16,
}

/// What to declare and consume.
#[derive(Debug, Clone)]
pub struct Subscribe {
    /// Declared on every new connection, before anything is consumed.
    pub table: Table,
    /// The queues, each on a channel of its own since qos is per consumer.
    pub queues: Vec<QueueSpec>,
    /// Shown in the management UI.
    pub consumer_tag: String,
}

/// A message from a queue, to be settled exactly once. One that is dropped unsettled comes again when the connection
/// ends.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The full name of the queue it came from. The routing key may be another: a message moved by hand has the queue's.
    pub queue: Arc<str>,
    /// Whether the broker delivered it before.
    pub redelivered: bool,
    acker: lapin::Acker,
}

impl Delivery {
    fn new(queue: Arc<str>, delivery: lapin::message::Delivery) -> Self {
        Self {
            message: message(&delivery.properties, delivery.data),
            queue,
            redelivered: delivery.redelivered,
            acker: delivery.acker,
        }
    }

    /// Acknowledges. `false` when the channel is gone, so that the message comes again: lapin reports that as success.
    pub async fn ack(self) -> bool {
        self.acknowledge(false).await
    }

    /// Acknowledges this delivery and all before it on its channel.
    pub async fn ack_through(self) -> bool {
        self.acknowledge(true).await
    }

    async fn acknowledge(self, multiple: bool) -> bool {
        let acked = within("an ack", DEADLINE, self.acker.ack(BasicAckOptions { multiple })).await;
        let done = matches!(acked, Ok(true));
        if !done {
            metrics::counter!("errand_stale_acks_total").increment(1);
        }
        done
    }

    /// Gives the message back at once, for another worker.
    pub async fn requeue(self) -> bool {
        let options = BasicNackOptions { requeue: true, multiple: false };
        matches!(within("a nack", DEADLINE, self.acker.nack(options)).await, Ok(true))
    }
}

/// The supervised loop, to be spawned. Its deliveries come out of the receiver given with it.
pub struct SubscriptionTask {
    broker: Broker,
    subscribe: Subscribe,
    deliveries: mpsc::Sender<Delivery>,
    link: watch::Sender<Link>,
}

type Deliveries = SelectAll<BoxStream<'static, Result<Delivery, Fault>>>;

impl SubscriptionTask {
    /// A subscription that buffers no more than its prefetch.
    #[must_use]
    pub fn new(broker: Broker, subscribe: Subscribe) -> (Self, mpsc::Receiver<Delivery>, watch::Receiver<Link>) {
        let bound: usize = subscribe.queues.iter().map(|queue| usize::from(queue.prefetch)).sum();
        let (deliveries, receiver) = mpsc::channel(bound.max(1));
        let (link, link_rx) = watch::channel(Link::default());
        (Self { broker, subscribe, deliveries, link }, receiver, link_rx)
    }

    /// Consumes until `stop`; then cancels its consumers and keeps the connection, over which acks still go, until
    /// `close`.
    ///
    /// # Errors
    /// Only a fault that rebuilding cannot mend.
    pub async fn run(self, stop: CancellationToken, close: CancellationToken) -> Result<(), Fault> {
        let mut rebuild = Rebuild::new("consumer");
        let mut ended = Ok(());
        while ended.is_ok()
            && !stop.is_cancelled()
            && let Err(broken) = self.session(&stop, &close).await
        {
            link::set(&self.link, Link::Down(broken.fault.to_string()));
            ended = rebuild.after(broken, &stop).await;
        }
        link::set(&self.link, Link::Down("the consumer has stopped".into()));
        ended
    }

    async fn session(&self, stop: &CancellationToken, close: &CancellationToken) -> Result<(), Broken> {
        let opened = stop.run_until_cancelled(self.open()).await;
        let Some((connection, channels, mut deliveries)) = opened.transpose()? else { return Ok(()) };
        let connected = Some(Instant::now());
        link::set(&self.link, Link::Ready);
        tracing::info!(broker = %self.broker.url(), "consumer connected");
        let ended = self.receive(&mut deliveries, stop).await;
        if ended.is_ok() {
            cancel_consumers(&channels).await;
            tokio::select! {
                () = self.receive_the_rest(deliveries) => close.cancelled().await,
                () = close.cancelled() => {}
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(3), connection.close(200, "bye".into())).await;
        ended.map_err(|fault| Broken { fault, connected })
    }

    async fn open(&self) -> Result<(Connection, Vec<(Channel, ShortString)>, Deliveries), Fault> {
        let connection = self.broker.connect().await?;
        declare_on(&connection, &self.subscribe.table).await?;
        let mut channels = Vec::new();
        let mut deliveries = SelectAll::new();
        for queue in &self.subscribe.queues {
            let (channel, consumer) = self.consume(&connection, queue).await?;
            channels.push((channel, consumer.tag()));
            let (name, ended) = (Arc::<str>::from(queue.name.as_str()), queue.name.clone());
            let end = stream::once(async { Err(Fault::ConsumerEnded { queue: ended }) });
            let received = move |delivery: Result<_, lapin::Error>| Ok(Delivery::new(name.clone(), delivery?));
            deliveries.push(consumer.map(received).chain(end).boxed());
        }
        Ok((connection, channels, deliveries))
    }

    async fn consume(&self, connection: &Connection, queue: &QueueSpec) -> Result<(Channel, lapin::Consumer), Fault> {
        let channel = within("opening a channel", DEADLINE, connection.create_channel()).await?;
        let qos = channel.basic_qos(queue.prefetch, BasicQosOptions::default());
        within("basic.qos", DEADLINE, qos).await?;
        let consume = channel.basic_consume(
            short_string(&queue.name)?,
            short_string(&self.subscribe.consumer_tag)?,
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = within("basic.consume", DEADLINE, consume).await?;
        Ok((channel, consumer))
    }

    async fn receive(&self, deliveries: &mut Deliveries, stop: &CancellationToken) -> Result<(), Fault> {
        loop {
            let delivery = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                delivery = deliveries.next() => delivery,
            };
            let delivery = delivery.ok_or(Fault::Disconnected)??;
            if self.deliveries.send(delivery).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Passes on what the broker had sent before it saw the cancel, so that its receiver can give it back.
    async fn receive_the_rest(&self, mut deliveries: Deliveries) {
        while let Some(delivery) = deliveries.next().await {
            let Ok(delivery) = delivery else { continue };
            if self.deliveries.send(delivery).await.is_err() {
                return;
            }
        }
    }
}

/// All at once: what one gives back must not come to another that is still there.
async fn cancel_consumers(channels: &[(Channel, ShortString)]) {
    let cancels = channels.iter().map(|(channel, tag)| {
        let cancel = channel.basic_cancel(tag.clone(), BasicCancelOptions::default());
        within("basic.cancel", DEADLINE, cancel)
    });
    for fault in futures_util::future::join_all(cancels).await.into_iter().filter_map(Result::err) {
        tracing::debug!(%fault, "cancelling a consumer");
    }
}
