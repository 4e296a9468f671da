//! What happens by time alone: tasks become due, expire, are given up and are forgotten. It sleeps until the next of these.

use std::time::Duration;

use protocol::timestamp::now_ms;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::hearing::Hearing;
use crate::store::{Store, StoreError};

/// The longest sleep, so that a wall clock that was set does not hold tasks up.
const LONGEST: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);

/// The clock of a store.
pub struct Clock {
    store: Store,
    result_ttl: Duration,
    hearing: Hearing,
    prune_at: Instant,
    hear_at: Instant,
}

impl Clock {
    /// A clock that deletes ended tasks `result_ttl` after their end, and ends those of Celery's workers by `hearing`.
    #[must_use]
    pub fn new(store: Store, result_ttl: Duration, hearing: Hearing) -> Self {
        let now = Instant::now();
        Self { store, result_ttl, hearing, prune_at: now, hear_at: now }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let next = match self.beat().await {
                Ok(next) => next.min(Instant::now() + LONGEST).min(self.prune_at).min(self.hear_at),
                Err(error) => {
                    tracing::error!(%error, "the clock cannot use the store");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep_until(next) => {}
                () = self.store.wake().clock.notified() => {}
            }
        }
    }

    /// Does what is due and says when the next thing is.
    async fn beat(&mut self) -> Result<Instant, StoreError> {
        let now = now_ms();
        if self.store.next_tick().await?.is_some_and(|at| at <= now) {
            self.store.tick(now).await?;
        }
        self.prune(now).await?;
        self.end_silent().await?;
        let until = |at: i64| Duration::from_millis(u64::try_from(at - now_ms()).unwrap_or(0));
        Ok(self.store.next_tick().await?.map_or(Instant::now() + LONGEST, |at| Instant::now() + until(at)))
    }

    async fn prune(&mut self, now: i64) -> Result<(), StoreError> {
        if Instant::now() < self.prune_at {
            return Ok(());
        }
        let ttl = i64::try_from(self.result_ttl.as_millis()).unwrap_or(i64::MAX);
        let pruned = self.store.prune(now.saturating_sub(ttl)).await? + self.store.prune_keys(now).await?;
        let every = (self.result_ttl / 10).clamp(Duration::from_millis(500), Duration::from_mins(1));
        self.prune_at = next(pruned, every);
        Ok(())
    }

    async fn end_silent(&mut self) -> Result<(), StoreError> {
        if Instant::now() < self.hear_at {
            return Ok(());
        }
        let ended = match self.hearing.too_long(Instant::now(), now_ms()) {
            Some(silence) => self.store.end_silent(silence).await?,
            None => 0,
        };
        self.hear_at = next(ended, self.hearing.every());
        Ok(())
    }
}

/// What was left over follows at once.
fn next(touched: u64, every: Duration) -> Instant {
    if touched > 0 { Instant::now() } else { Instant::now() + every }
}
