//! The attempts of a task. Those after which it went on are rows; the one that runs or ended it is read from its own row.

use protocol::reply::ErrorInfo;
use protocol::state::State;
use serde_json::value::RawValue;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::column::{json, optional_raw};
use super::{Route, Store, StoreError, TaskRow, UnixMs, Whose, read};

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
    /// The replay that asked for it; `None` for one that followed by itself, or the same for a second time.
    pub provenance: Option<Provenance>,
}

/// How an attempt came from a replay.
#[derive(Debug, Clone)]
pub struct Provenance {
    attempt: u32,
    /// When it was asked for.
    pub at: UnixMs,
    /// By which call.
    pub route: Route,
    /// The `args` and `kwargs` before, where they were edited.
    pub before: Option<(Box<RawValue>, Box<RawValue>)>,
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
        let rows = sqlx::query("SELECT * FROM replays WHERE task_seq = ?").bind(seq).fetch_all(&mut *snapshot).await?;
        let replays = rows.iter().map(provenance).collect::<Result<Vec<_>, _>>()?;
        let is_replay = replays.iter().any(|replay| replay.attempt == task.retries);
        attempts.extend(latest(task, &attempts, is_replay));
        attempts.drain(..attempts.len().saturating_sub(KEPT));
        for replay in replays {
            if let Some(first) = attempts.iter_mut().find(|attempt| attempt.number == replay.attempt) {
                first.provenance = Some(replay);
            }
        }
        Ok(Some(attempts))
    }
}

fn provenance(row: &SqliteRow) -> Result<Provenance, sqlx::Error> {
    let route: &str = row.try_get("route")?;
    Ok(Provenance {
        attempt: row.try_get("attempt")?,
        at: row.try_get("at")?,
        route: Route::from_name(route).ok_or_else(|| sqlx::Error::Decode(format!("route {route:?}").into()))?,
        before: optional_raw(row, "args")?.zip(optional_raw(row, "kwargs")?),
    })
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
        provenance: None,
    })
}

/// Of a stock worker, which names neither itself nor a start, this is all that shows of an attempt that failed.
fn has_raised(task: &TaskRow) -> bool {
    let error = task.error.as_deref().and_then(|error| serde_json::from_str::<ErrorInfo>(error.get()).ok());
    error.is_some_and(|error| error.traceback.is_some())
}

/// The attempt that runs or ended the task, or that a replay has asked for. None of another task that waits for one, nor
/// of one that ended without: no worker spoke, or the last row holds all that was reported of that attempt.
fn latest(task: TaskRow, before: &[Attempt], is_replay: bool) -> Option<Attempt> {
    // A row keeps the start of the latest attempt that had one.
    let started_at = task.started_at.filter(|_| before.iter().all(|earlier| earlier.started_at != task.started_at));
    let is_told = started_at.is_none() && before.last().is_some_and(|last| last.number == task.retries);
    let ran = match task.state {
        State::Pending => is_replay && !is_told,
        State::Retry => false,
        State::Success => true,
        State::Started => !is_told,
        State::Failure | State::Revoked => {
            !is_told && (is_replay || task.worker.is_some() || started_at.is_some() || has_raised(&task))
        }
    };
    ran.then_some(Attempt {
        number: task.retries,
        worker: task.worker,
        started_at,
        ended_at: task.finished_at,
        state: Some(task.state),
        error: task.error,
        retry_at: None,
        provenance: None,
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

/// What ended a task that is replayed, whether or not it ran. A start that an earlier attempt had is not this one's.
const ENDED: &str = "INSERT INTO attempts (task_seq, place, attempt, worker, started_at, ended_at, state, error)
    SELECT t.seq, 1 + coalesce((SELECT max(place) FROM attempts WHERE task_seq = t.seq), 0), t.retries, t.worker,
        iif(EXISTS (SELECT 1 FROM attempts AS a WHERE a.task_seq = t.seq AND a.started_at = t.started_at),
            NULL, t.started_at),
        t.finished_at, t.state, t.error
    FROM json_each(?) AS r CROSS JOIN tasks AS t ON t.seq = r.value ->> 0";

/// Keeps the attempts that ended these rows, which go on; each row is an array that its `seq` comes first in.
pub(super) async fn ended(connection: &mut SqliteConnection, rows: &str) -> Result<(), sqlx::Error> {
    sqlx::query(ENDED).bind(rows).execute(connection).await.map(drop)
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
