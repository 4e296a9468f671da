//! The producer's store seen from outside: what is on disk, whatever the API says.

use std::path::Path;

use anyhow::Result;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

/// How many tasks are stored.
pub(crate) async fn count(store: &Path) -> Result<i64> {
    count_of(store, "true").await
}

/// Of how many a condition in SQL holds.
pub(crate) async fn count_of(store: &Path, condition: &'static str) -> Result<i64> {
    let mut connection = SqliteConnectOptions::new().filename(store).read_only(true).connect().await?;
    let select = AssertSqlSafe(format!("SELECT count(*) FROM tasks WHERE {condition}"));
    let count = sqlx::query_scalar(select).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(count)
}
