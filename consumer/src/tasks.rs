//! The tasks that come with the worker, one file each, and the registry of them all.
//!
//! A task of one's own is one more file here and one more line in [`registry`].

mod add;
mod always_fails;
mod block_thread;
mod crash;
mod echo;
mod fetch_url;
mod flaky;
mod long_running_task;
mod panic;
mod process_file;
mod remote;
mod resize_image;
mod seconds;
mod sleep;

use crate::config::TaskSettings;
use crate::fetch::Fetcher;
use crate::registry::Registry;

/// All tasks. The fault tasks harm the worker on purpose: they are for tests of it.
///
/// # Errors
/// A setting that a task cannot use, by its name.
pub fn registry(settings: &TaskSettings) -> anyhow::Result<Registry> {
    let fetcher = Fetcher::new(settings)?;
    let tasks = Registry::new()
        .register(add::Add)
        .register(always_fails::AlwaysFails)
        .register(echo::Echo)
        .register(fetch_url::FetchUrl { fetcher: fetcher.clone(), max_bytes: settings.fetch_max_bytes })
        .register(flaky::Flaky)
        .register(long_running_task::LongRunningTask)
        .register(process_file::ProcessFile::new(settings, fetcher.clone())?)
        .register(resize_image::ResizeImage::new(settings, fetcher)?)
        .register(sleep::Sleep);
    if !settings.enable_fault_tasks {
        return Ok(tasks);
    }
    Ok(tasks.register(block_thread::BlockThread).register(crash::Crash).register(panic::Panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_tasks_are_there_on_demand_only() {
        let harmless = [
            "add",
            "always_fails",
            "echo",
            "fetch_url",
            "flaky",
            "long_running_task",
            "process_file",
            "resize_image",
            "sleep",
        ];
        let faults = ["block_thread", "crash", "panic"];
        assert!(registry(&TaskSettings::default()).unwrap().names().eq(harmless));
        let all = registry(&TaskSettings { enable_fault_tasks: true, ..TaskSettings::default() }).unwrap();
        assert!(harmless.iter().chain(&faults).all(|name| all.get(name).is_some()));
        assert!(all.duplicates().is_empty());
    }
}
