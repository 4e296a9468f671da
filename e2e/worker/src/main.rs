//! The worker of the chaos run. It is made as anybody's worker is, and its tasks write each run into the ledger.

mod ledger;
mod tasks;

use std::path::PathBuf;
use std::process::ExitCode;

use consumer::registry::Registry;

use crate::ledger::Ledger;

#[derive(clap::Args)]
struct Settings {
    /// The file that every run is appended to
    #[arg(long, env = "LEDGER")]
    ledger: PathBuf,
}

fn main() -> ExitCode {
    consumer::app::run_with(|settings: &Settings| {
        let ledger = Ledger::open(&settings.ledger)?;
        Ok(Registry::new()
            .register(tasks::Quick(ledger.clone()))
            .register(tasks::Slow(ledger.clone()))
            .register(tasks::Flaky(ledger.clone()))
            .register(tasks::Crashing(ledger.clone()))
            .register(tasks::Large(ledger.clone()))
            .register(tasks::Failing(ledger)))
    })
}
