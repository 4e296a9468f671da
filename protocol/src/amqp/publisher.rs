//! The confirmed publisher: one task owns the channel, callers send it messages and wait for their confirm.
//!
//! Four callers that shared one cloned channel got each other's confirms, and messages that the broker had refused were
//! reported as accepted (measured). So nothing else here publishes.

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::broker::Broker;
use super::fault::{Fault, within};
use super::link::{self, Link};
use super::publish::{Publish, PublishError};
use super::supervise::{Broken, Rebuild};
use super::window::{Pending, answer, publish_window};
use crate::topology::Table;

/// The most confirmed publishes in flight. The window takes what is waiting when the one before it was confirmed, so it is one
/// message when idle and grows with the load.
const WINDOW: usize = 1024;
const TRANSIENT_QUEUE: usize = 4096;
const DEADLINE: Duration = Duration::from_secs(10);
/// How often an idle publisher looks at its connection: dead, blocked, unblocked.
const CHECK: Duration = Duration::from_millis(500);

/// A handle to the publisher; clones share it.
#[derive(Clone)]
pub struct Publisher {
    confirmed: mpsc::Sender<Pending>,
    transient: mpsc::Sender<Publish>,
    link: watch::Receiver<Link>,
}

/// The publisher's supervised loop, to be spawned.
pub struct PublisherTask {
    broker: Broker,
    table: Table,
    confirmed: mpsc::Receiver<Pending>,
    transient: mpsc::Receiver<Publish>,
    link: watch::Sender<Link>,
}

impl Publisher {
    /// A publisher that declares `table` whenever it connects.
    #[must_use]
    pub fn new(broker: Broker, table: Table) -> (Self, PublisherTask) {
        let (confirmed_tx, confirmed) = mpsc::channel(WINDOW);
        let (transient_tx, transient) = mpsc::channel(TRANSIENT_QUEUE);
        let (link, link_rx) = watch::channel(Link::default());
        let task = PublisherTask { broker, table, confirmed, transient, link };
        (Self { confirmed: confirmed_tx, transient: transient_tx, link: link_rx }, task)
    }

    /// Publishes and waits for the broker's confirm.
    ///
    /// # Errors
    /// Each variant of [`PublishError`]. After [`PublishError::Unknown`] the message may arrive all the same.
    pub async fn publish(&self, publish: impl Into<Arc<Publish>>) -> Result<(), PublishError> {
        let link = self.link();
        if !link.is_ready() {
            return Err(PublishError::Unavailable(link));
        }
        let (done, verdict) = oneshot::channel();
        let gone = || PublishError::Unavailable(Link::Down("the publisher has stopped".into()));
        self.confirmed.send(Pending { publish: publish.into(), done: Some(done) }).await.map_err(|_| gone())?;
        verdict.await.map_err(|_| gone())?
    }

    /// Hands over a message that may be lost: neither awaited nor kept when the broker is away. `false` when dropped. What
    /// is published after it does not overtake it.
    #[must_use]
    pub fn publish_transient(&self, publish: Publish) -> bool {
        self.link().is_ready() && self.transient.try_send(publish).is_ok()
    }

    /// Whether publishing goes through just now.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Watches the link.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Waits until publishing goes through; returns also when the publisher has stopped.
    pub async fn ready(&self) {
        let _ = self.link.clone().wait_for(Link::is_ready).await;
    }
}

/// One connection with its one channel: only on a channel is the order of publishes kept, and a client that is told of
/// progress after the result takes its task for unfinished.
struct Session {
    connection: Connection,
    channel: Channel,
}

impl PublisherTask {
    /// Publishes until `stop`, rebuilding everything after a fault.
    ///
    /// # Errors
    /// Only a fault that rebuilding cannot mend.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Fault> {
        let mut rebuild = Rebuild::new("publisher");
        let mut ended = Ok(());
        while ended.is_ok()
            && !stop.is_cancelled()
            && let Err(broken) = self.session(&stop).await
        {
            link::set(&self.link, Link::Down(broken.fault.to_string()));
            self.refuse_waiting();
            ended = rebuild.after(broken, &stop).await;
        }
        link::set(&self.link, Link::Down("the publisher has stopped".into()));
        self.refuse_waiting();
        ended
    }

    async fn session(&mut self, stop: &CancellationToken) -> Result<(), Broken> {
        let opened = stop.run_until_cancelled(Session::open(&self.broker, &self.table)).await;
        let Some(session) = opened.transpose()? else { return Ok(()) };
        let connected = Some(Instant::now());
        link::set(&self.link, Link::Ready);
        tracing::info!(broker = %self.broker.url(), "publisher connected");
        let served = self.serve(&session, stop).await;
        session.close().await;
        served.map_err(|fault| Broken { fault, connected })
    }

    async fn serve(&mut self, session: &Session, stop: &CancellationToken) -> Result<(), Fault> {
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut window = Vec::new();
        loop {
            let blocked = session.check(&self.link)?;
            tokio::select! {
                biased;
                _ = self.confirmed.recv_many(&mut window, WINDOW), if !blocked => {
                    metrics::histogram!("errand_publish_window").record(u32::try_from(window.len()).unwrap_or(u32::MAX));
                    let window = self.transients().chain(window.drain(..)).collect();
                    session.publish(&self.link, window).await?;
                }
                Some(publish) = self.transient.recv(), if !blocked => {
                    let first = Pending { publish: publish.into(), done: None };
                    let window = iter::once(first).chain(self.transients()).collect();
                    session.publish(&self.link, window).await?;
                }
                () = stop.cancelled() => return Ok(()),
                _ = check.tick() => {
                    if blocked {
                        self.refuse_waiting();
                    }
                }
            }
        }
    }

    /// What waits that may be lost.
    fn transients(&mut self) -> impl Iterator<Item = Pending> {
        let waiting = || Some(Pending { publish: self.transient.try_recv().ok()?.into(), done: None });
        iter::from_fn(waiting).take(TRANSIENT_QUEUE)
    }

    /// Tells whoever came in between that nothing was sent.
    fn refuse_waiting(&mut self) {
        let link = self.link.borrow().clone();
        while let Ok(pending) = self.confirmed.try_recv() {
            answer(pending.done, &Err(PublishError::Unavailable(link.clone())));
        }
        while self.transient.try_recv().is_ok() {}
    }
}

impl Session {
    async fn open(broker: &Broker, table: &Table) -> Result<Self, Fault> {
        let connection = broker.connect().await?;
        super::declare::declare_on(&connection, table).await?;
        let channel = within("opening a channel", DEADLINE, connection.create_channel()).await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        within("confirm.select", DEADLINE, select).await?;
        Ok(Self { connection, channel })
    }

    /// Whether the broker blocks publishers, after setting the link.
    fn check(&self, link: &watch::Sender<Link>) -> Result<bool, Fault> {
        if !self.connection.status().connected() || !self.channel.status().connected() {
            return Err(Fault::Disconnected);
        }
        let blocked = self.connection.status().blocked();
        link::set(link, if blocked { Link::Blocked } else { Link::Ready });
        Ok(blocked)
    }

    async fn publish(&self, link: &watch::Sender<Link>, window: Vec<Pending>) -> Result<(), Fault> {
        publish_window(&self.connection, &self.channel, link, window).await
    }

    /// `close` hangs while the broker blocks publishers, so it has three seconds.
    async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_secs(3), self.connection.close(200, "bye".into())).await;
    }
}
