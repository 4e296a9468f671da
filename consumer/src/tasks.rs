//! The tasks that come with the worker, one file each, and the registry of them all.
//!
//! A task of one's own is one more file here and one more line in [`registry`].

mod add;
mod always_fails;
mod block_thread;
mod cpu_bound;
mod crash;
mod echo;
mod exhaust;
mod fetch_url;
mod flaky;
mod hold_slot;
mod long_running_task;
mod named;
mod panic;
mod process_file;
mod query_database;
mod remote;
mod resize_image;
mod run_command;
mod seconds;
mod send_email;
mod sleep;

use crate::config::TaskSettings;
use crate::registry::Registry;

/// All tasks. The fault tasks harm the worker on purpose: they are for tests of it.
///
/// # Errors
/// A setting that a task cannot use, by its name.
pub fn registry(settings: &TaskSettings) -> anyhow::Result<Registry> {
    let fetcher = settings.fetcher()?;
    let tasks = Registry::new()
        .register(add::Add)
        .register(always_fails::AlwaysFails)
        .register(cpu_bound::CpuBound)
        .register(echo::Echo)
        .register(fetch_url::FetchUrl { fetcher: fetcher.clone(), max_bytes: settings.fetch_max_bytes })
        .register(flaky::Flaky)
        .register(long_running_task::LongRunningTask)
        .register(process_file::ProcessFile::new(settings, fetcher.clone())?)
        .register(query_database::QueryDatabase::new(settings)?)
        .register(resize_image::ResizeImage::new(settings, fetcher)?)
        .register(run_command::RunCommand::new(settings)?)
        .register(send_email::SendEmail::new(settings)?)
        .register(sleep::Sleep);
    if !settings.enable_fault_tasks {
        return Ok(tasks);
    }
    Ok(tasks
        .register(block_thread::BlockThread)
        .register(crash::Crash)
        .register(exhaust::Exhaust)
        .register(hold_slot::HoldSlot)
        .register(panic::Panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_tasks_are_there_on_demand_only() {
        let usual = registry(&TaskSettings::default()).unwrap();
        let all = registry(&TaskSettings { enable_fault_tasks: true, ..TaskSettings::default() }).unwrap();
        let faults: Vec<_> = all.names().filter(|name| usual.get(name).is_none()).collect();
        assert_eq!(faults, ["block_thread", "crash", "exhaust", "hold_slot", "panic"]);
        assert!(usual.names().all(|name| all.get(name).is_some()));
        assert!(all.duplicates().is_empty());
    }
}
