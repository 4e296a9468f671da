//! Who is woken by what a commit changed.

use tokio::sync::{Notify, watch};

/// Wakes by cause. A wake that nobody awaits yet is kept; several before the next await are one.
#[derive(Debug)]
pub struct Wake {
    /// Rows became due. Every queue's relay watches it.
    pub due: watch::Sender<()>,
    /// Tasks left the broker. A relay whose window was full watches it.
    pub room: watch::Sender<()>,
    /// A row was stored that becomes due or expires later.
    pub clock: Notify,
    /// A task ended whose end is to be posted.
    pub callbacks: Notify,
}

impl Default for Wake {
    fn default() -> Self {
        Self {
            due: watch::Sender::new(()),
            room: watch::Sender::new(()),
            clock: Notify::new(),
            callbacks: Notify::new(),
        }
    }
}
