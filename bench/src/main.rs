//! Measures what a task costs: see bench/README.md.

mod check;
mod driver;
mod figures;
mod floor;
mod latencies;
mod machine;
mod meter;
mod ratios;
mod row;
mod scenarios;
mod stand;
mod work;

use std::io::{Write, stdout};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::ratios::Ratios;
use crate::row::HEAD;
use crate::scenarios::{PAYLOAD, Scale, Scenario};

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
    /// Be a process of the floor, and do the job in this file
    #[arg(long, hide = true)]
    floor_part: Option<PathBuf>,
}

// One thread: what the driver uses is missing from what it measures, and threads that wake each other use more.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Cli { scenarios, tasks, seconds, floor_part } = Cli::parse();
    if let Some(job) = floor_part {
        return floor::part::run(&job).await;
    }
    let scenarios = if scenarios.is_empty() { Scenario::value_variants().to_vec() } else { scenarios };
    let scale = Scale { tasks: tasks as usize, seconds };
    let (mut out, mut rows, mut floor) = (stdout(), Vec::new(), Vec::new());
    writeln!(
        out,
        "{}
",
        machine::describe()
    )?;
    if scenarios.contains(&Scenario::Floor) {
        floor = floor::measure(PAYLOAD, tasks).await?;
        writeln!(out, "{}", floor::Table(&floor))?;
    }
    let scenarios: Vec<Scenario> = scenarios.into_iter().filter(|scenario| *scenario != Scenario::Floor).collect();
    if !scenarios.is_empty() {
        writeln!(out, "{HEAD}")?;
    }
    for scenario in scenarios {
        let mut show = |row| {
            writeln!(out, "{row}")?;
            rows.push(row);
            Ok(())
        };
        scenario.run(scale, &mut show).await?;
    }
    Ok(write!(out, "\n{}", Ratios { rows: &rows, floor: &floor })?)
}
