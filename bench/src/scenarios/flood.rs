//! Tasks from many connections, as many as can be or at a rate, and a backlog of them.

use std::time::Instant;

use anyhow::Result;

use super::PAYLOAD;
use crate::check::check;
use crate::driver::{self, Load, Submitted};
use crate::figures::Figures;
use crate::meter::Meter;
use crate::row::Row;
use crate::stand::Stand;
use crate::work::Work;

/// Far more connections than there are tasks at once, so that each is submitted at its time; every fourth is waited for.
pub(super) fn at_rate(rate: u32, seconds: u32) -> Load {
    let tasks = (rate * seconds) as usize;
    Load { work: Work::Echo(PAYLOAD), tasks, connections: 64, rate: Some(rate.into()), wait_every: Some(4) }
}

/// Submits and waits until all are stored.
pub(super) async fn run(stand: &Stand, name: &str, load: &Load) -> Result<Row> {
    let ended = stand.ended().await?;
    let meter = Meter::read(&stand.processes())?;
    let submitted = driver::run(stand.address(), load).await?;
    let (_, end) = stand.await_ended(ended + load.tasks).await?;
    Run { stand, meter }.row(name, load.work, submitted, end).await
}

/// Submits without a worker, starts one, and waits until all are stored. The rate of the drain counts from the first look
/// at which any was.
pub(super) async fn drain(
    stand: &mut Stand,
    name: &str,
    load: &Load,
    out: &mut impl FnMut(Row) -> Result<()>,
) -> Result<()> {
    let before = stand.ended().await?;
    let meter = Meter::read(&stand.processes())?;
    let submitted = driver::run(stand.address(), load).await?;
    let cpu = meter.used(&stand.processes(), tasks(load.tasks))?;
    let seconds = submitted.elapsed.as_secs_f64();
    let figures = Figures { name: format!("{name}: submit"), tasks: load.tasks as u64, seconds, cpu, latency: None };
    let accepted = Some(tasks(load.tasks) / seconds);
    let submit = submitted.submits.clone().percentiles();
    out(Row { figures, accepted, stored: None, submit, peak_rss: stand.peak_rss()? })?;

    let meter = Meter::read(&stand.processes())?;
    stand.pair().start_consumer(&[]).await?;
    let (some, start) = stand.await_ended(before + 1).await?;
    let (_, end) = stand.await_ended(before + load.tasks).await?;
    let row = Run { stand, meter }.row(&format!("{name}: drain"), load.work, submitted, end).await?;
    let seconds = (end - start).as_secs_f64();
    let stored = Some(tasks(before + load.tasks - some) / seconds);
    // The time in the backlog says nothing of the drain.
    let figures = Figures { seconds, latency: None, ..row.figures };
    out(Row { figures, accepted: None, stored, submit: None, ..row })
}

/// Tasks as a divisor.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn tasks(count: usize) -> f64 {
    count as f64
}

/// A run that has ended, and what was read before it.
pub(super) struct Run<'a> {
    pub(super) stand: &'a Stand,
    pub(super) meter: Meter,
}

impl Run<'_> {
    /// What it came to, after every task was looked at. The looking is not measured.
    pub(super) async fn row(self, name: &str, work: Work, submitted: Submitted, end: Instant) -> Result<Row> {
        let count = submitted.ids.len();
        let cpu = self.meter.used(&self.stand.processes(), tasks(count))?;
        let peak_rss = self.stand.peak_rss()?;
        let stored = check(self.stand.address(), work, &submitted.ids).await?.percentiles();
        let seconds = (end - submitted.start).as_secs_f64();
        let latency = submitted.results.percentiles().or(stored);
        Ok(Row {
            figures: Figures { name: name.to_owned(), tasks: count as u64, seconds, cpu, latency },
            accepted: Some(tasks(count) / submitted.elapsed.as_secs_f64()),
            stored: Some(tasks(count) / seconds),
            submit: submitted.submits.percentiles(),
            peak_rss,
        })
    }
}
