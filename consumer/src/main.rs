//! The worker with Errand's own tasks.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    consumer::app::run_with(consumer::tasks::registry)
}
