//! The worker with Errand's own tasks: reads its settings, starts logging, serves.

use std::process::ExitCode;

use clap::Parser;
use consumer::config::{Cli, Command};
use consumer::{tasks, worker};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        // One line that names what is wrong. Every error says its cause itself.
        eprintln!("consumer: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(Command::Healthcheck) = cli.command {
        let ready = protocol::healthcheck::ready(cli.settings.consumer_listen)?;
        return Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    protocol::amqp::install_crypto_provider();
    cli.settings.log.init()?;
    let registry = tasks::registry(cli.settings.enable_fault_tasks);
    let config = cli.settings.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(worker::serve(config, registry));
    // A name lookup that hangs must not hold up the end.
    runtime.shutdown_background();
    ended?;
    Ok(ExitCode::SUCCESS)
}
