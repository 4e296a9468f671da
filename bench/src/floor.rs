//! Owns the floor: what the parts that a task goes through cost with nothing of ours in them, on the broker and the disk
//! that the pair is measured on, in messages that the pair wrote. It must not use a crate of the pair's.
//!
//! Each process of it is this binary again, in the part that a [`part::Job`] gives it.

mod client;
mod http;
mod link;
pub mod part;
mod round_trip;
mod sample;
mod store;
mod worker;

use std::fmt::{self, Display};

use anyhow::Result;
use e2e::Broker;
use e2e::broker::Options;

use crate::figures::Figures;
use crate::row::millis;
use sample::Sample;

/// What the command line of a process of the floor has before the file of its job.
pub const PART: &str = "--floor-part";

/// How much is run of what.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Tasks with one outstanding: of a round trip, of a submit, of a commit.
    single: u64,
    /// Tasks with many outstanding.
    many: u64,
    /// Requests of the bare server with many outstanding, which are soon done.
    requests: u64,
}

impl Scale {
    /// So many tasks where many are outstanding; the rest has its share.
    fn of(tasks: u32) -> Self {
        let many = u64::from(tasks);
        Self { single: (many / 30).max(1), many, requests: many * 4 }
    }
}

/// Measures all of it on a node of its own: with arguments of so many bytes, so many tasks where many are outstanding.
///
/// # Errors
/// A part failed, or a result was lost or came twice.
pub async fn measure(payload: usize, tasks: u32) -> Result<Vec<Figures>> {
    let (broker, scale) = (&Broker::start(Options::default()).await?, Scale::of(tasks));
    let sample = Sample::record(broker, payload).await?;
    let mut all = round_trip::measure(broker, &sample, scale).await?;
    all.extend(http::measure(&sample, scale).await?);
    all.extend(store::measure(&sample, scale).await?);
    Ok(all)
}

/// The figures as a markdown table.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [Figures]);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| floor | tasks | a second | µs a task | p50 / p99 / p99.9 ms |\n| --- | --- | --- | --- | --- |"
        )?;
        for Figures { name, tasks, seconds, cpu, latency } in self.0 {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let rate = *tasks as f64 / seconds;
            let cpu: Vec<String> = cpu.iter().map(|(process, micros)| format!("{process} {micros:.1}")).collect();
            writeln!(f, "| {name} | {tasks} | {rate:.0} | {} | {} |", cpu.join(", "), millis(*latency))?;
        }
        Ok(())
    }
}
