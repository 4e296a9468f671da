//! The outbox of callbacks: which ends are to be posted, and what became of each. A trigger writes its rows, so that none
//! is left out by whatever ends a task.

use protocol::state::State;
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};

use super::column::{json, optional_raw};
use super::read::task_row;
use super::write::Write;
use super::{Store, StoreError, TaskRow, UnixMs};

/// The table of the outbox: its inserts wake the loop.
pub(super) const TABLE: &str = "callbacks";

/// Where a task's end is posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// An http or https URL.
    pub url: String,
    /// The ends that are posted.
    pub events: Vec<State>,
    /// The URL's host: what is slow or away together, and no more receivers by having many ports.
    pub receiver: String,
}

/// What became of a callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackStanding {
    /// Attempts so far.
    pub attempts: u32,
    /// Why the last attempt failed, `None` when it was delivered.
    pub error: Option<String>,
    /// When the next attempt is due, `None` when there is none.
    pub next_at: Option<UnixMs>,
}

/// An end to be posted.
#[derive(Debug, Clone)]
pub struct DueCallback {
    /// The same in each of its attempts, another for another end.
    pub id: String,
    /// Attempts so far.
    pub attempts: u32,
    /// The task as it ended.
    pub row: TaskRow,
}

/// Of each receiver the first that are due, and whether it has failed others. Those in hand are the first of theirs, so
/// they take its room.
const DUE: &str = "WITH RECURSIVE receivers (name) AS (
        SELECT min(receiver) FROM callbacks
        UNION ALL SELECT (SELECT min(receiver) FROM callbacks WHERE receiver > name) FROM receivers
            WHERE name IS NOT NULL)
    SELECT c.id, EXISTS (SELECT 1 FROM callbacks WHERE receiver = name AND attempts > 0) AS is_failing FROM receivers CROSS JOIN callbacks AS c ON c.seq IN
        (SELECT seq FROM callbacks WHERE receiver = name AND next_at <= ?1 ORDER BY next_at, seq LIMIT ?2)
    WHERE c.id NOT IN (SELECT value FROM json_each(?3)) ORDER BY is_failing, c.next_at LIMIT ?4";

impl Store {
    /// The ids of callbacks that are due, at most `room`, and of one receiver at most `each` with those in hand; last,
    /// and marked, those whose receiver fails.
    ///
    /// # Errors
    /// The database failed.
    pub async fn due_callbacks(
        &self,
        now: UnixMs,
        in_hand: &[&str],
        each: u32,
        room: u32,
    ) -> Result<Vec<(String, bool)>, StoreError> {
        let due = sqlx::query_as(DUE).bind(now).bind(each).bind(json(&in_hand)?).bind(room);
        Ok(due.fetch_all(&self.readers).await?)
    }

    /// When the next callback after `now` is due.
    ///
    /// # Errors
    /// The database failed.
    pub async fn next_callback(&self, now: UnixMs) -> Result<Option<UnixMs>, StoreError> {
        let next = "SELECT min(next_at) FROM callbacks WHERE next_at > ?";
        Ok(sqlx::query_scalar(next).bind(now).fetch_one(&self.readers).await?)
    }

    /// A callback and its task as that ended, `None` when it was forgotten meanwhile.
    ///
    /// # Errors
    /// The database failed.
    pub async fn callback(&self, id: &str) -> Result<Option<DueCallback>, StoreError> {
        let mut snapshot = self.readers.begin().await?;
        let end = sqlx::query("SELECT * FROM callbacks WHERE id = ?").bind(id).fetch_optional(&mut *snapshot).await?;
        let Some(end) = end else { return Ok(None) };
        let task = sqlx::query("SELECT * FROM tasks WHERE id = ?").bind(end.try_get::<&str, _>("task_id")?);
        let Some(task) = task.fetch_optional(&mut *snapshot).await? else { return Ok(None) };
        let state: &str = end.try_get("state")?;
        let row = TaskRow {
            state: State::from_name(state).ok_or_else(|| sqlx::Error::Decode(format!("state {state:?}").into()))?,
            retries: end.try_get("retries")?,
            worker: end.try_get("worker")?,
            progress: optional_raw(&end, "progress")?,
            result: optional_raw(&end, "result")?,
            error: optional_raw(&end, "error")?,
            retry_at: None,
            started_at: end.try_get("started_at")?,
            finished_at: end.try_get("finished_at")?,
            ..task_row(&task)?
        };
        Ok(Some(DueCallback { id: end.try_get("id")?, attempts: end.try_get("attempts")?, row }))
    }

    /// Keeps what an attempt came to. One that is not to be tried again is posted no more.
    ///
    /// # Errors
    /// The store failed and nothing was kept.
    pub async fn mark_callback(&self, id: &str, standing: CallbackStanding) -> Result<(), StoreError> {
        self.write(|done| Write::Callback(id.to_owned(), standing, done)).await
    }
}

const STAND: &str = "UPDATE tasks SET callback_standing = ?2 WHERE id = (SELECT task_id FROM callbacks WHERE id = ?1)";
const AGAIN: &str = "UPDATE callbacks SET attempts = ?2, next_at = ?3 WHERE id = ?1";

pub(super) async fn mark(
    connection: &mut SqliteConnection,
    id: &str,
    standing: &CallbackStanding,
) -> Result<(), sqlx::Error> {
    sqlx::query(STAND).bind(id).bind(json(standing)?).execute(&mut *connection).await?;
    let kept = match standing.next_at {
        Some(at) => sqlx::query(AGAIN).bind(id).bind(standing.attempts).bind(at),
        None => sqlx::query("DELETE FROM callbacks WHERE id = ?").bind(id),
    };
    kept.execute(connection).await.map(drop)
}
