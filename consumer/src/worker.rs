//! The worker: takes deliveries, runs them, settles them, and ends gracefully.
//!
//! One direction: `intake` admits a delivery, `run` runs it, `settle` publishes what follows and then acks.

mod celery;
pub(crate) mod child;
mod children;
mod clocks;
mod counts;
mod follow;
mod gates;
mod health;
mod heartbeat;
mod intake;
mod pools;
mod remote;
mod run;
mod runs;
mod settle;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::FutureExt;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use protocol::amqp::{Broker, Delivery, Fault, Publisher, QueueSpec, Subscribe, SubscriptionTask};
use protocol::redaction::Redactions;
use protocol::topology::{Role, Table};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::celery::Celery;
use self::clocks::Clocks;
use self::counts::Counts;
use self::gates::Gates;
use self::health::Health;
use self::intake::Intake;
use self::pools::Pools;
use self::remote::{Remote, control_queue};
use self::runs::Runs;
use self::settle::Settle;
use crate::config::Config;
use crate::context::Cancelled;
use crate::registry::Registry;

/// What closing connections has after the last run.
const CLOSE: Duration = Duration::from_secs(3);
const UPKEEP: Duration = Duration::from_secs(5);

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The worker was told to end.
    Stopped,
    /// Threads are held by handlers that do not end: only a new process gets rid of them.
    Restart,
}

/// What all parts of the worker share.
struct Worker {
    config: Config,
    registry: Registry,
    runs: Runs<Delivery>,
    slots: Arc<Semaphore>,
    gates: Gates,
    /// What producers say.
    remote: Remote,
    /// What Celery's tools are told.
    celery: Arc<Celery>,
    settle: Settle,
    counts: Counts,
    /// A tracer was answered: who sent it wants to know what is here.
    traced: Notify,
    /// The runs, so that the end can wait for them.
    tracker: TaskTracker,
    /// Where handlers run: their own threads, so that one that blocks stops no ack, no heartbeat and no time limit.
    pools: Pools,
    /// Cancelled when no more tasks are taken.
    stop: CancellationToken,
    /// Cancelled when the grace is over: what still runs is abandoned, unacked.
    abandon: CancellationToken,
}

/// Serves until SIGTERM or SIGINT, then finishes what runs within the grace.
///
/// # Errors
/// A task is registered twice, the health address is taken, or the broker's objects do not match this version.
pub(crate) async fn serve(config: Config, registry: Registry) -> anyhow::Result<Ended> {
    let mut signals = Signals::listen()?;
    anyhow::ensure!(registry.duplicates().is_empty(), "tasks registered twice: {:?}", registry.duplicates());
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let broker = Broker::new(config.broker.clone(), &config.worker_name)?;
    let table = config.topology.shared(Role::Consumer, &config.queues);
    let (publisher, publishing) = Publisher::new(broker.clone(), table.clone());
    let commands = config.topology.control_queue(&Uuid::now_v7().simple().to_string());
    let queue = commands.queues.first().map(|queue| queue.name.clone()).unwrap_or_default();
    let subscribe = subscribe(&config, table.and(commands));
    let (consuming, deliveries, consuming_link) = SubscriptionTask::new(broker.clone(), subscribe);
    let (consuming, steering) = consuming.steered(control_queue(&queue));
    let clocks = Arc::<Clocks>::default();
    let remote = Remote::new(queue, config.topology.clone(), clocks.clone(), steering);
    let handlers = HandlerThreads::start()?;
    let exhausted = CancellationToken::new();
    let pools = Pools::new(handlers.handle()?, config.blocking_threads, exhausted.clone());
    let (celery, told) = Celery::new(&config);
    let worker = Arc::new(Worker::new(config, registry, publisher.clone(), pools, remote, celery, clocks));

    let (stop, close) = (worker.stop.clone(), CancellationToken::new());
    let (faults, mut fatal) = mpsc::channel(2);
    let links = TaskTracker::new();
    links.spawn(report(publishing.run(close.clone()), faults.clone()));
    links.spawn(report(consuming.run(stop.clone(), close.clone()), faults));
    links.spawn(Intake::new(worker.clone()).run(deliveries));
    links.spawn(listen_to_producers(worker.clone(), publisher.clone(), close.clone()));
    links.spawn(heartbeat::run(worker.clone(), publisher.clone(), close.clone()));
    celery::start(&worker, broker, told, &links, &close);
    links.spawn(upkeep(metrics.clone(), close.clone()));
    let health = Health { publishing: publisher.watch(), consuming: consuming_link, metrics };
    let listen = worker.config.listen;
    let server = health::server(health, listen).map_err(|error| anyhow!("cannot listen on {listen}: {error}"))?;
    let handle = server.handle();
    links.spawn(async move { drop(server.await) });
    tracing::info!(worker = %worker.config.worker_name, %listen, queues = ?worker.config.queues, "worker serves");

    let mut ended = until_told(&mut signals, &mut fatal, &exhausted, &worker.celery.shutdown).await;
    stop.cancel();
    worker.finish(&mut ended, &mut signals).await;
    close.cancel();
    links.close();
    let _ = timeout(CLOSE, handle.stop(false)).await;
    let _ = timeout(CLOSE, links.wait()).await;
    if signals.next().now_or_never().is_some() {
        ended = ended.map(|_| Ended::Stopped);
    }
    tracing::info!("worker ends");
    ended
}

impl Worker {
    fn new(
        config: Config,
        registry: Registry,
        publisher: Publisher,
        pools: Pools,
        remote: Remote,
        celery: Celery,
        clocks: Arc<Clocks>,
    ) -> Self {
        let celery = Arc::new(celery);
        let Config { blocking_threads, child_processes, concurrency, .. } = config;
        Self {
            gates: Gates::new(registry.options(), blocking_threads, child_processes, concurrency),
            pools,
            remote,
            celery: celery.clone(),
            settle: Settle::new(
                publisher,
                config.topology.clone(),
                config.worker_name.clone(),
                Redactions::of(registry.task_types()),
                celery,
                clocks,
            ),
            slots: Arc::new(Semaphore::new(usize::from(config.concurrency))),
            config,
            registry,
            runs: Runs::default(),
            counts: Counts::new(),
            traced: Notify::new(),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
        }
    }

    /// Lets what runs end within the grace. The rest stays unacked and is run again elsewhere.
    async fn finish(&self, ended: &mut anyhow::Result<Ended>, signals: &mut Signals) {
        self.runs.cancel_all(Cancelled::Shutdown);
        self.tracker.close();
        let grace = self.config.shutdown_grace;
        tracing::info!(running = self.tracker.len(), ?grace, "worker takes no more tasks");
        let mut over = pin!(sleep(grace));
        loop {
            tokio::select! {
                () = self.tracker.wait() => break,
                () = &mut over => {
                    tracing::warn!(abandoned = self.tracker.len(), "the grace is over");
                    break;
                }
                () = signals.next() => {
                    // Its first signal only tells a worker that was to start again that it is not to.
                    if matches!(ended, Ok(Ended::Restart)) {
                        *ended = Ok(Ended::Stopped);
                        continue;
                    }
                    tracing::warn!(abandoned = self.tracker.len(), "told twice to end");
                    break;
                }
            }
        }
        self.abandon.cancel();
    }
}

/// The runtime that handlers run on. Dropping it leaves threads that a handler blocks behind: their tasks come again
/// elsewhere, and the end of the process ends them.
struct HandlerThreads(Option<runtime::Runtime>);

impl HandlerThreads {
    fn start() -> std::io::Result<Self> {
        Ok(Self(Some(runtime::Builder::new_multi_thread().thread_name("handler").enable_all().build()?)))
    }

    fn handle(&self) -> anyhow::Result<runtime::Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone()).context("the handlers' runtime has ended")
    }
}

impl Drop for HandlerThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn listen_to_producers(worker: Arc<Worker>, publisher: Publisher, close: CancellationToken) {
    worker.remote.run(&worker.config.worker_name, &publisher, &close).await;
}

/// Histograms keep every sample until they are swept, whether or not anybody scrapes.
async fn upkeep(metrics: PrometheusHandle, close: CancellationToken) {
    while close.run_until_cancelled(sleep(UPKEEP)).await.is_some() {
        metrics.run_upkeep();
    }
}

/// The prefetch is shared by the queues: what is prefetched here runs nowhere else.
fn subscribe(config: &Config, table: Table) -> Subscribe {
    let count = u16::try_from(config.queues.len()).unwrap_or(u16::MAX);
    let (each, rest) = (config.concurrency / count, config.concurrency % count);
    let queues = config.queues.iter().zip(0_u16..);
    let queues = queues
        .map(|(queue, place)| QueueSpec {
            name: config.topology.queue(queue),
            prefetch: (each + u16::from(place < rest)).max(1),
        })
        .collect();
    Subscribe { table, queues, consumer_tag: config.worker_name.clone() }
}

async fn until_told(
    signals: &mut Signals,
    fatal: &mut mpsc::Receiver<Fault>,
    exhausted: &CancellationToken,
    shutdown: &CancellationToken,
) -> anyhow::Result<Ended> {
    tokio::select! {
        () = signals.next() => Ok(Ended::Stopped),
        () = shutdown.cancelled() => Ok(Ended::Stopped),
        () = exhausted.cancelled() => Ok(Ended::Restart),
        Some(fault) = fatal.recv() => Err(fault.into()),
    }
}

/// SIGTERM and SIGINT. One listener from the start to the end, so that none is lost between two waits.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Passes on a fault that rebuilding cannot mend: it ends the process.
async fn report(task: impl Future<Output = Result<(), Fault>>, faults: mpsc::Sender<Fault>) {
    if let Err(fault) = task.await {
        let _ = faults.try_send(fault);
    }
}
