//! How many tasks are where. The counts are kept by triggers, so that reading them costs the same at any size.

use super::{Store, StoreError};

/// Tasks by where they are in their lives, since the store was made. `accepted` is the sum of all but `forgotten`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that were ever accepted, forgotten ones too.
    pub accepted: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Due, for the relay.
    pub waiting: u64,
    /// At the broker.
    pub queued: u64,
    /// Announced as running.
    pub running: u64,
    /// Waiting for their next attempt.
    pub retrying: u64,
    /// Ended in SUCCESS.
    pub success: u64,
    /// Ended in FAILURE.
    pub failure: u64,
    /// Ended in REVOKED.
    pub revoked: u64,
    /// Of those that ended: expired or deleted since.
    pub forgotten: u64,
}

impl Store {
    /// The counts of one moment: one statement reads one snapshot.
    ///
    /// # Errors
    /// The database failed.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT place, tasks FROM counts").fetch_all(&self.readers).await?;
        let mut counts = Counts::default();
        for (place, tasks) in rows {
            let tasks = u64::try_from(tasks).unwrap_or(0);
            if place == "forgotten" {
                counts.forgotten = tasks;
                continue;
            }
            counts.accepted += tasks;
            if let Some(count) = counts.place(&place) {
                *count = tasks;
            }
        }
        Ok(counts)
    }
}

impl Counts {
    fn place(&mut self, place: &str) -> Option<&mut u64> {
        Some(match place {
            "scheduled" => &mut self.scheduled,
            "waiting" => &mut self.waiting,
            "queued" => &mut self.queued,
            "running" => &mut self.running,
            "retrying" => &mut self.retrying,
            "SUCCESS" => &mut self.success,
            "FAILURE" => &mut self.failure,
            "REVOKED" => &mut self.revoked,
            _ => return None,
        })
    }
}
