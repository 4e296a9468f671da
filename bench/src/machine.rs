//! Owns what is said of the machine that figures come from.

use std::fs::read_to_string;
use std::thread::available_parallelism;

/// Its processors, memory and kernel, and how much it had to do in the last minute before.
#[must_use]
pub fn describe() -> String {
    let read = |file: &str| read_to_string(file).unwrap_or_default();
    let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = field(&cpuinfo, "model name").unwrap_or("unknown processor");
    let memory = field(&meminfo, "MemTotal").unwrap_or("unknown");
    let cpus = available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let build = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
    format!("{build} on {cpus} × {model}, memory {memory}, Linux {}, load {load} before", kernel.trim())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_a_kernel() {
        let text = describe();
        assert!(text.contains(" kB, Linux ") && !text.contains("unknown, ") && text.ends_with(" before"), "{text}");
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model\t\t: 85\nmodel name\t: A CPU @ 2 GHz\n";
        assert_eq!(
            (field(text, "model name"), field(text, "model"), field(text, "mode")),
            (Some("A CPU @ 2 GHz"), Some("85"), None)
        );
    }
}
