//! Owns how each fault is made and undone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use reqwest::Method;

use super::{DEAD_LETTERS, LOOK, Stage, say};
use crate::broker::Depth;
use crate::chaos::fault::{Fault, Plan};
use crate::chaos::logs::Strike;
use crate::chaos::now;
use crate::{Pair, Service};

/// More than twice the heartbeat of 10 s.
const FROZEN: Duration = Duration::from_secs(28);
/// How long a producer may take to record the results that it was sent.
const EMPTY: Duration = Duration::from_secs(10);
/// More than that takes for what no queue counts as ready any more.
const RECORDED: Duration = Duration::from_secs(2);
/// How long the services may take to make again what was deleted.
const OBJECTS: Duration = Duration::from_mins(1);
const SLOW: Duration = Duration::from_millis(150);
const QUEUE: &str = "errand.default";
const DELAY: &str = "errand.delay.1s";
/// More than any run orders.
const MANY: u32 = 10_000_000;

impl Stage {
    /// Makes a fault and undoes it.
    pub async fn strike(&mut self, plan: Plan) -> Result<Strike> {
        self.hold(plan.pause).await?;
        if plan.fault.needs_objects() {
            self.await_objects().await?;
        }
        let from = now();
        say(self.begin, plan.fault.name())?;
        self.make(plan).await.with_context(|| plan.fault.name())?;
        Ok(Strike { fault: plan.fault, from, to: now() })
    }

    /// What the fault before has taken must be there again, or nothing could be taken.
    async fn await_objects(&mut self) -> Result<()> {
        let deadline = Instant::now() + OBJECTS;
        while let Err(missing) = self.objects().await {
            ensure!(Instant::now() < deadline, "nobody made it again within {OBJECTS:?}: {missing:#}");
            self.hold(LOOK).await?;
        }
        Ok(())
    }

    async fn objects(&self) -> Result<()> {
        let (management, vhost) = (self.node.get().management(), self.pair.vhost());
        self.results().await?;
        for queue in [QUEUE, DELAY, DEAD_LETTERS] {
            management.queue(vhost, queue).await?;
        }
        for (exchange, queue) in [("errand.tasks", QUEUE), ("errand.delay", DELAY)] {
            let bindings = management.call(Method::GET, &["bindings", vhost, "e", exchange, "q", queue], None).await?;
            ensure!(bindings.as_array().is_some_and(|bindings| !bindings.is_empty()), "{queue} is not bound");
        }
        Ok(())
    }

    async fn make(&mut self, Plan { fault, lasts, worker, .. }: Plan) -> Result<()> {
        match fault {
            Fault::ProducerKilled => self.tell(None, Signal::SIGKILL).map(drop),
            Fault::WorkerKilled => self.tell(Some(worker), Signal::SIGKILL).map(drop),
            Fault::ProducerTerminated => {
                let pid = self.tell(None, Signal::SIGTERM)?;
                self.await_other(pid, |pair| pair.producer.pid()).await
            }
            Fault::WorkerTerminated => {
                let pid = self.tell(Some(worker), Signal::SIGTERM)?;
                self.await_other(pid, move |pair| pair.consumers[worker].pid()).await
            }
            Fault::WorkerStopped => self.stop_worker(worker, lasts).await,
            Fault::WorkerFrozen => self.stop_worker(worker, FROZEN).await,
            Fault::WorkerCrashed => bail!("only tasks do that"),
            Fault::BrokerKilled | Fault::BrokerRestarted | Fault::BrokerStopped | Fault::DataWiped => {
                self.break_broker(fault, lasts).await
            }
            Fault::LinkCut | Fault::LinkRefused | Fault::LinkSilent | Fault::LinkSlow => {
                self.break_link(fault, lasts).await
            }
            Fault::ResultsMissing => self.miss_results(lasts).await,
            Fault::MemoryAlarm => {
                let set = "set_vm_memory_high_watermark";
                self.alarm(&[set, "absolute", "1MB"], &[set, "0.4"], lasts).await
            }
            Fault::DiskAlarm => {
                self.alarm(&["set_disk_free_limit", "1000000GB"], &["set_disk_free_limit", "50MB"], lasts).await
            }
            _ => self.break_topology(fault, lasts).await,
        }
    }

    /// Ends a worker, or the producer, and remembers that it was told to: the process.
    fn tell(&mut self, worker: Option<usize>, signal: Signal) -> Result<u32> {
        // One that has just ended by itself is not meant.
        self.revive()?;
        let service = match worker {
            Some(worker) => self.pair.consumers.get_mut(worker).context("no such worker")?,
            None => &mut self.pair.producer,
        };
        let pid = service.pid();
        self.told.insert(pid, signal);
        match signal {
            Signal::SIGKILL => drop(service.kill()?),
            _ => service.signal(signal)?,
        }
        Ok(pid)
    }

    fn worker(&mut self, worker: usize) -> Result<&mut Service> {
        self.pair.consumers.get_mut(worker).context("no such worker")
    }

    /// Until a service that was told to end has ended and another process is in its place.
    async fn await_other(&mut self, pid: u32, of: impl Fn(&Pair) -> u32) -> Result<()> {
        while of(&self.pair) == pid {
            self.hold(LOOK).await?;
        }
        Ok(())
    }

    async fn stop_worker(&mut self, worker: usize, lasts: Duration) -> Result<()> {
        let pid = self.worker(worker)?.pid();
        self.worker(worker)?.pause()?;
        self.hold(lasts).await?;
        // A task may have killed it just before.
        if self.worker(worker)?.pid() == pid { self.worker(worker)?.resume() } else { Ok(()) }
    }

    async fn break_broker(&mut self, fault: Fault, lasts: Duration) -> Result<()> {
        match fault {
            Fault::BrokerStopped => {
                self.node.own()?.pause()?;
                self.hold(lasts).await?;
                return self.node.own()?.resume();
            }
            Fault::BrokerKilled => {
                self.node.own()?.kill()?;
                self.hold(lasts).await?;
            }
            Fault::DataWiped => {
                self.node.own()?.wipe().await?;
                // It comes with the node, like its users.
                return self.node.get().management().add_vhost(self.pair.vhost()).await;
            }
            Fault::BrokerRestarted => drop(self.node.own()?.stop().await?),
            _ => bail!("no fault of the broker"),
        }
        self.node.own()?.start_again().await
    }

    async fn break_link(&mut self, fault: Fault, lasts: Duration) -> Result<()> {
        match fault {
            Fault::LinkRefused => self.link.refuse(),
            Fault::LinkSilent => self.link.stall(),
            Fault::LinkSlow => self.link.delay(SLOW),
            Fault::LinkCut => {
                self.link.cut();
                return Ok(());
            }
            _ => bail!("no fault of the network"),
        }
        self.hold(lasts).await?;
        self.link.resume();
        Ok(())
    }

    async fn alarm(&mut self, raise: &[&str], clear: &[&str], lasts: Duration) -> Result<()> {
        self.node.own()?.ctl(raise).await?;
        self.hold(lasts).await?;
        self.node.own()?.ctl(clear).await.map(drop)
    }

    /// What the services find missing they make again themselves; nobody else does.
    async fn break_topology(&mut self, fault: Fault, lasts: Duration) -> Result<()> {
        let management = self.node.get().management().clone();
        let vhost = self.pair.vhost().to_owned();
        match fault {
            Fault::ConnectionsClosed => self.node.get().close_connections(&vhost).await,
            Fault::DeadLettersDeleted => management.delete_queue(&vhost, DEAD_LETTERS).await,
            Fault::BindingDeleted => self.unbind("errand.tasks", QUEUE).await,
            Fault::DelayBindingDeleted => self.unbind("errand.delay", DELAY).await,
            Fault::ExchangeDeleted => {
                management.call(Method::DELETE, &["exchanges", &vhost, "errand.tasks"], None).await.map(drop)
            }
            Fault::DelayDeleted => management.delete_queue(&vhost, DELAY).await,
            Fault::QueueDeleted => management.delete_queue(&vhost, QUEUE).await,
            Fault::QueuePurged => management.purge_queue(&vhost, QUEUE).await,
            Fault::ResultsDeleted => management.delete_queue(&vhost, &self.results().await?).await,
            Fault::QueueFull => {
                management.limit_length(&vhost, QUEUE, 1).await?;
                self.hold(lasts).await?;
                // Raised, not taken away: publishers would stay refused by a queue that has no limit any more
                // (rabbitmq-server#12206).
                management.limit_length(&vhost, QUEUE, MANY).await
            }
            Fault::PermissionsCleared => {
                let (user, _) = management.credentials();
                management.call(Method::DELETE, &["permissions", &vhost, user], None).await?;
                self.node.get().close_connections(&vhost).await?;
                self.hold(lasts).await?;
                management.add_vhost(&vhost).await
            }
            _ => bail!("nobody knows how to make it"),
        }
    }

    async fn unbind(&self, exchange: &str, queue: &str) -> Result<()> {
        let bindings = self.node.get().management().unbind(self.pair.vhost(), exchange, queue).await?;
        ensure!(!bindings.is_empty(), "{queue} was not bound");
        Ok(())
    }

    async fn results(&self) -> Result<String> {
        let queues = self.node.get().management().queues(self.pair.vhost()).await?;
        queues.into_iter().find(|queue| queue.starts_with("errand.results.")).context("no queue of results")
    }

    /// Deletes the queue of results when nothing is in it, and lets workers run while nobody makes it again.
    async fn miss_results(&mut self, lasts: Duration) -> Result<()> {
        let (results, vhost) = (self.results().await?, self.pair.vhost().to_owned());
        self.pair.consumers.iter().try_for_each(Service::pause)?;
        let empty = |depth: Depth| depth.ready == 0;
        self.node.get().endpoint().await_depth(&vhost, &results, empty, EMPTY).await?;
        // What the relay still carried and what the producer has in hand would go with the queue.
        self.hold(RECORDED).await?;
        self.pair.producer.pause()?;
        self.node.get().management().delete_queue(&vhost, &results).await?;
        self.pair.consumers.iter().try_for_each(Service::resume)?;
        self.hold(lasts).await?;
        self.pair.producer.resume()
    }
}
