//! Accepts many tasks in one commit.

use std::collections::HashSet;

use sqlx::SqliteConnection;

use super::column::json;
use super::write::{Changes, Write};
use super::{NewTask, Store, StoreError, insert};

/// What becomes of a batch in which an id is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomicity {
    /// None of its tasks is stored.
    All,
    /// Its other tasks are stored.
    Each,
}

impl Store {
    /// Stores the tasks in one commit; says of each whether its id was free. No two of them may have the same.
    ///
    /// # Errors
    /// The store failed and nothing was written.
    pub async fn insert_batch(&self, tasks: Vec<NewTask>, atomicity: Atomicity) -> Result<Vec<bool>, StoreError> {
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
) -> Result<Vec<bool>, sqlx::Error> {
    if atomicity == Atomicity::All {
        let ids: Vec<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
        let taken: Vec<String> = sqlx::query_scalar(TAKEN).bind(json(&ids)?).fetch_all(&mut *connection).await?;
        if !taken.is_empty() {
            let taken: HashSet<String> = taken.into_iter().collect();
            return Ok(tasks.iter().map(|task| !taken.contains(&task.id)).collect());
        }
    }
    insert::insert(connection, tasks, changes).await
}
