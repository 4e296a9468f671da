//! Owns what the kernel says about processes: CPU time, memory, and which of them belong to a directory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

/// The unit of the times in `/proc/<pid>/stat`: 1/100 s on every Linux, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// The CPU time, user and system, of a process and of its children that have ended and were waited for.
///
/// Its own is the kernel's exact count; that of the children comes in ticks.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = children_times(&stat).with_context(|| format!("unreadable: {stat}"))?;
    let own = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()))?.now()?;
    Ok(Duration::from(own) + TICK * ticks)
}

/// The same of a process and all that descends from it.
pub fn family_cpu_time(pid: u32) -> Result<Duration> {
    let mut sum = cpu_time(pid)?;
    for child in children_of(pid)? {
        // One that has ended meanwhile counts with its parent's.
        sum += family_cpu_time(child).unwrap_or_default();
    }
    Ok(sum)
}

/// Fields 16 and 17. The second is the program's name in brackets, which may hold anything, so count from its end.
fn children_times(stat: &str) -> Option<u32> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<u32> =
        after_name.split_whitespace().skip(13).take(2).map_while(|field| field.parse().ok()).collect();
    (fields.len() == 2).then(|| fields.iter().sum())
}

/// The resident memory of a process in bytes.
pub fn rss(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, in bytes.
pub fn peak_rss(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// How many files a process has open, sockets among them.
pub fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("it has no memory: it has ended")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// The live processes whose parent is this one.
pub fn children_of(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        if state_and_parent(&stat).is_some_and(|(state, of)| state != "Z" && of == parent) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether a process lives: a dead one that nobody waited for does not.
#[must_use]
pub fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state_and_parent(&stat).is_some_and(|(state, _)| state != "Z")
}

fn state_and_parent(stat: &str) -> Option<(&str, u32)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    Some((fields.next()?, fields.next()?.parse().ok()?))
}

/// The live processes with `directory` in their environment or command line: whoever was started for it.
pub fn processes_of(directory: &Path) -> Result<Vec<u32>> {
    let needle = directory.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ends meanwhile, and a zombie, reads as nothing.
        let has = |file: &str| fs::read(path.join(file)).is_ok_and(|bytes| contains(&bytes, needle));
        if has("environ") || has("cmdline") {
            found.push(pid);
        }
    }
    Ok(found)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bracket_in_the_name_shifts_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 10 5 20 0 1 0 99";
        assert_eq!(children_times(stat), Some(15));
        assert_eq!(state_and_parent(stat), Some(("S", 1)));
    }

    #[test]
    fn this_process_has_memory_and_time() {
        let pid = std::process::id();
        assert!(rss(pid).unwrap() > 100_000);
        // Not compared with each other: the kernel counts both roughly while threads come and go.
        assert!(peak_rss(pid).unwrap() > 100_000);
        let cpu = cpu_time(pid).unwrap();
        assert!(cpu > Duration::ZERO && cpu < Duration::from_hours(1));
        assert!(family_cpu_time(pid).unwrap() >= cpu);
    }
}
