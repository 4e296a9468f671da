//! The producer: reads its settings, starts logging, serves.

mod api;
mod app;
mod arguments;
mod clock;
mod config;
mod control;
mod definitions;
mod reason;
mod relay;
mod replies;
mod rules;
mod store;
mod submission;
mod workers;

use std::process::ExitCode;

use clap::Parser;

use crate::config::{Cli, Command};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        // One line that names what is wrong. Every error says its cause itself.
        eprintln!("producer: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    match &cli.command {
        Some(Command::Healthcheck) => {
            let ready = protocol::healthcheck::ready(cli.settings.producer_listen)?;
            return Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Some(Command::Definitions(wanted)) => {
            print(&cli.settings.definitions(wanted)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    protocol::amqp::install_crypto_provider();
    cli.settings.log.init()?;
    let config = cli.settings.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(app::run(config));
    // A name lookup that hangs must not hold up the end.
    runtime.shutdown_background();
    ended?;
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print(definitions: &serde_json::Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(definitions)?);
    Ok(())
}
