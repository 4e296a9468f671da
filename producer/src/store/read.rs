//! Reads a task as it stands.

use protocol::state::State;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::column::{from_json, optional_raw, parent, raw};
use super::{NewTask, Stage, Store, StoreError, TaskRow, UnixMs, Whose};

impl Store {
    /// The task with that id, `None` when it was never accepted or its result has expired.
    ///
    /// # Errors
    /// The database failed.
    pub async fn task(&self, id: &str, whose: &Whose) -> Result<Option<TaskRow>, StoreError> {
        let row = sqlx::query(ONE).bind(id).bind(whose.owner()).fetch_optional(&self.readers).await?;
        let Some(mut row) = row.as_ref().map(task_row).transpose()? else { return Ok(None) };
        row.ahead = self.ahead(&row).await?;
        Ok(Some(row))
    }
}

/// A task, if it is among those that are meant.
pub(super) const ONE: &str = "SELECT * FROM tasks WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)";

pub(super) fn task_row(row: &SqliteRow) -> Result<TaskRow, sqlx::Error> {
    Ok(TaskRow {
        accepted: accepted(row)?,
        stage: Stage::from_name(row.try_get("stage")?),
        due_at: row.try_get("due_at")?,
        lost: row.try_get("lost")?,
        state: state(row)?,
        retries: row.try_get("retries")?,
        report_seq: row.try_get("report_seq")?,
        worker: row.try_get("worker")?,
        progress: optional_raw(row, "progress")?,
        result: optional_raw(row, "result")?,
        error: optional_raw(row, "error")?,
        revoked_at: row.try_get("revoked_at")?,
        retry_at: row.try_get("retry_at")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        callback: optional_raw(row, "callback_standing")?.map(|raw| from_json(&raw)).transpose()?,
        ahead: None,
    })
}

pub(super) fn state(row: &SqliteRow) -> Result<State, sqlx::Error> {
    let state: &str = row.try_get("state")?;
    State::from_name(state).ok_or_else(|| sqlx::Error::Decode(format!("state {state:?}").into()))
}

/// Whether it is a child that was FAILURE from the beginning.
pub(super) fn was_never_accepted(row: &SqliteRow) -> Result<bool, sqlx::Error> {
    let (dismissed_at, finished_at): (Option<UnixMs>, Option<UnixMs>) =
        (row.try_get("dismissed_at")?, row.try_get("finished_at")?);
    let created_at: UnixMs = row.try_get("created_at")?;
    Ok(dismissed_at == Some(created_at) && finished_at == Some(created_at) && parent(row)?.is_some())
}

fn accepted(row: &SqliteRow) -> Result<NewTask, sqlx::Error> {
    Ok(NewTask {
        id: row.try_get("id")?,
        task: row.try_get("task")?,
        queue: row.try_get("queue")?,
        priority: row.try_get("priority")?,
        args: raw(row, "args")?,
        kwargs: raw(row, "kwargs")?,
        retry: from_json(&raw(row, "retry")?)?,
        time_limit: row.try_get("time_limit")?,
        soft_time_limit: row.try_get("soft_time_limit")?,
        created_at: row.try_get("created_at")?,
        eta: row.try_get("eta")?,
        expires: row.try_get("expires")?,
        parent: parent(row)?,
        owner: row.try_get("owner")?,
        callback: optional_raw(row, "callback")?.map(|raw| from_json(&raw)).transpose()?,
    })
}
