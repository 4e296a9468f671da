//! Keeps what workers announced of task types over restarts. How many there are is up to its caller.

use protocol::timestamp::now_ms;
use sqlx::SqliteConnection;

use super::column::json;
use super::write::Write;
use super::{Store, StoreError};

/// A type to keep, or to forget: its name, and the JSON of its `TaskType`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeptType(pub String, pub Option<String>);

impl Store {
    /// The JSON of every type that is kept, the latest announced last.
    ///
    /// # Errors
    /// The database failed.
    pub async fn task_types(&self) -> Result<Vec<String>, StoreError> {
        let all = "SELECT type FROM task_types ORDER BY announced_at";
        Ok(sqlx::query_scalar(all).fetch_all(&self.readers).await?)
    }

    /// Keeps these types and forgets those without a text.
    ///
    /// # Errors
    /// The store failed and nothing was changed.
    pub async fn keep_task_types(&self, types: Vec<KeptType>) -> Result<(), StoreError> {
        self.write(|done| Write::TaskTypes(types, done)).await
    }
}

const KEEP: &str = "INSERT INTO task_types (name, announced_at, type)
    SELECT value ->> 0, ?2, value ->> 1 FROM json_each(?1) WHERE value ->> 1 IS NOT NULL
    ON CONFLICT (name) DO UPDATE SET announced_at = excluded.announced_at, type = excluded.type";
const FORGET: &str = "DELETE FROM task_types
    WHERE name IN (SELECT value ->> 0 FROM json_each(?) WHERE value ->> 1 IS NULL)";

pub(super) async fn keep(connection: &mut SqliteConnection, types: &[KeptType]) -> Result<(), sqlx::Error> {
    let types = json(&types)?;
    sqlx::query(KEEP).bind(&types).bind(now_ms()).execute(&mut *connection).await?;
    sqlx::query(FORGET).bind(&types).execute(connection).await.map(drop)
}
