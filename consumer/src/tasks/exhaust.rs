//! `exhaust(memory_mib=0, cpu_seconds=0)`: a fault task that uses up memory or CPU, in a process that may use 256 MiB and
//! 2 s.

use std::hint::black_box;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::Context;
use crate::handler::{Handler, TaskError};
use crate::options::{ResourceLimits, TaskOptions};

pub(crate) struct Exhaust;

/// Uses up memory or CPU in a process of its own, which may use 256 MiB and 2 s.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// Memory to write to, in MiB.
    #[serde(default)]
    memory_mib: u16,
    /// How long to compute.
    #[serde(default)]
    cpu_seconds: u16,
}

impl Handler for Exhaust {
    const NAME: &'static str = "exhaust";
    const OPTIONS: TaskOptions =
        TaskOptions::new().isolated(ResourceLimits { memory: 256 << 20, cpu: Duration::from_secs(2) });
    type Args = Args;
    type Output = u64;

    async fn run(&self, Args { memory_mib, cpu_seconds }: Args, _: Context) -> Result<u64, TaskError> {
        let memory = black_box(vec![1_u8; usize::from(memory_mib) << 20]);
        let (start, mut rounds) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(cpu_seconds.into()) {
            rounds = black_box(rounds + 1);
        }
        Ok(memory.len() as u64)
    }
}
