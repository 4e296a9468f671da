//! Measures what a task costs: see bench/README.md.

mod check;
mod driver;
mod figures;
mod latencies;
mod machine;
mod meter;
mod ratios;
mod row;
mod scenarios;
mod stand;
mod work;

use std::io::{Write, stdout};

use clap::{Parser, ValueEnum};

use crate::ratios::Ratios;
use crate::row::HEAD;
use crate::scenarios::{Scale, Scenario};

/// Runs broker, producer and workers under load, checks every task, and prints what one costs
#[derive(Parser)]
struct Cli {
    /// What to run instead of all
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// Tasks of a flood over 256 connections and of a backlog; other scenarios have their share
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    tasks: u32,
    /// How long what takes a time takes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

// One thread: what the driver uses is missing from what it measures, and threads that wake each other use more.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Cli { scenarios, tasks, seconds } = Cli::parse();
    let scenarios = if scenarios.is_empty() { Scenario::value_variants().to_vec() } else { scenarios };
    let scale = Scale { tasks: tasks as usize, seconds };
    let (mut out, mut rows) = (stdout(), Vec::new());
    writeln!(out, "{}\n\n{HEAD}", machine::describe())?;
    for scenario in scenarios {
        let mut show = |row| {
            writeln!(out, "{row}")?;
            rows.push(row);
            Ok(())
        };
        scenario.run(scale, &mut show).await?;
    }
    Ok(write!(out, "\n{}", Ratios { rows: &rows, floor: &[] })?)
}
