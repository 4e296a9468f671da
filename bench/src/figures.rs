//! Owns the figures of one run, whoever measured it. It must not know what was run.

/// What one run came to.
#[derive(Debug, Clone)]
pub struct Figures {
    /// What was run.
    pub name: String,
    /// How many tasks.
    pub tasks: u64,
    /// How long they took.
    pub seconds: f64,
    /// The CPU time of each process, user and system, in µs a task.
    pub cpu: Vec<(String, f64)>,
    /// p50, p99 and p99.9 in ms.
    pub latency: Option<[f64; 3]>,
}
