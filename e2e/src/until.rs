//! Owns waiting for what no event tells of.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;

const POLL: Duration = Duration::from_millis(20);

/// Looks again and again until the look succeeds, and returns what it saw. When the time is up, the error says what was
/// awaited and why the last look failed.
pub async fn until<T>(awaited: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(error) if start.elapsed() > deadline => {
                return Err(error).with_context(|| format!("{awaited}: not within {deadline:?}"));
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[tokio::test]
    async fn it_ends_with_what_was_seen_or_says_what_was_awaited() {
        let mut looks = 0;
        let seen = until("three looks", Duration::from_mins(1), async || {
            looks += 1;
            ensure!(looks == 3, "{looks} looks");
            Ok(looks)
        });
        assert_eq!(seen.await.unwrap(), 3);
        let never = until("nothing", Duration::ZERO, async || -> Result<()> { anyhow::bail!("still something") });
        assert_eq!(format!("{:#}", never.await.unwrap_err()), "nothing: not within 0ns: still something");
    }
}
