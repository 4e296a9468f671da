//! Owns the worker of the round trip: it takes a task, publishes its result, awaits the confirm and only then acks.

use std::pin::pin;

use anyhow::{Context, Result};
use futures_util::stream::StreamExt;
use lapin::message::Delivery;
use serde::{Deserialize, Serialize};

use super::link::{Link, ack_through};
use super::part::{Spent, Watch, say};
use super::sample::Recorded;

/// Unsettled tasks, as a consumer of the default concurrency has them.
const PREFETCH: u16 = 256;

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) url: String,
    /// It ends after so many.
    pub(super) tasks: u64,
    pub(super) queue: String,
    /// Whether the results that gathered while the ones before were on their way are one message.
    pub(super) packed: bool,
    pub(super) reply: Recorded,
}

/// Says a word when it consumes, and then what all tasks took.
pub(super) async fn run(job: Job) -> Result<()> {
    let link = Link::open(&job.url).await?;
    let deliveries = link.consume(&job.queue, PREFETCH).await?;
    let watch = Watch::start()?;
    say(&Spent::default())?;
    let prefetch = usize::from(PREFETCH);
    let (together, at_once) = if job.packed { (prefetch, 1) } else { (1, prefetch) };
    let batches = deliveries.take(usize::try_from(job.tasks)?).ready_chunks(together);
    let replied = batches.map(|batch| reply(&link, &job.reply, batch)).buffered(at_once);
    let mut replied = pin!(replied.ready_chunks(prefetch));
    while let Some(batches) = replied.next().await {
        // In the order of their delivery, and all before the last have their confirm too.
        let confirmed: Vec<Delivery> = batches.into_iter().collect::<Result<_>>()?;
        if let Some(last) = confirmed.last() {
            ack_through(last).await?;
        }
    }
    say(&watch.spent(None)?)?;
    link.close().await
}

/// The last of the batch, once its results are confirmed.
async fn reply(link: &Link, reply: &Recorded, batch: Vec<lapin::Result<Delivery>>) -> Result<Delivery> {
    let batch: Vec<Delivery> = batch.into_iter().collect::<Result<_, _>>()?;
    let numbers: Vec<u64> = batch.iter().map(|task| Recorded::number(&task.properties)).collect::<Result<_>>()?;
    let last = batch.into_iter().last().context("an empty batch")?;
    let properties = reply.properties(*numbers.last().unwrap_or(&0));
    link.publish(&reply.to, properties, &reply.pack(numbers.into_iter())?).await?;
    Ok(last)
}
