//! The chaos run as a command: see [`e2e::chaos`] and docs/reliability.md.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use e2e::broker::Release;
use e2e::chaos::fault::Fault;
use e2e::chaos::table::Table;
use e2e::chaos::{self, Options};
use e2e::config;

/// Breaks a running pair again and again under load, and accounts for every task
#[derive(Parser)]
struct Cli {
    /// What tasks and faults are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long faults are made
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many tasks are ordered in that time
    #[arg(long, default_value_t = 5_000)]
    tasks: u64,
    /// How many workers run them
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// The RabbitMQ of the private node, as `ERRAND_RABBITMQ` names it
    #[arg(long)]
    rabbitmq: Option<String>,
    /// `SEEDED_BUG` or `FAULTS` and what it is to be, for services that deploy/build-faults has built
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    sabotage: Vec<(String, String)>,
    /// How many seconds nothing may end, when nothing is broken any more, before what is open counts as lost
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// The faults to make, as the table names them, instead of all
    #[arg(long, value_delimiter = ',', value_parser = fault)]
    faults: Vec<Fault>,
    /// A directory to copy logs, store and ledger to
    #[arg(long)]
    keep: Option<PathBuf>,
}

fn fault(name: &str) -> Result<Fault, String> {
    Fault::from_name(name)
        .ok_or_else(|| format!("none of {}", Fault::all().map(Fault::name).collect::<Vec<_>>().join(", ")))
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Cli { seed, seconds, tasks, workers, rabbitmq, sabotage, patience, faults, keep } = Cli::parse();
    let (time, patience) = (Duration::from_secs(seconds), Duration::from_secs(patience));
    let faults = if faults.is_empty() { Fault::fitting(time) } else { faults };
    let sabotage = sabotage.into_iter().collect();
    let release = Some(rabbitmq.map_or_else(config::release, Release::Installed));
    let options = Options { seed, time, tasks, workers, faults, release, sabotage, patience, keep };
    let account = chaos::run(&options).await?;
    write!(std::io::stdout(), "\n{}", Table(&account))?;
    Ok(if account.broken().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
