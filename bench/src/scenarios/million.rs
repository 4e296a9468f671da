//! A store of a million rows: what a task costs must not depend on how many there were.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::load;
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::flood;
use crate::driver::Load;
use crate::row::Row;
use crate::stand::Stand;

const ROWS: i64 = 1_000_000;
/// Rows that are run as tasks, and then copied.
const ORIGINALS: usize = 1_000;
const STOP: Duration = Duration::from_mins(1);

/// Fills the store, and runs a flood and a backlog on it.
pub(super) async fn run(
    stand: &mut Stand,
    name: &str,
    load: &Load,
    out: &mut impl FnMut(Row) -> Result<()>,
) -> Result<()> {
    fill(stand).await?;
    out(flood::run(stand, &format!("{name}: flood-256"), load).await?)?;
    for worker in &mut stand.pair().consumers {
        worker.silence();
        worker.terminate(STOP).await?;
    }
    stand.pair().consumers.clear();
    flood::drain(stand, name, load, out).await
}

/// Copies tasks that were run until there are enough, while the producer is away. An id keeps its beginning, so that the new
/// ones follow those that are there, as time-ordered ids do.
async fn fill(stand: &mut Stand) -> Result<()> {
    let payload = "x".repeat(super::PAYLOAD);
    load::submit(stand.address(), ORIGINALS, 32, move |_| json!({"task": "echo", "args": [payload]})).await?;
    stand.await_ended(ORIGINALS).await?;
    let pair = stand.pair();
    pair.producer.terminate(STOP).await?;
    let mut store = SqliteConnectOptions::new().filename(pair.store()).pragma("synchronous", "off").connect().await?;
    let columns: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info('tasks') WHERE name NOT IN ('seq', 'id')")
            .fetch_all(&mut store)
            .await?;
    let columns = columns.join(", ");
    sqlx::query("CREATE TEMP TABLE originals AS SELECT * FROM tasks").execute(&mut store).await?;
    let copy = format!(
        "WITH RECURSIVE copies (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copies WHERE n < ?1)
        INSERT INTO tasks (id, {columns}) SELECT substr(id, 1, 24) || printf('%012x', n), {columns}
        FROM copies JOIN originals ON originals.rowid = 1 + n % ?2"
    );
    let originals = i64::try_from(ORIGINALS)?;
    let copies = ROWS - originals;
    // No text of a stranger's: the columns' own names.
    let done = sqlx::query(AssertSqlSafe(copy)).bind(copies).bind(originals).execute(&mut store).await?;
    ensure!(done.rows_affected() == u64::try_from(copies)?, "only {} rows were copied", done.rows_affected());
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut store).await?;
    store.close().await?;
    stand.pair().restart_producer().await
}
