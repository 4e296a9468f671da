//! Owns the bare store: a table with one index, in a database as durable as the pair's.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::guard;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection};

use super::Scale;
use super::sample::Sample;
use crate::figures::Figures;
use crate::latencies::Latencies;
use crate::meter::Meter;

/// Rows in a commit.
const GROUP: u64 = 256;

const TABLE: &str =
    "CREATE TABLE tasks (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, call TEXT NOT NULL, result TEXT) STRICT";
const APPEND: &str = "INSERT INTO tasks (id, call) VALUES (?, ?)";
const INSERT: &str = "INSERT INTO tasks (id, call) SELECT value ->> 0, value ->> 1 FROM json_each(?)";
const UPSERT: &str = "INSERT INTO tasks (id, call, result) SELECT value ->> 0, '', value ->> 1 FROM json_each(?)
    WHERE true ON CONFLICT (id) DO UPDATE SET result = excluded.result";

/// The table.
pub(super) struct Rows {
    connection: SqliteConnection,
    rows: u64,
}

impl Rows {
    /// An empty one, in a database with the producer's settings.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("wal_autocheckpoint", "4000")
            .disable_statement_logging();
        let mut connection = options.connect().await?;
        sqlx::query(TABLE).execute(&mut connection).await?;
        Ok(Self { connection, rows: 0 })
    }

    /// Commits one row.
    pub(super) async fn append(&mut self, call: &str) -> Result<(), sqlx::Error> {
        self.rows += 1;
        sqlx::query(APPEND).bind(id(self.rows)).bind(call).execute(&mut self.connection).await.map(drop)
    }

    /// Commits the results of one group and the rows of the next together, as a store does under load.
    async fn turn(&mut self, results: Option<String>, rows: Option<String>) -> Result<()> {
        let connection = &mut self.connection;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        for (statement, group) in [(UPSERT, results), (INSERT, rows)] {
            if let Some(group) = group {
                sqlx::query(statement).bind(group).execute(&mut *connection).await?;
            }
        }
        sqlx::query("COMMIT").execute(connection).await?;
        Ok(())
    }

    /// How many have a result.
    async fn ended(&mut self) -> Result<i64> {
        let count = "SELECT count(*) FROM tasks WHERE result IS NOT NULL";
        Ok(sqlx::query_scalar(count).fetch_one(&mut self.connection).await?)
    }
}

/// In the order of time, as the pair's are, and as long.
fn id(number: u64) -> String {
    format!("{number:036}")
}

fn group(numbers: std::ops::Range<u64>, text: &str) -> Result<String> {
    let rows: Vec<(String, &str)> = numbers.map(|number| (id(number), text)).collect();
    Ok(serde_json::to_string(&rows)?)
}

pub(super) async fn measure(sample: &Sample, scale: Scale) -> Result<Vec<Figures>> {
    let text = "x".repeat(sample.payload);
    Ok(vec![groups(&text, scale.many).await?, commits(&text, scale.single).await?])
}

async fn groups(text: &str, tasks: u64) -> Result<Figures> {
    let dir = guard::scratch_dir("floor-")?;
    let mut rows = Rows::open(&dir.path().join("rows.db")).await?;
    let (start, processes) = (Instant::now(), this_process());
    let before = Meter::read(&processes)?;
    let mut last = 0..0;
    while last.end < tasks || !last.is_empty() {
        let next = last.end..(last.end + GROUP).min(tasks);
        let results = (!last.is_empty()).then(|| group(last.clone(), text)).transpose()?;
        let inserts = (!next.is_empty()).then(|| group(next.clone(), text)).transpose()?;
        rows.turn(results, inserts).await?;
        last = next;
    }
    let (seconds, ended) = (start.elapsed().as_secs_f64(), rows.ended().await?);
    ensure!(u64::try_from(ended)? == tasks, "{ended} of {tasks} rows have a result");
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let cpu = before.used(&processes, tasks as f64)?;
    let name = format!("bare rows with their results, {GROUP} a commit");
    Ok(Figures { name, tasks, seconds, cpu, latency: None })
}

async fn commits(text: &str, tasks: u64) -> Result<Figures> {
    let dir = guard::scratch_dir("floor-")?;
    let mut rows = Rows::open(&dir.path().join("rows.db")).await?;
    let (start, processes, mut latencies) = (Instant::now(), this_process(), Latencies::default());
    let before = Meter::read(&processes)?;
    for _ in 0..tasks {
        let start = Instant::now();
        rows.append(text).await?;
        latencies.add(start.elapsed());
    }
    let (seconds, name) = (start.elapsed().as_secs_f64(), "bare rows, one a commit".to_owned());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let cpu = before.used(&processes, tasks as f64)?;
    Ok(Figures { name, tasks, seconds, cpu, latency: latencies.percentiles() })
}

fn this_process() -> crate::meter::Processes {
    vec![("store".to_owned(), vec![std::process::id()])]
}
