//! The worker with Errand's own tasks.

use std::process::ExitCode;

fn main() -> ExitCode {
    consumer::app::run_with(consumer::tasks::registry)
}
