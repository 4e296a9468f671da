//! Accepts tasks.

use std::collections::HashSet;

use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, SqliteConnection};

use super::bulk::{Bulk, Parameters};
use super::write::{Changes, Write};
use super::{NewTask, Placed, Stage, Store, StoreError, quota};

impl Store {
    /// Stores the task; it is on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Taken`], [`StoreError::Beyond`], or the store failed and nothing was written.
    pub async fn insert(&self, task: NewTask) -> Result<(), StoreError> {
        self.write(|done| Write::Insert(vec![(task, done)])).await
    }
}

/// Of those whose id is taken nothing is written.
static INSERT: Bulk = Bulk::new(
    "INSERT INTO tasks (id, task, queue, priority, args, kwargs, retry, time_limit, soft_time_limit,
        created_at, eta, expires, stage, due_at, parent_id, root_id, owner, callback)
    SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL
    ON CONFLICT (id) DO NOTHING",
);

/// The ids of the latest rows: a row's number is above that of every other.
const LATEST: &str = "SELECT id FROM tasks ORDER BY seq DESC LIMIT ?";

/// JSON stands in the columns as it came.
impl Parameters for &NewTask {
    const COLUMNS: usize = 18;

    fn add_to(&self, parameters: &mut SqliteArguments) -> Result<(), BoxDynError> {
        parameters.add(&self.id)?;
        parameters.add(&self.task)?;
        parameters.add(&self.queue)?;
        parameters.add(self.priority)?;
        parameters.add(self.args.get())?;
        parameters.add(self.kwargs.get())?;
        parameters.add(serde_json::to_string(&self.retry)?)?;
        parameters.add(self.time_limit)?;
        parameters.add(self.soft_time_limit)?;
        parameters.add(self.created_at)?;
        parameters.add(self.eta)?;
        parameters.add(self.expires)?;
        parameters.add(if self.is_scheduled() { Stage::Scheduled } else { Stage::Waiting }.name())?;
        parameters.add(self.due_at())?;
        parameters.add(self.parent.as_ref().map(|parent| parent.id.as_str()))?;
        parameters.add(self.parent.as_ref().map(|parent| parent.root_id.as_str()))?;
        parameters.add(self.owner.as_deref())?;
        parameters.add(self.callback.as_ref().map(serde_json::to_string).transpose()?)
    }
}

/// Inserts all that are within the limits of their keys, and says of each what became of it.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    tasks: &[NewTask],
    changes: &mut Changes,
) -> Result<Vec<Placed>, sqlx::Error> {
    let excess = quota::excess(connection, tasks).await?;
    let admitted: Vec<&NewTask> =
        tasks.iter().zip(&excess).filter_map(|(task, excess)| excess.is_none().then_some(task)).collect();
    let mut outcome = store(connection, &admitted).await?;
    let mut placed = Vec::with_capacity(tasks.len());
    for (task, excess) in tasks.iter().zip(excess) {
        placed.push(match excess {
            Some(excess) => Placed::Beyond(excess),
            None if outcome.is_taken(&task.id) => Placed::Taken,
            None => Placed::Stored,
        });
        if placed.last() == Some(&Placed::Stored) {
            changes.clock |= task.is_scheduled() || task.expires.is_some();
            changes.due |= !task.is_scheduled();
            changes.outstanding += i64::from(!task.is_scheduled());
        }
    }
    Ok(placed)
}

/// What became of the tasks of one insert.
enum Outcome {
    /// All are rows.
    All,
    /// These are.
    Only(HashSet<String>),
}

impl Outcome {
    /// Asked of each task once: of two with one id only the first was stored.
    fn is_taken(&mut self, id: &str) -> bool {
        match self {
            Self::All => false,
            Self::Only(stored) => !stored.remove(id),
        }
    }
}

async fn store(connection: &mut SqliteConnection, tasks: &[&NewTask]) -> Result<Outcome, sqlx::Error> {
    let done = INSERT.execute(connection, tasks).await?;
    if done.rows_affected() == tasks.len() as u64 {
        return Ok(Outcome::All);
    }
    let stored: Vec<String> =
        sqlx::query_scalar(LATEST).bind(i64::try_from(done.rows_affected()).ok()).fetch_all(connection).await?;
    Ok(Outcome::Only(stored.into_iter().collect()))
}
