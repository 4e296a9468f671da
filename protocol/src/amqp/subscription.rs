//! The supervised consumer: qos first, a stream that ends is a fault, everything is rebuilt with jittered backoff.
//!
//! One that is steered consumes its control queue first, and the others when it is told to and as long as they are not
//! paused.

use std::collections::BTreeSet;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::acks::{Acks, Settled, Tag};
use super::broker::Broker;
use super::consumers::Consumers;
use super::convert::message;
use super::declare::declare_on;
use super::fault::Fault;
use super::link::{self, Link};
use super::supervise::{Broken, Rebuild};
use crate::message::Message;
use crate::topology::Table;

/// How often the bindings of what is consumed are made again. Nothing tells of one that somebody deleted: its queue is
/// just silent.
const BIND_EVERY: Duration = Duration::from_secs(15);

/// Deliveries that are passed on before anything else is looked at.
const TOGETHER: usize = 64;

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
    tag: Tag,
    acks: Arc<Acks>,
}

impl Delivery {
    pub(super) fn new(queue: Arc<str>, delivery: lapin::message::Delivery, acks: Arc<Acks>) -> Self {
        let tag = delivery.delivery_tag;
        acks.received(tag);
        Self {
            message: message(&delivery.properties, delivery.data),
            queue,
            redelivered: delivery.redelivered,
            tag,
            acks,
        }
    }

    /// Acknowledges. The ack is on its way as soon as those before it are; one that is too late, since the channel is gone,
    /// is counted, and the message comes again.
    pub fn ack(self) {
        self.acks.settle(self.tag, Settled::Acked);
    }

    /// Gives the message back at once, for another worker.
    pub fn requeue(self) {
        self.acks.settle(self.tag, Settled::Requeued);
    }
}

/// What a steered subscription is to consume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The connection that this is said of, by its number. A later one consumes nothing until it is named here.
    pub session: u64,
    /// The full names of queues that are not to be consumed.
    pub paused: BTreeSet<String>,
}

/// The other end of a steered subscription.
#[derive(Debug)]
pub struct Steering {
    /// The number of the latest connection, from 1. Its control queue is consumed.
    pub sessions: watch::Receiver<u64>,
    /// What is to be consumed.
    pub wanted: watch::Sender<Wanted>,
    /// The full names of the queues that are consumed.
    pub consumed: watch::Receiver<BTreeSet<String>>,
}

struct Steered {
    control: QueueSpec,
    sessions: watch::Sender<u64>,
    wanted: watch::Receiver<Wanted>,
    consumed: watch::Sender<BTreeSet<String>>,
}

/// The supervised loop, to be spawned. Its deliveries come out of the receiver given with it.
pub struct SubscriptionTask {
    broker: Broker,
    subscribe: Subscribe,
    deliveries: mpsc::Sender<Delivery>,
    link: watch::Sender<Link>,
    steered: Option<Steered>,
}

impl SubscriptionTask {
    /// A subscription that buffers no more than its prefetch.
    #[must_use]
    pub fn new(broker: Broker, subscribe: Subscribe) -> (Self, mpsc::Receiver<Delivery>, watch::Receiver<Link>) {
        let bound: usize = subscribe.queues.iter().map(|queue| usize::from(queue.prefetch)).sum();
        let (deliveries, receiver) = mpsc::channel(bound.max(1));
        let (link, link_rx) = watch::channel(Link::default());
        (Self { broker, subscribe, deliveries, link, steered: None }, receiver, link_rx)
    }

    /// The same, steered by whoever reads `control`, a queue that is consumed before the others and until the end.
    #[must_use]
    pub fn steered(mut self, control: QueueSpec) -> (Self, Steering) {
        let (sessions, sessions_rx) = watch::channel(0);
        let (wanted_tx, wanted) = watch::channel(Wanted::default());
        let (consumed, consumed_rx) = watch::channel(BTreeSet::new());
        self.steered = Some(Steered { control, sessions, wanted, consumed });
        (self, Steering { sessions: sessions_rx, wanted: wanted_tx, consumed: consumed_rx })
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
        let Some(mut consumers) = opened.transpose()? else { return Ok(()) };
        let connected = Some(Instant::now());
        tracing::info!(broker = %self.broker.url(), "consumer connected");
        let ended = self.receive(&mut consumers, stop).await;
        if ended.is_ok() {
            let cancelled = consumers.cancel(self.subscribe.queues.iter().map(|queue| queue.name.as_str())).await;
            if let Err(fault) = cancelled {
                tracing::debug!(%fault, "cancelling a consumer");
            }
            self.tell_consumed(BTreeSet::new());
            tokio::select! {
                () = self.receive_the_rest(&mut consumers) => close.cancelled().await,
                () = close.cancelled() => {}
            }
        }
        self.tell_consumed(BTreeSet::new());
        consumers.close().await;
        ended.map_err(|fault| Broken { fault, connected })
    }

    async fn open(&self) -> Result<Consumers, Fault> {
        let connection = self.broker.connect().await?;
        declare_on(&connection, &self.subscribe.table).await?;
        let mut consumers = Consumers::new(connection, &self.subscribe.consumer_tag);
        if let Some(steered) = &self.steered {
            consumers.start(&steered.control).await?;
            steered.sessions.send_modify(|session| *session += 1);
        } else {
            for queue in &self.subscribe.queues {
                consumers.start(queue).await?;
            }
            link::set(&self.link, Link::Ready);
        }
        Ok(consumers)
    }

    async fn receive(&self, consumers: &mut Consumers, stop: &CancellationToken) -> Result<(), Fault> {
        let mut wanted = self.steered.as_ref().map(|steered| steered.wanted.clone());
        let (bindings, mut binds) = (self.bindings(), interval_at(Instant::now() + BIND_EVERY, BIND_EVERY));
        binds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let delivery = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = binds.tick(), if !bindings.bindings.is_empty() => {
                    match stop.run_until_cancelled(consumers.declare(&bindings)).await {
                        // What is received goes on meanwhile; whether the connection is good its heartbeat tells.
                        Some(Err(fault @ (Fault::Deadline { .. } | Fault::AccessRefused { .. }))) => {
                            tracing::warn!(%fault, "bindings are not made again");
                        }
                        Some(made) => made?,
                        None => return Ok(()),
                    }
                    continue;
                }
                wanted = next(&mut wanted) => {
                    self.steer(consumers, &wanted).await?;
                    continue;
                }
                delivery = consumers.deliveries.next() => delivery,
            };
            // What came with it is passed on without looking at the rest in between.
            let with_it = iter::from_fn(|| consumers.deliveries.next().now_or_never()).take(TOGETHER);
            for delivery in iter::once(delivery).chain(with_it) {
                let delivery = delivery.ok_or(Fault::Disconnected)??;
                if self.deliveries.send(delivery).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn bindings(&self) -> Table {
        let control = self.steered.as_ref().map(|steered| &steered.control);
        let queues = self.subscribe.queues.iter().chain(control);
        self.subscribe.table.bindings_of(queues.map(|queue| queue.name.as_str()))
    }

    /// Starts and cancels consumers until they are those that are wanted.
    async fn steer(&self, consumers: &mut Consumers, wanted: &Wanted) -> Result<(), Fault> {
        let Some(steered) = &self.steered else { return Ok(()) };
        if wanted.session != *steered.sessions.borrow() {
            return Ok(());
        }
        let queues = self.subscribe.queues.iter();
        let (paused, going): (Vec<_>, Vec<_>) = queues.partition(|queue| wanted.paused.contains(&queue.name));
        consumers.cancel(paused.into_iter().map(|queue| queue.name.as_str())).await?;
        for queue in going {
            consumers.start(queue).await?;
        }
        self.tell_consumed(consumers.consumed());
        link::set(&self.link, Link::Ready);
        Ok(())
    }

    fn tell_consumed(&self, queues: BTreeSet<String>) {
        if let Some(steered) = &self.steered {
            steered.consumed.send_replace(queues);
        }
    }

    /// Passes on what the broker had sent before it saw the cancel, so that its receiver can give it back.
    async fn receive_the_rest(&self, consumers: &mut Consumers) {
        while let Some(delivery) = consumers.deliveries.next().await {
            let Ok(delivery) = delivery else { continue };
            if self.deliveries.send(delivery).await.is_err() {
                return;
            }
        }
    }
}

/// What is wanted next, for ever nothing when nobody steers. Cancel safe.
async fn next(wanted: &mut Option<watch::Receiver<Wanted>>) -> Wanted {
    if let Some(wanted) = wanted
        && wanted.changed().await.is_ok()
    {
        return wanted.borrow_and_update().clone();
    }
    std::future::pending().await
}
