//! Accepts many tasks in one commit.

use std::collections::HashSet;

use sqlx::SqliteConnection;

use super::column::json;
use super::write::{Changes, Write};
use super::{Excess, NewTask, Placed, Store, StoreError, insert, quota};

/// What becomes of a batch in which an id is taken, or which is beyond a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomicity {
    /// None of its tasks is stored.
    All,
    /// Its other tasks are stored.
    Each,
}

impl Store {
    /// Stores the tasks in one commit; says of each what became of it, or would have. No two of them may have one id.
    ///
    /// # Errors
    /// The store failed and nothing was written.
    pub async fn insert_batch(&self, tasks: Vec<NewTask>, atomicity: Atomicity) -> Result<Vec<Placed>, StoreError> {
        self.write(|done| Write::Batch(tasks, atomicity, done)).await
    }
}

const TAKEN: &str = "SELECT id FROM tasks WHERE id IN (SELECT value FROM json_each(?))";

/// There is one writer, so what is free when looked at is free when inserted.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    tasks: &[NewTask],
    atomicity: Atomicity,
    changes: &mut Changes,
) -> Result<Vec<Placed>, sqlx::Error> {
    if atomicity == Atomicity::All {
        let ids: Vec<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
        let taken: Vec<String> = sqlx::query_scalar(TAKEN).bind(json(&ids)?).fetch_all(&mut *connection).await?;
        let taken: HashSet<String> = taken.into_iter().collect();
        let would = |(task, excess): (&NewTask, Option<Excess>)| match excess {
            _ if taken.contains(&task.id) => Placed::Taken,
            Some(excess) => Placed::Beyond(excess),
            None => Placed::Stored,
        };
        let excess = quota::excess(connection, tasks).await?;
        let would: Vec<Placed> = tasks.iter().zip(excess).map(would).collect();
        if would.iter().any(|placed| *placed != Placed::Stored) {
            return Ok(would);
        }
    }
    insert::insert(connection, tasks, changes).await
}
