//! What a supervised loop does between two sessions: everything is rebuilt after a jittered wait.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::fault::Fault;
use crate::backoff::Backoff;

/// Connected for this long counts as a success, and the waits start over.
const STABLE: Duration = Duration::from_secs(10);
/// The longest wait for a broker that is away: whoever waits for it is back within 15 s of its return.
const AWAY: Duration = Duration::from_secs(5);
/// The longest wait for one that refuses: asking more often would only fill its log.
const REFUSED: Duration = Duration::from_secs(30);

/// How a session ended.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) fault: Fault,
    /// Since when it was connected, `None` when it never was.
    pub(super) connected: Option<Instant>,
}

impl From<Fault> for Broken {
    /// A fault before the session was connected.
    fn from(fault: Fault) -> Self {
        Self { fault, connected: None }
    }
}

/// The waits between the sessions of one loop.
pub(super) struct Rebuild {
    who: &'static str,
    backoff: Backoff,
}

impl Rebuild {
    pub(super) fn new(who: &'static str) -> Self {
        Self { who, backoff: Backoff::default() }
    }

    /// Waits before the next session; less when `stop` comes first.
    ///
    /// # Errors
    /// The fault, when rebuilding cannot mend it.
    pub(super) async fn after(&mut self, broken: Broken, stop: &CancellationToken) -> Result<(), Fault> {
        let Broken { fault, connected } = broken;
        if fault.is_fatal() {
            return Err(fault);
        }
        if connected.is_some_and(|since| since.elapsed() > STABLE) {
            self.backoff.reset();
        }
        let wait = self.backoff.next_delay(if fault.is_refusal() { REFUSED } else { AWAY });
        tracing::warn!(%fault, retry_in = ?wait, "the {} lost the broker", self.who);
        stop.run_until_cancelled(sleep(wait)).await;
        Ok(())
    }
}
