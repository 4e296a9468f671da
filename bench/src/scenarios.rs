//! Owns what is measured: which scenarios there are, and how large each is.

mod flood;
mod idle;
mod listeners;
mod million;
mod single;

use anyhow::Result;
use clap::ValueEnum;

use crate::driver::Load;
use crate::row::Row;
use crate::stand::Stand;
use crate::work::Work;

/// Bytes of a payload where nothing is said.
pub const PAYLOAD: usize = 100;

/// A way to use the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// What its parts cost with nothing of ours in them
    Floor,
    /// One outstanding: the next task when the result of the one before is there
    Single,
    /// 500 a second for some seconds
    #[value(name = "rate-500")]
    Rate500,
    /// As many as can be over 32 connections
    #[value(name = "flood-32")]
    Flood32,
    /// As many as can be over 256 connections
    #[value(name = "flood-256")]
    Flood256,
    /// A backlog that is submitted without a worker, and then drained by one
    #[value(name = "drain-100k")]
    Drain,
    /// Payloads of 1 KB over 256 connections
    #[value(name = "payload-1k")]
    Payload1k,
    /// Payloads of 64 KB over 256 connections
    #[value(name = "payload-64k")]
    Payload64k,
    /// flood-256 with two workers
    #[value(name = "workers-2")]
    Workers2,
    /// flood-256 with four workers
    #[value(name = "workers-4")]
    Workers4,
    /// Tasks that fail once and are retried a second later
    Retries,
    /// A thousand clients that each follow the events of the task that they submitted
    #[value(name = "sse-1000")]
    Sse1000,
    /// flood-256 and drain-100k on a store of a million rows
    Million,
    /// No task at all
    Idle,
}

/// How large scenarios are.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Tasks of a flood over 256 connections and of a backlog; the others have their share.
    pub tasks: usize,
    /// The time of what takes a time.
    pub seconds: u32,
}

impl Scenario {
    /// Runs it on a stand of its own; rows are handed over as they are there.
    ///
    /// # Errors
    /// What does not start, or a task that is not as it should be.
    pub async fn run(self, scale: Scale, out: &mut impl FnMut(Row) -> Result<()>) -> Result<()> {
        let Scale { tasks, seconds } = scale;
        let workers = match self {
            Self::Drain => 0,
            Self::Workers2 => 2,
            Self::Workers4 => 4,
            _ => 1,
        };
        let mut stand = Stand::start(workers).await?;
        let name = self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let flood = |work, share: usize, connections| Load {
            work,
            tasks: (tasks / share).max(1),
            connections,
            rate: None,
            wait_every: None,
        };
        let echo = Work::Echo(PAYLOAD);
        match self {
            Self::Single => out(single::run(&stand, &name, (tasks / 30).max(3)).await?)?,
            Self::Rate500 => out(flood::run(&stand, &name, &flood::at_rate(500, seconds)).await?)?,
            Self::Flood32 => out(flood::run(&stand, &name, &flood(echo, 2, 32)).await?)?,
            Self::Flood256 => out(flood::run(&stand, &name, &flood(echo, 1, 256)).await?)?,
            Self::Workers2 | Self::Workers4 => out(flood::run(&stand, &name, &flood(echo, 2, 256)).await?)?,
            Self::Payload1k => out(flood::run(&stand, &name, &flood(Work::Echo(1_000), 2, 256)).await?)?,
            Self::Payload64k => out(flood::run(&stand, &name, &flood(Work::Echo(64_000), 50, 256)).await?)?,
            Self::Retries => out(flood::run(&stand, &name, &flood(Work::Flaky, 5, 256)).await?)?,
            Self::Drain => flood::drain(&mut stand, &name, &flood(echo, 1, 256), out).await?,
            Self::Sse1000 => out(listeners::run(&stand, &name, (tasks / 10).max(1), 1_000).await?)?,
            Self::Million => million::run(&mut stand, &name, &flood(echo, 1, 256), out).await?,
            // Nothing of the pair runs in it.
            Self::Floor => {}
            Self::Idle => out(idle::run(&stand, &name, seconds).await?)?,
        }
        stand.end().await
    }
}
