//! What the relay reads and marks. Marking never touches the state.

use std::sync::Arc;

use futures_util::TryStreamExt;
use protocol::state::State;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Row, SqliteConnection};

use super::bulk::{Bulk, Parameters};
use super::column::{from_json, parent, raw};
use super::write::Write;
use super::{DueTask, HandedTo, Published, Store, StoreError};

const DUE: &str =
    "SELECT id, task, priority, args, kwargs, retry, time_limit, soft_time_limit, expires, retries, state,
        publishes, parent_id, root_id, coalesce(replayed_at, created_at) AS since
    FROM tasks WHERE stage = 'waiting' AND queue = ? AND revoked_at IS NULL ORDER BY priority DESC, seq LIMIT ?";

impl Store {
    /// The next waiting tasks of a queue, by priority and then by age, at most `limit` and at most `max_bytes` of
    /// arguments (but always one).
    ///
    /// # Errors
    /// The database failed.
    pub async fn due(&self, queue: &str, limit: u32, max_bytes: usize) -> Result<Vec<DueTask>, StoreError> {
        let mut rows = sqlx::query(DUE).bind(queue).bind(limit).fetch(&self.readers);
        let mut due = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.try_next().await? {
            let task = due_task(&row)?;
            bytes += task.args.get().len() + task.kwargs.get().len();
            due.push(task);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(due)
    }

    /// Unfinished tasks of a queue at the broker, those that wait out a retry not counted.
    ///
    /// # Errors
    /// The database failed.
    pub async fn queued(&self, queue: &str) -> Result<u32, StoreError> {
        let count = "SELECT count(*) FROM tasks WHERE stage = 'queued' AND queue = ?";
        Ok(sqlx::query_scalar(count).bind(queue).fetch_one(&self.readers).await?)
    }

    /// The queues that open tasks are in.
    ///
    /// # Errors
    /// The database failed.
    pub async fn open_queues(&self) -> Result<Vec<String>, StoreError> {
        let queues = "SELECT DISTINCT queue FROM tasks WHERE stage = 'scheduled' UNION
            SELECT DISTINCT queue FROM tasks WHERE stage = 'waiting' UNION
            SELECT DISTINCT queue FROM tasks WHERE stage = 'queued' UNION
            SELECT DISTINCT queue FROM tasks WHERE stage = 'retrying'";
        Ok(sqlx::query_scalar(queues).fetch_all(&self.readers).await?)
    }

    /// Marks tasks as handed over. Those that the broker did not confirm are only counted: they are published again, and a
    /// revocation cannot be sure of them any more.
    ///
    /// # Errors
    /// The store failed; the tasks will be published again.
    pub async fn mark(&self, published: Arc<[Published]>, to: HandedTo) -> Result<(), StoreError> {
        self.write(|done| Write::Published(published, to, done)).await
    }
}

fn due_task(row: &SqliteRow) -> Result<DueTask, sqlx::Error> {
    let retries: u32 = row.try_get("retries")?;
    let retrying = row.try_get::<&str, _>("state")? == State::Retry.name();
    Ok(DueTask {
        id: row.try_get("id")?,
        task: row.try_get("task")?,
        priority: row.try_get("priority")?,
        args: raw(row, "args")?,
        kwargs: raw(row, "kwargs")?,
        retry: from_json(&raw(row, "retry")?)?,
        time_limit: row.try_get("time_limit")?,
        soft_time_limit: row.try_get("soft_time_limit")?,
        expires: row.try_get("expires")?,
        parent: parent(row)?,
        retries: retries.saturating_add(u32::from(retrying)),
        publish: row.try_get::<u32, _>("publishes")? + 1,
        since: row.try_get("since")?,
    })
}

/// A report or a notice that this very publish was lost may have come first. A report has set the stage already; a notice
/// has counted the publish, and the row is left to it.
static MARK: Bulk = Bulk::new(
    "WITH p (id, publish, confirmed, heard_at, alive_at) AS (VALUES {rows})
    UPDATE tasks SET stage = iif(tasks.stage = 'waiting' AND p.confirmed, 'queued', tasks.stage),
        publishes = p.publish, heard_at = coalesce(p.heard_at, tasks.heard_at),
        alive_at = max(tasks.alive_at, p.alive_at)
    FROM p WHERE tasks.id = p.id AND tasks.stage IN ('waiting', 'queued', 'retrying') AND tasks.publishes < p.publish",
);

impl Parameters for (&Published, HandedTo) {
    const COLUMNS: usize = 5;

    fn add_to(&self, parameters: &mut SqliteArguments) -> Result<(), BoxDynError> {
        let (Published(id, publish), to) = self;
        let (confirmed, heard_at, alive_at) = match *to {
            HandedTo::Nobody => (false, None, 0),
            HandedTo::Workers(at) => (true, None, at),
            HandedTo::Celery(at) => (true, Some(at), at),
        };
        parameters.add(id)?;
        parameters.add(publish)?;
        parameters.add(confirmed)?;
        parameters.add(heard_at)?;
        parameters.add(alive_at)
    }
}

pub(super) async fn mark(
    connection: &mut SqliteConnection,
    published: &[Published],
    to: HandedTo,
) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = published.iter().map(|published| (published, to)).collect();
    MARK.execute(connection, &rows).await.map(drop)
}
