//! The producer's store seen from outside: what is on disk, whatever the API says.

use std::path::Path;

use anyhow::Result;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

/// How many tasks are stored.
pub(crate) async fn count(store: &Path) -> Result<i64> {
    let mut connection = SqliteConnectOptions::new().filename(store).read_only(true).connect().await?;
    let count = sqlx::query_scalar("SELECT count(*) FROM tasks").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(count)
}
