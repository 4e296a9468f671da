//! Owns the round trip of a task between a client and a worker that are nothing but lapin, through the pair's own exchange
//! and queues.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Broker, guard};
use tokio::sync::Semaphore;

use super::part::{Job, Part, Spent};
use super::sample::{QUEUE, Sample};
use super::{Scale, client, worker};
use crate::figures::Figures;

/// Until the broker knows that a process is gone.
const GONE: Duration = Duration::from_secs(10);

/// A way to make the round trips.
#[derive(Debug, Clone, Copy)]
struct Variant {
    name: &'static str,
    /// Tasks without their result; all of them are published before the worker starts when `None`.
    in_flight: Option<usize>,
    packed: bool,
}

const ONE: Variant = Variant { name: "round trip, one outstanding", in_flight: Some(1), packed: false };
const MANY: [Variant; 5] = [
    Variant { name: "round trip, 256 in flight", in_flight: Some(256), packed: false },
    Variant { name: "round trip, 256 in flight, results packed", in_flight: Some(256), packed: true },
    Variant { name: "round trip, unbounded", in_flight: Some(Semaphore::MAX_PERMITS), packed: false },
    Variant { name: "backlog", in_flight: None, packed: false },
    Variant { name: "backlog, results packed", in_flight: None, packed: true },
];

pub(super) async fn measure(broker: &Broker, sample: &Sample, scale: Scale) -> Result<Vec<Figures>> {
    let (dir, mut all) = (guard::scratch_dir("floor-")?, Vec::new());
    for (variant, tasks) in [(ONE, scale.single)].into_iter().chain(MANY.map(|variant| (variant, scale.many))) {
        let run = Run { broker, sample, dir: dir.path(), variant, tasks };
        let figures = if variant.in_flight.is_some() { run.together().await } else { run.backlog().await };
        all.extend(figures.context(variant.name)?);
    }
    Ok(all)
}

struct Run<'a> {
    broker: &'a Broker,
    sample: &'a Sample,
    dir: &'a Path,
    variant: Variant,
    tasks: u64,
}

impl Run<'_> {
    /// The client publishes while the worker works.
    async fn together(&self) -> Result<Vec<Figures>> {
        let mut worker = self.worker()?;
        let _ready: Spent = worker.line(0).await?;
        let before = self.broker.cpu_time()?;
        let mut client = self.client()?;
        let (client, worker) = (self.end(&mut client, 0).await?, self.end(&mut worker, 1).await?);
        let broker = self.broker.cpu_time()?.saturating_sub(before);
        self.nothing_is_left().await?;
        Ok(vec![self.figures("", &client, &[("worker", worker.cpu), ("broker", broker)])])
    }

    /// The client publishes all, and then the worker starts.
    async fn backlog(&self) -> Result<Vec<Figures>> {
        let start = self.broker.cpu_time()?;
        let mut client = self.client()?;
        let published: Spent = client.line(0).await?;
        let before = self.broker.cpu_time()?;
        let mut worker = self.worker()?;
        let (drained, worker) = (self.end(&mut client, 1).await?, self.end(&mut worker, 1).await?);
        let after = self.broker.cpu_time()?;
        self.nothing_is_left().await?;
        Ok(vec![
            self.figures(", published", &published, &[("broker", before.saturating_sub(start))]),
            self.figures(", drained", &drained, &[("worker", worker.cpu), ("broker", after.saturating_sub(before))]),
        ])
    }

    fn client(&self) -> Result<Part> {
        let job = client::Job {
            url: self.broker.amqp_url(&self.sample.vhost),
            tasks: self.tasks,
            in_flight: self.variant.in_flight,
            task: self.sample.task.clone(),
            reply: self.sample.reply.clone(),
        };
        Part::start("client", self.dir, &Job::Client(Box::new(job)))
    }

    fn worker(&self) -> Result<Part> {
        let job = worker::Job {
            url: self.broker.amqp_url(&self.sample.vhost),
            tasks: self.tasks,
            queue: QUEUE.to_owned(),
            packed: self.variant.packed,
            reply: self.sample.reply.clone(),
        };
        Part::start("worker", self.dir, &Job::Worker(Box::new(job)))
    }

    /// The last that it says before it ends.
    async fn end(&self, part: &mut Part, place: usize) -> Result<Spent> {
        let spent = part.line(place).await?;
        part.ended().await?;
        Ok(spent)
    }

    /// Both have closed their connections, so what is not acked by now never was.
    async fn nothing_is_left(&self) -> Result<()> {
        let endpoint = self.broker.endpoint();
        for queue in [QUEUE, self.sample.results()] {
            let depth = endpoint.await_depth(&self.sample.vhost, queue, |depth| depth.consumers == 0, GONE).await?;
            ensure!(depth.ready == 0, "{} messages are left in {queue}", depth.ready);
        }
        Ok(())
    }

    fn figures(&self, what: &str, client: &Spent, others: &[(&str, Duration)]) -> Figures {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let share = |cpu: Duration| cpu.as_secs_f64() * 1e6 / self.tasks as f64;
        let all = [("client", client.cpu)].into_iter().chain(others.iter().copied());
        Figures {
            name: format!("{}{what}", self.variant.name),
            tasks: self.tasks,
            seconds: client.seconds,
            cpu: all.map(|(name, cpu)| (name.to_owned(), share(cpu))).collect(),
            latency: client.latency,
        }
    }
}
