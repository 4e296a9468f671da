//! Owns the client of the round trip: it publishes tasks, takes the result of each once, and knows how long that took.

use std::cell::RefCell;
use std::future::ready;
use std::pin::pin;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use lapin::message::Delivery;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::link::{Link, ack_through};
use super::part::{Watch, say};
use super::sample::Recorded;
use crate::latencies::Latencies;

/// Unsettled results, as a producer has them.
const PREFETCH: u16 = 500;
/// Publishes that wait for their confirm, as a producer has them.
const WINDOW: usize = 1024;

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) url: String,
    pub(super) tasks: u64,
    /// Tasks without their result; `None` to publish all before the first result is taken.
    pub(super) in_flight: Option<usize>,
    pub(super) task: Recorded,
    pub(super) reply: Recorded,
}

/// What is known of the tasks that were published so far.
struct Open {
    job: Job,
    room: Semaphore,
    sent: RefCell<Vec<Instant>>,
}

/// Says what publishing took if that is a backlog, and then what the rest took.
pub(super) async fn run(job: Job) -> Result<()> {
    let link = Link::open(&job.url).await?;
    let results = link.consume(&job.reply.to.routing_key, PREFETCH).await?;
    let backlog = job.in_flight.is_none();
    let room = Semaphore::new(job.in_flight.unwrap_or_default());
    let open = Open { job, room, sent: RefCell::default() };
    let mut watch = Watch::start()?;
    let latency = if backlog {
        open.publish(&link).await?;
        say(&watch.spent(None)?)?;
        let mut results = pin!(results.peekable());
        results.as_mut().peek().await;
        watch = Watch::start()?;
        open.collect(results).await?;
        None
    } else {
        try_join(open.publish(&link), open.collect(results)).await?.1
    };
    say(&watch.spent(latency)?)?;
    link.close().await
}

impl Open {
    async fn publish(&self, link: &Link) -> Result<()> {
        let Job { tasks, in_flight, ref task, .. } = self.job;
        let numbers = stream::iter(0..tasks).then(async |number| {
            if in_flight.is_some() {
                self.room.acquire().await?.forget();
            }
            Ok(number)
        });
        let publishes = numbers.map_ok(|number| {
            self.sent.borrow_mut().push(Instant::now());
            link.publish(&task.to, task.properties(number), task.body())
        });
        publishes.try_buffer_unordered(WINDOW).try_for_each(|()| ready(Ok(()))).await
    }

    /// Takes every result, and fails on one that it has had.
    async fn collect(&self, results: impl Stream<Item = lapin::Result<Delivery>>) -> Result<Option<[f64; 3]>> {
        let mut results = pin!(results.ready_chunks(PREFETCH.into()));
        let mut seen = vec![false; usize::try_from(self.job.tasks)?];
        let (mut left, mut latencies) = (seen.len(), Latencies::default());
        while left > 0 {
            let deliveries: Vec<_> =
                results.next().await.context("the results end")?.into_iter().collect::<Result<_, _>>()?;
            for delivery in &deliveries {
                for number in self.job.reply.unpack(&delivery.data)? {
                    let place = usize::try_from(number)?;
                    let sent = *self.sent.borrow().get(place).context("the result of nothing that was sent")?;
                    ensure!(!std::mem::replace(&mut seen[place], true), "task {number} has two results");
                    latencies.add(sent.elapsed());
                    left -= 1;
                    self.room.add_permits(1);
                }
            }
            if let Some(last) = deliveries.last() {
                ack_through(last).await?;
            }
        }
        Ok(latencies.percentiles())
    }
}
