//! The process: reads the settings and then does what the command line says. `main` calls it and does nothing else.

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser};

use crate::config::{Cli, Command, NoSettings};
use crate::registry::Registry;
use crate::worker::{self, Ended};

/// A worker of these tasks: all that a `main` needs.
///
/// ```no_run
/// use consumer::{app, registry::Registry};
///
/// fn main() -> std::process::ExitCode {
///     app::run(Registry::new())
/// }
/// ```
///
/// The process starts itself again for tasks that run apart, so `main` should do nothing before this.
#[must_use]
pub fn run(registry: Registry) -> ExitCode {
    run_with(|_: &NoSettings| Ok(registry))
}

/// The same of a worker whose tasks have settings of their own, flags and environment variables in clap's way.
#[must_use]
pub fn run_with<T: Args>(tasks: impl FnOnce(&T) -> anyhow::Result<Registry>) -> ExitCode {
    start(tasks).unwrap_or_else(|error| {
        // One line that names what is wrong.
        eprintln!("consumer: {error:#}");
        ExitCode::FAILURE
    })
}

fn start<T: Args>(tasks: impl FnOnce(&T) -> anyhow::Result<Registry>) -> anyhow::Result<ExitCode> {
    let cli = Cli::<T>::parse();
    if let Some(Command::Healthcheck) = cli.command {
        let ready = protocol::healthcheck::ready(cli.settings.consumer_listen)?;
        return Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    protocol::amqp::install_crypto_provider();
    name_process();
    let registry = tasks(&cli.tasks)?;
    match cli.command {
        Some(Command::Tasks) => print(&registry)?,
        Some(Command::Child) => {
            cli.settings.log.init()?;
            worker::child::serve(&registry)?;
        }
        _ => {
            cli.settings.log.init()?;
            cli.settings.faults.arm();
            if serve(cli.settings.check()?, registry)? == Ended::Restart {
                return Err(again());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(config: crate::config::Config, registry: Registry) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(worker::serve(config, registry));
    // A name lookup that hangs must not hold up the end.
    runtime.shutdown_background();
    ended
}

/// A process that was started as `/proc/self/exe` would be called `exe`.
fn name_process() {
    let name = std::env::args_os().next().and_then(|program| {
        let name = Path::new(&program).file_name()?.as_encoded_bytes().to_owned();
        CString::new(name).ok()
    });
    let _ = name.map(|name| rustix::thread::set_name(&name));
}

/// Becomes a new worker, in the same process: threads that a handler holds end with the old one.
fn again() -> anyhow::Error {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| "consumer".into());
    let error = std::process::Command::new("/proc/self/exe").arg0(program).args(arguments).exec();
    anyhow::Error::new(error).context("cannot start again")
}

#[expect(clippy::print_stdout, reason = "what the command is for")]
fn print(registry: &Registry) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(&registry.task_types()).context("task types")?);
    Ok(())
}
