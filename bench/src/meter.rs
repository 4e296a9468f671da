//! Owns what the processes of a run used, as the kernel counts it. It must not know what they did.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use e2e::procfs::{cpu_time, family_cpu_time};

/// The processes of a run: a name and all that go by it.
pub type Processes = Vec<(String, Vec<u32>)>;

/// CPU times at one moment, user and system, children counted in.
#[derive(Debug, Default)]
pub struct Meter {
    times: BTreeMap<u32, Duration>,
}

impl Meter {
    /// Reads them now.
    ///
    /// # Errors
    /// One of the processes is gone.
    pub fn read(processes: &Processes) -> Result<Self> {
        let pids = processes.iter().flat_map(|(_, pids)| pids);
        // The children of this process are the others.
        let time = |pid| if pid == std::process::id() { cpu_time(pid) } else { family_cpu_time(pid) };
        Ok(Self { times: pids.map(|pid| Ok((*pid, time(*pid)?))).collect::<Result<_>>()? })
    }

    /// What each has used since then, in µs divided by `parts`. One that was not there then has used all it has now.
    ///
    /// # Errors
    /// One of the processes is gone.
    pub fn used(&self, processes: &Processes, parts: f64) -> Result<Vec<(String, f64)>> {
        let now = Self::read(processes)?;
        let used = |pid: &u32| now.of(*pid).saturating_sub(self.of(*pid));
        let share = |pids: &[u32]| pids.iter().map(used).sum::<Duration>().as_secs_f64() * 1e6 / parts;
        Ok(processes.iter().map(|(name, pids)| (name.clone(), share(pids))).collect())
    }

    fn of(&self, pid: u32) -> Duration {
        self.times.get(&pid).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::time::Instant;

    #[test]
    fn work_is_seen_and_shared_out() {
        let processes = vec![("this".to_owned(), vec![std::process::id()])];
        let (before, start) = (Meter::read(&processes).unwrap(), Instant::now());
        while before.used(&processes, 1.0).unwrap()[0].1 < 20_000.0 {
            black_box((0..100_000_u64).map(black_box).sum::<u64>());
            assert!(start.elapsed() < Duration::from_mins(1), "no CPU time is seen");
        }
        let whole = Meter::default().used(&processes, 1.0).unwrap()[0].1;
        let half = Meter::default().used(&processes, 2.0).unwrap()[0].1;
        assert!(whole >= 20_000.0 && half < whole);
    }
}
