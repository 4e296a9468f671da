//! How many tasks are where, by queue. Every figure comes from a partial index.

use protocol::state::State;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Stage, Store, StoreError, TaskRow, UnixMs};

/// The most rows that a place in the line is counted among.
pub const MAX_AHEAD: u32 = 10_000;

/// A queue's open tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Not due yet.
    pub scheduled: u64,
    /// Due, for the relay.
    pub waiting: u64,
    /// At the broker, and not known to run.
    pub queued: u64,
    /// Running, as far as a worker has said.
    pub running: u64,
    /// Waiting for their next attempt.
    pub retrying: u64,
    /// When the first of those that wait became due, of those that come first in their priority.
    pub oldest: Option<UnixMs>,
}

/// The index gives the first of each priority at once; looking at all would read every waiting row.
const DEPTH: &str = "SELECT
    (SELECT count(*) FROM tasks WHERE stage = 'scheduled' AND queue = ?1) AS scheduled,
    (SELECT count(*) FROM tasks WHERE stage = 'waiting' AND queue = ?1) AS waiting,
    (SELECT count(*) FROM tasks WHERE stage = 'queued' AND queue = ?1) AS queued,
    (SELECT count(*) FROM tasks WHERE stage = 'queued' AND queue = ?1 AND state = 'STARTED') AS running,
    (SELECT count(*) FROM tasks WHERE stage = 'retrying' AND queue = ?1) AS retrying,
    (SELECT min(first) FROM (SELECT (
        SELECT due_at FROM tasks WHERE stage = 'waiting' AND queue = ?1 AND priority = value ORDER BY seq LIMIT 1
    ) AS first FROM json_each('[0,1,2,3,4,5,6,7,8,9]'))) AS oldest";

/// Two ranges of the relay's index, in the order in which it publishes.
const AHEAD_WAITING: &str = "SELECT count(*) FROM (SELECT 1 FROM (
        SELECT 1 FROM tasks WHERE stage = 'waiting' AND queue = ?1 AND priority > ?2
        UNION ALL
        SELECT 1 FROM tasks WHERE stage = 'waiting' AND queue = ?1 AND priority = ?2
            AND seq < (SELECT seq FROM tasks WHERE id = ?3)
    ) LIMIT ?4)";
/// The broker has them in the order of their publishes, which is about that of their acceptance.
const AHEAD_QUEUED: &str = "SELECT count(*) FROM (SELECT 1 FROM tasks
    WHERE stage = 'queued' AND queue = ?1 AND ?2 >= 0 AND seq < (SELECT seq FROM tasks WHERE id = ?3) LIMIT ?4)";

impl Store {
    /// How many tasks of the queue are where.
    ///
    /// # Errors
    /// The database failed.
    pub async fn depth(&self, queue: &str) -> Result<Depth, StoreError> {
        let row = sqlx::query(DEPTH).bind(queue).fetch_one(&self.readers).await?;
        Ok(depth(&row)?)
    }

    /// How many tasks of its queue come before this one, at most one more than [`MAX_AHEAD`]; `None` when it does not
    /// stand in line.
    ///
    /// # Errors
    /// The database failed.
    pub(super) async fn ahead(&self, row: &TaskRow) -> Result<Option<u32>, StoreError> {
        let count = match (row.stage, row.state) {
            (Stage::Waiting, _) => AHEAD_WAITING,
            (Stage::Queued, State::Pending) => AHEAD_QUEUED,
            _ => return Ok(None),
        };
        let task = &row.accepted;
        let count = sqlx::query_scalar(count).bind(&task.queue).bind(task.priority).bind(&task.id).bind(MAX_AHEAD + 1);
        Ok(Some(count.fetch_one(&self.readers).await?))
    }
}

fn depth(row: &SqliteRow) -> Result<Depth, sqlx::Error> {
    let running: u64 = row.try_get("running")?;
    Ok(Depth {
        scheduled: row.try_get("scheduled")?,
        waiting: row.try_get("waiting")?,
        queued: row.try_get::<u64, _>("queued")?.saturating_sub(running),
        running,
        retrying: row.try_get("retrying")?,
        oldest: row.try_get("oldest")?,
    })
}
