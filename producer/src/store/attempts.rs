//! The attempts of a task. Those after which it went on are rows; the one that runs or ended it is read from its own row.

use protocol::state::State;
use serde_json::value::RawValue;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::column::{json, optional_raw};
use super::{Store, StoreError, TaskRow, UnixMs, Whose, read};

/// The attempts that are shown, the latest ones. A trigger keeps as many rows.
const KEPT: usize = 50;
/// What the store calls an attempt whose message the broker gave back.
const LOST: &str = "LOST";

/// One attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// From 0; of a task that the broker lost the same one comes again.
    pub number: u32,
    /// Who ran it.
    pub worker: Option<String>,
    /// When it began, if that was reported.
    pub started_at: Option<UnixMs>,
    /// When it ended, `None` while it runs.
    pub ended_at: Option<UnixMs>,
    /// How it stands, `None` when the broker gave it back and nobody knows how far it came.
    pub state: Option<State>,
    /// JSON of a [`protocol::reply::ErrorInfo`].
    pub error: Option<Box<RawValue>>,
    /// When the next one is due.
    pub retry_at: Option<UnixMs>,
}

impl Store {
    /// The latest attempts of a task, oldest first; `None` for an id that is not kept.
    ///
    /// # Errors
    /// The database failed.
    pub async fn attempts(&self, id: &str, whose: &Whose) -> Result<Option<Vec<Attempt>>, StoreError> {
        // One snapshot of both tables.
        let mut snapshot = self.readers.begin().await?;
        let task = sqlx::query(read::ONE).bind(id).bind(whose.owner()).fetch_optional(&mut *snapshot).await?;
        let Some(task) = task else { return Ok(None) };
        let (seq, task): (i64, TaskRow) = (task.try_get("seq")?, read::task_row(&task)?);
        let rows = sqlx::query("SELECT * FROM attempts WHERE task_seq = ? ORDER BY place").bind(seq);
        let rows = rows.fetch_all(&mut *snapshot).await?;
        let mut attempts = rows.iter().map(attempt).collect::<Result<Vec<_>, _>>()?;
        attempts.extend(latest(task, &attempts));
        attempts.drain(..attempts.len().saturating_sub(KEPT));
        Ok(Some(attempts))
    }
}

fn attempt(row: &SqliteRow) -> Result<Attempt, sqlx::Error> {
    Ok(Attempt {
        number: row.try_get("attempt")?,
        worker: row.try_get("worker")?,
        started_at: row.try_get("started_at")?,
        ended_at: row.try_get("ended_at")?,
        state: State::from_name(row.try_get("state")?),
        error: optional_raw(row, "error")?,
        retry_at: row.try_get("retry_at")?,
    })
}

/// The attempt that runs or ended the task. None of a task that waits for one, nor of one that ended without: no worker
/// spoke, or the last row holds all that was reported of that attempt.
fn latest(task: TaskRow, before: &[Attempt]) -> Option<Attempt> {
    // A row keeps the start of the latest attempt that had one.
    let started_at = task.started_at.filter(|_| before.iter().all(|earlier| earlier.started_at != task.started_at));
    let is_told = started_at.is_none() && before.last().is_some_and(|last| last.number == task.retries);
    let ran = match task.state {
        State::Pending | State::Retry => false,
        State::Success => true,
        State::Started => !is_told,
        State::Failure | State::Revoked => !is_told && (task.worker.is_some() || task.started_at.is_some()),
    };
    ran.then_some(Attempt {
        number: task.retries,
        worker: task.worker,
        started_at,
        ended_at: task.finished_at,
        state: Some(task.state),
        error: task.error,
        retry_at: None,
    })
}

/// A start that an earlier attempt had is not this one's.
const RETRIED: &str =
    "INSERT INTO attempts (task_seq, place, attempt, worker, started_at, ended_at, state, error, retry_at)
    SELECT t.seq, 1 + coalesce((SELECT max(place) FROM attempts WHERE task_seq = t.seq), 0), t.retries, t.worker,
        iif(EXISTS (SELECT 1 FROM attempts AS a WHERE a.task_seq = t.seq AND a.started_at = t.started_at),
            NULL, t.started_at),
        r.value ->> 1, t.state, t.error, t.retry_at
    FROM json_each(?) AS r CROSS JOIN tasks AS t ON t.id = r.value ->> 0
    WHERE NOT EXISTS (SELECT 1 FROM attempts AS a
        WHERE a.task_seq = t.seq AND a.attempt = t.retries AND a.state = t.state)";

/// Keeps the attempts that the tasks, now in RETRY, have just ended, each with the time of its end. A worker may say so
/// twice.
pub(super) async fn retried(connection: &mut SqliteConnection, ended: &[(&str, UnixMs)]) -> Result<(), sqlx::Error> {
    if ended.is_empty() {
        return Ok(());
    }
    sqlx::query(RETRIED).bind(json(&ended)?).execute(connection).await.map(drop)
}

/// One that has ended in RETRY was told, and its message waited for the next.
const GIVEN_BACK: &str =
    "INSERT INTO attempts (task_seq, place, attempt, worker, started_at, ended_at, state, retry_at)
    SELECT t.seq, 1 + coalesce((SELECT max(place) FROM attempts WHERE task_seq = t.seq), 0),
        t.retries + (t.state = 'RETRY'), iif(t.state = 'STARTED', t.worker, NULL),
        iif(t.state = 'STARTED', t.started_at, NULL), ?2, ?3, t.due_at
    FROM tasks AS t WHERE t.id = ?1";

/// Keeps an attempt whose message the broker gave back.
pub(super) async fn lost(connection: &mut SqliteConnection, id: &str, now: UnixMs) -> Result<(), sqlx::Error> {
    sqlx::query(GIVEN_BACK).bind(id).bind(now).bind(LOST).execute(connection).await.map(drop)
}
