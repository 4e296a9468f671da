//! The producer as a library of two: [`run`], which is the whole service, and [`store`], which benches time by itself.

mod api;
mod app;
mod arguments;
mod callbacks;
mod clock;
mod commands;
mod config;
mod control;
mod definitions;
mod hearing;
mod key;
mod keyring;
mod rate;
mod reason;
mod reconciler;
mod relay;
mod replies;
mod rules;
pub mod store;
mod submission;
mod workers;

use std::process::ExitCode;

use clap::Parser;

use crate::config::{Cli, Command};

/// Does what the command line asks for; without a subcommand it serves until SIGTERM or SIGINT.
#[must_use]
pub fn run() -> ExitCode {
    obey().unwrap_or_else(|error| {
        // One line that names what is wrong. Every error says its cause itself.
        eprintln!("producer: {error}");
        ExitCode::FAILURE
    })
}

fn obey() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = match cli.command {
        Some(Command::Healthcheck) => {
            let ready = protocol::healthcheck::ready(cli.settings.producer_listen)?;
            return Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Some(Command::Definitions(wanted)) => print(&cli.settings.definitions(&wanted)?),
        Some(Command::Callbacks(command)) => runtime.block_on(command.run(&cli.settings.database_url)),
        Some(Command::Keys(command)) => runtime.block_on(commands::keys(&cli.settings.database_url, command)),
        None => {
            protocol::amqp::install_crypto_provider();
            cli.settings.log.init()?;
            cli.settings.faults.arm();
            runtime.block_on(app::run(cli.settings.check()?))
        }
    };
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
