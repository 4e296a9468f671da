//! What happens by time alone: tasks become due, expire and are forgotten. It sleeps until the next of these.

use std::time::Duration;

use protocol::timestamp::now_ms;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};

/// The longest sleep, so that a wall clock that was set does not hold tasks up.
const LONGEST: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);

/// Runs until `stop`. Ended tasks are deleted `result_ttl` after their end.
pub async fn run(store: Store, result_ttl: Duration, stop: CancellationToken) {
    let prune_every = (result_ttl / 10).clamp(Duration::from_millis(500), Duration::from_mins(1));
    let mut prune_at = Instant::now();
    while !stop.is_cancelled() {
        let next = match beat(&store, result_ttl, &mut prune_at, prune_every).await {
            Ok(next) => next.min(Instant::now() + LONGEST).min(prune_at),
            Err(error) => {
                tracing::error!(%error, "the clock cannot use the store");
                sleep(PAUSE).await;
                continue;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep_until(next) => {}
            () = store.wake().clock.notified() => {}
        }
    }
}

/// Does what is due and says when the next thing is.
async fn beat(
    store: &Store,
    result_ttl: Duration,
    prune_at: &mut Instant,
    prune_every: Duration,
) -> Result<Instant, StoreError> {
    let now = now_ms();
    if store.next_tick().await?.is_some_and(|at| at <= now) {
        store.tick(now).await?;
    }
    if Instant::now() >= *prune_at {
        let ttl = i64::try_from(result_ttl.as_millis()).unwrap_or(i64::MAX);
        let pruned = store.prune(now.saturating_sub(ttl)).await? + store.prune_keys(now).await?;
        *prune_at = if pruned > 0 { Instant::now() } else { Instant::now() + prune_every };
    }
    let until = |at: i64| Duration::from_millis(u64::try_from(at - now_ms()).unwrap_or(0));
    Ok(store.next_tick().await?.map_or(Instant::now() + LONGEST, |at| Instant::now() + until(at)))
}
