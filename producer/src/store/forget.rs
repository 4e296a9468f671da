//! Forgets a task because a client asks for it.

use sqlx::SqliteConnection;

use super::write::Write;
use super::{Store, StoreError, Whose};

/// What became of the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// The task, its attempts and its keys are gone.
    Done,
    /// It has not ended and stays.
    Open,
    /// It was revoked while a message of it may have been at the broker: workers that start are told for as long as it is
    /// kept, else they would run it.
    InDoubt,
    /// There is none with that id.
    Unknown,
}

impl Store {
    /// Deletes a task that has ended, with its attempts and its idempotency keys, which are new again.
    ///
    /// # Errors
    /// The store failed and nothing was deleted.
    pub async fn forget(&self, id: &str, whose: &Whose) -> Result<Forgotten, StoreError> {
        self.write(|done| Write::Forget(id.to_owned(), whose.clone(), done)).await
    }
}

/// A trigger takes the attempts with it.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    id: &str,
    whose: &Whose,
) -> Result<Forgotten, sqlx::Error> {
    let delete = "DELETE FROM tasks WHERE id = ?1 AND (?2 IS NULL OR owner = ?2) AND finished_at IS NOT NULL
        AND revoked_in_doubt = 0";
    let delete = sqlx::query(delete).bind(id).bind(whose.owner());
    if delete.execute(&mut *connection).await?.rows_affected() > 0 {
        let keys = sqlx::query("DELETE FROM idempotency_keys WHERE task_id = ?").bind(id);
        keys.execute(connection).await?;
        return Ok(Forgotten::Done);
    }
    let kept = "SELECT finished_at IS NOT NULL FROM tasks WHERE id = ?1 AND (?2 IS NULL OR owner = ?2)";
    let kept = sqlx::query_scalar(kept).bind(id).bind(whose.owner());
    Ok(match kept.fetch_optional(connection).await? {
        Some(true) => Forgotten::InDoubt,
        Some(false) => Forgotten::Open,
        None => Forgotten::Unknown,
    })
}
