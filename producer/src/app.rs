//! Puts the producer together, runs it until a signal, and takes it apart in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use protocol::amqp::{Broker, Delivery, Fault, Link, Publisher, QueueSpec, Subscribe, SubscriptionTask};
use protocol::message::Message;
use protocol::timestamp::now_ms;
use protocol::topology::{Table, Topology};
use protocol::trace::Tracer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api};
use crate::callbacks::Callbacks;
use crate::callbacks::receivers::Receivers;
use crate::clock::Clock;
use crate::config::Config;
use crate::control::{self, Control};
use crate::hearing::Hearing;
use crate::key::{Scope, Token};
use crate::keyring::Keyring;
use crate::reconciler::{self, Reconciler};
use crate::relay::{Relay, Route};
use crate::replies::{self, Replies};
use crate::rules::Limits;
use crate::store::{KeyLimits, Keybook, Store};
use crate::workers::Workers;

/// What a part of the producer has for its own end.
const DRAIN: Duration = Duration::from_secs(3);
const HEARTBEAT_PREFETCH: u16 = 100;
const UPKEEP: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The store cannot be opened, the address is taken, or the broker's objects do not match this version.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let store_tracker = TaskTracker::new();
    let store = Store::open(&config.database_url, &store_tracker).await?;
    let keyring = keyring(&config, &store).await?;
    let queues = queues(&config, &store).await?;
    let producer = Producer::new(config, queues, store, keyring)?;
    let ended = producer.serve(metrics).await;
    store_tracker.close();
    // The writer ends after its last commit, once every handle to the store is gone.
    let _ = timeout(DRAIN, store_tracker.wait()).await;
    ended
}

/// The keys, of which there must be one where strangers can call.
async fn keyring(config: &Config, store: &Store) -> anyhow::Result<Arc<Keyring>> {
    if let Some(token) = &config.api_key {
        make_known(token, &config.database_url).await?;
    }
    let keyring = Keyring::open(store.clone()).await?;
    let listen = config.listen;
    if !keyring.is_required() && !listen.ip().is_loopback() {
        return Err(anyhow!(
            "PRODUCER_LISTEN: {listen} is no loopback address, and there is no API key: make one for this DATABASE_URL \
            with `producer keys create --name first --scope submit,read`"
        ));
    }
    Ok(Arc::new(keyring))
}

/// Once it is known a key stays as it is: revoked, if it was.
async fn make_known(token: &Token, database_url: &str) -> anyhow::Result<()> {
    let mut book = Keybook::open(database_url).await?;
    match book.all().await?.into_iter().find(|key| key.id == token.id) {
        None => Ok(book.add(token, "API_KEY_FILE", &[Scope::Admin], KeyLimits::default()).await?),
        Some(known) if !known.hash.is_of(&token.secret) => {
            Err(anyhow!("API_KEY_FILE: the store has another key with the id {}", token.id))
        }
        Some(_) => Ok(()),
    }
}

/// The queues to relay: those that are accepted, and those that open tasks of an earlier configuration are in.
async fn queues(config: &Config, store: &Store) -> anyhow::Result<Vec<String>> {
    let mut queues = config.queues.clone();
    for queue in store.open_queues().await? {
        if !queues.contains(&queue) {
            tracing::warn!(%queue, "open tasks are in a queue that is not among QUEUES any more; they are still relayed");
            queues.push(queue);
        }
    }
    Ok(queues)
}

/// The parts that live as long as the process, and the tokens that end them, in order.
struct Producer {
    config: Config,
    queues: Vec<String>,
    store: Store,
    keyring: Arc<Keyring>,
    broker: Broker,
    table: Table,
    receivers: Receivers,
    workers: Workers,
    tracker: TaskTracker,
    faults: (mpsc::Sender<anyhow::Error>, mpsc::Receiver<anyhow::Error>),
    stop: CancellationToken,
    close: CancellationToken,
}

impl Producer {
    fn new(config: Config, queues: Vec<String>, store: Store, keyring: Arc<Keyring>) -> anyhow::Result<Self> {
        let broker = Broker::new(config.broker.clone(), "errand-producer")?;
        let receivers = Receivers::parse(&config.callback_allow).map_err(|error| anyhow!("CALLBACK_ALLOW: {error}"))?;
        let own: Vec<String> = queues.iter().filter(|queue| !config.foreign_queues.contains(queue)).cloned().collect();
        let table = config.topology.shared(&own).and(config.topology.reply_queue(store.id()));
        Ok(Self {
            config,
            queues,
            store,
            keyring,
            broker,
            table,
            receivers,
            workers: Workers::new(),
            tracker: TaskTracker::new(),
            faults: mpsc::channel(4),
            stop: CancellationToken::new(),
            close: CancellationToken::new(),
        })
    }

    async fn serve(mut self, metrics: PrometheusHandle) -> anyhow::Result<()> {
        // Before a relay starts: what was revoked in the hands of the process before is not published.
        self.store.end_revoked(now_ms()).await?;
        self.store.hear_from_now(self.config.foreign_queues.clone(), now_ms()).await?;
        self.workers.remember(&self.store).await?;
        let publisher = self.start_publisher();
        self.start_relays(&publisher);
        let (tracers, traced) = mpsc::channel(reconciler::TRACERS);
        let (hearing, heard) = self.start_replies(&publisher, tracers);
        let questions = self.start_control(&publisher);
        let spoken = self.start_heartbeats(questions);
        self.start_reconciler(&publisher, traced, vec![publisher.watch(), heard, spoken]);
        self.start_callbacks()?;
        let clock = Clock::new(self.store.clone(), self.config.result_ttl, hearing);
        self.spawn("clock", clock.run(self.stop.clone()));
        self.spawn("metrics", upkeep(metrics.clone(), self.stop.clone()));
        let api = Arc::new(Api {
            store: self.store.clone(),
            link: publisher.watch(),
            workers: self.workers.clone(),
            metrics,
            limits: self.limits(),
            queues: self.routes().collect(),
            require_known_tasks: self.config.require_known_tasks,
            outbox_cap: self.config.outbox_cap,
            stopping: self.stop.child_token(),
        });
        let listen = self.config.listen;
        self.spawn("keyring", self.keyring.clone().run(self.stop.clone()));
        let server = api::server(api, self.keyring.clone(), listen)
            .map_err(|error| anyhow!("cannot listen on {listen}: {error}"))?;
        let handle = server.handle();
        let mut server = self.tracker.spawn(server);
        tracing::info!(%listen, store = self.store.id(), "producer serves");
        let ended = self.until_told(&mut server).await;
        self.stop.cancel();
        let _ = timeout(DRAIN, handle.stop(true)).await;
        if !server.is_finished() {
            let _ = timeout(DRAIN, server).await;
        }
        self.close.cancel();
        self.tracker.close();
        if timeout(DRAIN, self.tracker.wait()).await.is_err() {
            tracing::warn!("not everything ended in time; what was not acked or marked is done again");
        }
        tracing::info!("producer ends");
        ended
    }

    async fn until_told(&mut self, server: &mut JoinHandle<std::io::Result<()>>) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            Some(fault) = self.faults.1.recv() => Err(fault),
            ended = server => Err(anyhow!("the HTTP server has ended: {ended:?}")),
        }
    }

    /// Spawns a part without which the producer is none: its end before the producer's ends the process, to be
    /// restarted.
    fn spawn(&self, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let (stop, faults) = (self.stop.clone(), self.faults.0.clone());
        let work = self.tracker.spawn(work);
        self.tracker.spawn(async move {
            let ended = work.await;
            if ended.is_err() || !stop.is_cancelled() {
                let _ = faults.try_send(anyhow!("the {part} has ended"));
            }
        });
    }

    /// Spawns a connection's supervisor: a fault that rebuilding cannot mend ends the process.
    fn supervise(&self, link: impl Future<Output = Result<(), Fault>> + Send + 'static) {
        let faults = self.faults.0.clone();
        self.tracker.spawn(async move {
            if let Err(fault) = link.await {
                let _ = faults.try_send(fault.into());
            }
        });
    }

    fn start_publisher(&self) -> Publisher {
        let (publisher, task) = Publisher::new(self.broker.clone(), self.table.clone());
        self.supervise(task.run(self.close.clone()));
        publisher
    }

    fn start_relays(&self, publisher: &Publisher) {
        for route in self.routes() {
            let (store, topology) = (self.store.clone(), self.config.topology.clone());
            let (window, workers) = (self.config.relay_window, self.workers.clone());
            let relay = Relay::new(store, publisher.clone(), topology, route, window, workers);
            self.spawn("relay", relay.run(self.stop.clone()));
        }
    }

    fn routes(&self) -> impl Iterator<Item = Route> {
        let foreign = |queue| self.config.foreign_queues.contains(queue);
        self.queues.iter().map(move |queue| Route { queue: queue.clone(), foreign: foreign(queue) })
    }

    fn start_replies(&self, publisher: &Publisher, tracers: mpsc::Sender<Tracer>) -> (Hearing, watch::Receiver<Link>) {
        let topology = self.topology();
        let subscribe = Subscribe {
            table: self.table.clone(),
            queues: vec![QueueSpec { name: topology.results(self.store.id()), prefetch: replies::PREFETCH }],
            consumer_tag: format!("producer-{}", std::process::id()),
        };
        let (deliveries, heard) = self.subscribe(subscribe);
        let (store, table) = (self.store.clone(), self.table.clone());
        let (publisher, broker) = (publisher.clone(), self.broker.clone());
        let replies = Replies::new(store, publisher, broker, topology, table, self.limits(), tracers);
        let hearing = Hearing::new(heard.clone(), replies.failures(), self.config.foreign_timeout);
        self.spawn("reply loop", replies.run(deliveries));
        (hearing, heard)
    }

    fn start_control(&self, publisher: &Publisher) -> mpsc::Sender<Message> {
        let (asked, questions) = mpsc::channel(control::QUESTIONS);
        let (store, topology) = (self.store.clone(), self.topology());
        let control = Control::new(store, publisher.clone(), topology, self.queues.clone());
        self.spawn("control", control.run(questions, self.stop.clone()));
        asked
    }

    fn start_reconciler(
        &self,
        publisher: &Publisher,
        traced: mpsc::Receiver<Tracer>,
        links: Vec<watch::Receiver<Link>>,
    ) {
        let (store, workers) = (self.store.clone(), self.workers.clone());
        let queues = self.routes().filter(|route| !route.foreign).map(|route| route.queue).collect();
        let after = self.config.reconcile_after;
        let reconciler = Reconciler::new(store, publisher.clone(), self.topology(), workers, queues, after, links);
        self.spawn("reconciler", reconciler.run(traced, self.stop.clone()));
    }

    fn start_heartbeats(&self, questions: mpsc::Sender<Message>) -> watch::Receiver<Link> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let table = self.topology().heartbeat_queue(&id);
        let queues =
            table.queues.iter().map(|queue| QueueSpec { name: queue.name.clone(), prefetch: HEARTBEAT_PREFETCH });
        let queues = queues.collect();
        let table = self.topology().shared(&[]).and(table);
        let (deliveries, link) = self.subscribe(Subscribe { table, queues, consumer_tag: "heartbeats".to_owned() });
        self.spawn("heartbeats", self.workers.clone().run(self.store.clone(), deliveries, questions));
        link
    }

    fn start_callbacks(&self) -> anyhow::Result<()> {
        let (store, workers, receivers) = (self.store.clone(), self.workers.clone(), self.receivers.clone());
        let callbacks = Callbacks::new(store, workers, receivers, &self.config.callback_nameservers)
            .map_err(|error| anyhow!("CALLBACK_NAMESERVERS: {error}"))?;
        self.spawn("callbacks", callbacks.run(self.stop.clone()));
        Ok(())
    }

    fn subscribe(&self, subscribe: Subscribe) -> (mpsc::Receiver<Delivery>, watch::Receiver<Link>) {
        let (task, deliveries, link) = SubscriptionTask::new(self.broker.clone(), subscribe);
        self.supervise(task.run(self.stop.clone(), self.close.clone()));
        (deliveries, link)
    }

    fn limits(&self) -> Limits {
        let (queues, receivers) = (self.config.queues.clone(), self.receivers.clone());
        Limits { queues, max_time_limit: self.config.max_time_limit, receivers }
    }

    fn topology(&self) -> Topology {
        self.config.topology.clone()
    }
}

/// Histograms keep every sample until they are swept, whether or not anybody scrapes.
async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(UPKEEP)).await.is_some() {
        metrics.run_upkeep();
    }
}
