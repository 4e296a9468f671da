//! Metrics of what every delivery passes, looked up once: by name it costs more than to count.

use metrics::{Counter, Histogram, counter, histogram};

pub(super) struct Counts {
    /// Deliveries of tasks.
    pub(super) deliveries: Counter,
    /// Handlers that were started.
    pub(super) runs: Counter,
    /// How long they ran.
    pub(super) run_seconds: Histogram,
}

impl Counts {
    /// Once the recorder is installed.
    pub(super) fn new() -> Self {
        Self {
            deliveries: counter!("errand_deliveries_total"),
            runs: counter!("errand_runs_started_total"),
            run_seconds: histogram!("errand_run_seconds"),
        }
    }
}
