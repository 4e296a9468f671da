//! Who is woken by what a commit changed.

use tokio::sync::{Notify, watch};

/// Wakes by cause. A wake that nobody awaits yet is kept; several before the next await are one.
#[derive(Debug)]
pub struct Wake {
    /// Rows became due, or room at the broker became free. Every queue's relay watches it.
    pub relay: watch::Sender<()>,
    /// A row was stored that becomes due or expires later.
    pub clock: Notify,
    /// A task ended whose end is to be posted.
    pub callbacks: Notify,
}

impl Default for Wake {
    fn default() -> Self {
        Self { relay: watch::Sender::new(()), clock: Notify::new(), callbacks: Notify::new() }
    }
}
