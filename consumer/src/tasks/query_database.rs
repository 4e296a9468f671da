//! `query_database(name, params={})`: one of the queries that the operator allows, read only.
//!
//! It knows when a query is given up, how much it may return, and what its errors mean. What it refuses to write is the
//! database's decision: no SQL is parsed here.

mod parameters;
mod postgres;
mod queries;
mod query;
mod sqlite;
mod values;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;
use tokio::time::timeout;

use self::queries::{Configured, Database};
use self::query::Query;
use crate::config::TaskSettings;
use crate::context::{Cancelled, Context};
use crate::handler::{Handler, TaskError};
use crate::options::TaskOptions;

/// How long a query may take when the task has no time limit.
const LIMIT: Duration = Duration::from_mins(5);
/// Connections to one database, and queries at once.
const CONNECTIONS: u32 = 8;
/// How long a query waits for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of all rows as JSON. A row is in memory before it is counted.
const MAX_BYTES: usize = 4 * 1024 * 1024;

pub(crate) struct QueryDatabase {
    queries: Option<BTreeMap<String, Configured>>,
}

/// Runs one of the read-only queries that the worker's operator allows, and returns its rows.
///
/// A row is an object, one member a column. From Postgres: integers and floats are numbers (`"NaN"`, `"Infinity"`),
/// `numeric` is a string and keeps every digit, `bytea` is base64, a time is RFC 3339 (`timestamp` without an offset),
/// `json` is itself, `uuid`, enums and text are strings. From SQLite: what is stored, a number, a string, null, or a
/// blob in base64; it has neither booleans nor times.
///
/// Fails with `UnknownQuery`; with `InvalidArguments` when a parameter is missing, unknown or of a wrong type; with
/// `TooManyRows` rather than with a part of the rows; with `WriteRefused` and `QueryFailed` when the database refuses
/// the query. Retries with `DatabaseUnavailable`, and with `QueryTimeout` when it takes longer than its time limit.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// The query's name in the worker's `QUERIES_FILE`.
    name: String,
    /// Its parameters by name, all of them. For Postgres a time is a string in RFC 3339, a `numeric` a number or a
    /// string, a `bytea` base64.
    #[serde(default)]
    params: Map<String, Value>,
}

/// One row.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Row(#[schemars(with = "Map<String, Value>")] Box<RawValue>);

impl QueryDatabase {
    pub(crate) fn new(settings: &TaskSettings) -> anyhow::Result<Self> {
        let queries = settings.queries_file.as_deref().map(queries::read).transpose()?;
        Ok(Self { queries })
    }
}

impl Handler for QueryDatabase {
    const NAME: &'static str = "query_database";
    const OPTIONS: TaskOptions = TaskOptions::new().concurrency_limit(CONNECTIONS);
    type Args = Args;
    type Output = Vec<Row>;

    async fn run(&self, Args { name, params }: Args, ctx: Context) -> Result<Vec<Row>, TaskError> {
        let Some(queries) = &self.queries else {
            return Err(TaskError::fail("NotConfigured", "the worker has no queries: QUERIES_FILE is not set"));
        };
        let unknown = || TaskError::fail("UnknownQuery", format!("QUERIES_FILE has no query {name:?}"));
        let Configured { database, query } = queries.get(&name).ok_or_else(unknown)?;
        let params = query.arguments(params)?;
        // A little less than what is left, so that the database gives up before the worker does.
        let limit = ctx.time_left().map_or(LIMIT, |left| left.mul_f64(0.95)).min(LIMIT);
        let run = async {
            match &**database {
                Database::Postgres(database) => database.run(query, &params, limit).await,
                Database::Sqlite(database) => database.run(query, &params, limit).await,
            }
        };
        tokio::select! {
            rows = timeout(limit, run) => rows.unwrap_or_else(|_| Err(timed_out(limit))),
            reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => Err(reason.into()),
        }
    }
}

fn timed_out(limit: Duration) -> TaskError {
    TaskError::retry("QueryTimeout", format!("no end within {limit:.1?}"))
}

/// A query's rows, within their bounds.
struct Rows {
    kept: Vec<Row>,
    bytes: usize,
    max: usize,
}

impl Rows {
    fn new(query: &Query) -> Self {
        Self { kept: Vec::new(), bytes: 0, max: query.max_rows }
    }

    fn push(&mut self, row: &Map<String, Value>) -> Result<(), TaskError> {
        let row = to_raw_value(row)?;
        self.bytes += row.get().len();
        if self.kept.len() == self.max {
            return Err(TaskError::fail("TooManyRows", format!("more than {} rows", self.max)));
        }
        if self.bytes > MAX_BYTES {
            return Err(TaskError::fail("TooManyRows", format!("the rows are more than {MAX_BYTES} bytes of JSON")));
        }
        self.kept.push(Row(row));
        Ok(())
    }
}

/// A row is an object, so no two columns may have the same name.
fn unique<'a>(columns: impl Iterator<Item = &'a str>) -> Result<(), TaskError> {
    let mut seen = std::collections::BTreeSet::new();
    for column in columns {
        if !seen.insert(column) {
            return Err(TaskError::fail("QueryFailed", format!("two columns have the name `{column}`")));
        }
    }
    Ok(())
}

/// What an error of the database means for the task.
fn failure(error: sqlx::Error) -> TaskError {
    let unavailable = |error: &dyn std::fmt::Display| TaskError::retry("DatabaseUnavailable", error.to_string());
    match error {
        sqlx::Error::Database(error) => match meaning(&*error) {
            Meaning::Refused => TaskError::fail("WriteRefused", error.message()),
            Meaning::Failed => TaskError::fail("QueryFailed", error.message()),
            Meaning::TimedOut => TaskError::retry("QueryTimeout", error.message()),
            Meaning::Unavailable => unavailable(&error.message()),
        },
        sqlx::Error::PoolTimedOut => unavailable(&format!("no connection within {CONNECT:?}")),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            unavailable(&error)
        }
        error => TaskError::fail("QueryFailed", error.to_string()),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Refused,
    Failed,
    TimedOut,
    Unavailable,
}

fn meaning(error: &dyn DatabaseError) -> Meaning {
    let code = error.code().unwrap_or_default();
    if error.try_downcast_ref::<PgDatabaseError>().is_some() { of_sqlstate(&code) } else { of_sqlite(&code) }
}

/// Postgres' appendix A, by class and code.
fn of_sqlstate(code: &str) -> Meaning {
    match code {
        "25006" => Meaning::Refused,
        "57014" => Meaning::TimedOut,
        // Connections, logins, serialization and deadlocks, resources, locks, an operator who intervenes.
        _ if ["08", "28", "40", "53", "55", "57"].iter().any(|class| code.starts_with(class)) => Meaning::Unavailable,
        _ => Meaning::Failed,
    }
}

/// SQLite's result codes, whose low byte is the primary one.
fn of_sqlite(code: &str) -> Meaning {
    match code.parse::<u32>().map(|code| code & 0xff) {
        Ok(8) => Meaning::Refused,                   // SQLITE_READONLY
        Ok(9) => Meaning::TimedOut,                  // SQLITE_INTERRUPT
        Ok(5 | 6 | 10 | 14) => Meaning::Unavailable, // SQLITE_BUSY, LOCKED, IOERR, CANTOPEN
        _ => Meaning::Failed,
    }
}
