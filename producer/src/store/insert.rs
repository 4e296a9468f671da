//! Accepts tasks.

use std::collections::HashSet;

use serde_json::value::RawValue;
use sqlx::SqliteConnection;

use super::column::json;
use super::write::{Changes, Write};
use super::{Callback, NewTask, Placed, Stage, Store, StoreError, quota};

impl Store {
    /// Stores the task; it is on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::Beyond`], or the store failed and nothing was written.
    pub async fn insert(&self, task: NewTask) -> Result<(), StoreError> {
        self.write(|done| Write::Insert(vec![(task, done)])).await
    }
}

/// A row's columns in the order of the statement. JSON stands in it as it came and is read back with `->`, which keeps
/// numbers and escapes as they are.
#[derive(serde::Serialize)]
struct Row<'a>(
    &'a str,
    &'a str,
    &'a str,
    u8,
    &'a RawValue,
    &'a RawValue,
    &'a protocol::retry::RetryOptions,
    Option<f64>,
    Option<f64>,
    i64,
    Option<i64>,
    Option<i64>,
    &'a str,
    i64,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a Callback>,
);

const INSERT: &str = "INSERT INTO tasks (id, task, queue, priority, args, kwargs, retry, time_limit, soft_time_limit,
        created_at, eta, expires, stage, due_at, parent_id, root_id, owner, callback)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value -> 4, value -> 5, value -> 6, value ->> 7,
        value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13,
        value ->> 14, value ->> 15, value ->> 16, nullif(value -> 17, 'null')
    FROM json_each(?) WHERE true
    ON CONFLICT (id) DO NOTHING
    RETURNING id";

/// Inserts all that are within the limits of their keys in one statement, and says of each what became of it.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    tasks: &[NewTask],
    changes: &mut Changes,
) -> Result<Vec<Placed>, sqlx::Error> {
    let excess = quota::excess(connection, tasks).await?;
    let admitted = tasks.iter().zip(&excess).filter(|(_, excess)| excess.is_none());
    let rows: Vec<Row<'_>> = admitted.map(|(task, _)| row(task)).collect();
    let ids: Vec<String> = sqlx::query_scalar(INSERT).bind(json(&rows)?).fetch_all(connection).await?;
    let mut ids: HashSet<String> = ids.into_iter().collect();
    let mut placed = Vec::with_capacity(tasks.len());
    for (task, excess) in tasks.iter().zip(excess) {
        placed.push(match excess {
            Some(excess) => Placed::Beyond(excess),
            // Removed when found: of two with one id in this group only the first was stored.
            None if ids.remove(&task.id) => Placed::Stored,
            None => Placed::Taken,
        });
        if placed.last() == Some(&Placed::Stored) {
            changes.clock |= task.is_scheduled() || task.expires.is_some();
            changes.relay |= !task.is_scheduled();
            changes.outstanding += i64::from(!task.is_scheduled());
        }
    }
    Ok(placed)
}

fn row(task: &NewTask) -> Row<'_> {
    let stage = if task.is_scheduled() { Stage::Scheduled } else { Stage::Waiting };
    Row(
        &task.id,
        &task.task,
        &task.queue,
        task.priority,
        &task.args,
        &task.kwargs,
        &task.retry,
        task.time_limit,
        task.soft_time_limit,
        task.created_at,
        task.eta,
        task.expires,
        stage.name(),
        task.due_at(),
        task.parent.as_ref().map(|parent| parent.id.as_str()),
        task.parent.as_ref().map(|parent| parent.root_id.as_str()),
        task.owner.as_deref(),
        task.callback.as_ref(),
    )
}
