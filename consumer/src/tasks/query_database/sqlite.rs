//! Queries of a SQLite file, which is opened read only.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqlitePoolOptions, SqliteRow, SqliteValueRef};
use sqlx::{
    Arguments, AssertSqlSafe, Column, Decode, Either, Executor, Row as _, SqlSafeStr, SqlitePool, Statement, TypeInfo,
    ValueRef,
};

use super::query::Query;
use super::{CONNECT, CONNECTIONS, Row, Rows, failure, unique};
use crate::handler::TaskError;

/// Instructions of SQLite's virtual machine between two looks at the clock: well below a millisecond.
const LOOK: i32 = 10_000;

pub(super) struct Sqlite {
    options: SqliteConnectOptions,
    pool: OnceLock<SqlitePool>,
}

impl Sqlite {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::from_str(url).map_err(|_| anyhow!("not a URL of a SQLite file"))?;
        // Either alone would do; the pragma could be undone by a query, the mode cannot.
        let options = options.read_only(true).create_if_missing(false).pragma("query_only", "on");
        Ok(Self { options, pool: OnceLock::new() })
    }

    fn pool(&self) -> &SqlitePool {
        let options = SqlitePoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT);
        self.pool.get_or_init(|| options.connect_lazy_with(self.options.clone()))
    }

    pub(super) async fn run(&self, query: &Query, params: &[Value], limit: Duration) -> Result<Vec<Row>, TaskError> {
        let deadline = Instant::now() + limit;
        let mut connection = self.pool().acquire().await.map_err(failure)?;
        // SQLite works on a thread of the connection's own, which a dropped future does not stop.
        let given_up = GivenUp::default();
        let flag = given_up.0.clone();
        let go_on = move || !flag.load(Ordering::Relaxed) && Instant::now() < deadline;
        connection.lock_handle().await.map_err(failure)?.set_progress_handler(LOOK, go_on);
        let sql = AssertSqlSafe(query.sql.clone()).into_sql_str();
        let statement = connection.prepare(sql).await.map_err(failure)?;
        query.expects(match statement.parameters() {
            Some(Either::Right(count)) => count,
            _ => 0,
        })?;
        unique(statement.columns().iter().map(Column::name))?;
        let mut rows = Rows::new(query);
        let arguments = arguments(query, params)?;
        let mut stream = statement.query_with(arguments).fetch(&mut *connection);
        while let Some(row) = stream.try_next().await.map_err(failure)? {
            rows.push(&object(&row)?)?;
        }
        Ok(rows.kept)
    }
}

/// Ends the query when it is dropped.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn arguments(query: &Query, params: &[Value]) -> Result<SqliteArguments, TaskError> {
    let mut arguments = SqliteArguments::default();
    for (name, value) in query.params.iter().zip(params) {
        let added = match value {
            Value::Null => arguments.add(None::<i64>),
            Value::Bool(bool) => arguments.add(*bool),
            Value::String(text) => arguments.add(text.clone()),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => arguments.add(integer),
                (None, Some(float)) if !number.is_u64() => arguments.add(float),
                _ => Err("above SQLite's integers, which have 64 bits with a sign".into()),
            },
            Value::Array(_) | Value::Object(_) => Err("neither null nor a boolean, a number or a string".into()),
        };
        added.map_err(|error| TaskError::fail("InvalidArguments", format!("argument `params`: `{name}`: {error}")))?;
    }
    Ok(arguments)
}

fn object(row: &SqliteRow) -> Result<Map<String, Value>, TaskError> {
    let columns = row.columns().iter();
    columns
        .map(|column| {
            let name = column.name().to_owned();
            let value = row.try_get_raw(column.ordinal()).map_err(failure)?;
            let value =
                json(value).map_err(|error| TaskError::fail("QueryFailed", format!("column `{name}`: {error}")))?;
            Ok((name, value))
        })
        .collect()
}

/// By what is stored, not by what the column was declared as: SQLite lets the two differ.
fn json(value: SqliteValueRef<'_>) -> Result<Value, sqlx::error::BoxDynError> {
    if value.is_null() {
        return Ok(Value::Null);
    }
    let stored = value.type_info().name().to_owned();
    Ok(match stored.as_str() {
        "INTEGER" | "BOOLEAN" => <i64 as Decode<'_, sqlx::Sqlite>>::decode(value)?.into(),
        "REAL" => super::values::float(<f64 as Decode<'_, sqlx::Sqlite>>::decode(value)?),
        "BLOB" => BASE64_STANDARD.encode(<&[u8] as Decode<'_, sqlx::Sqlite>>::decode(value)?).into(),
        _ => <&str as Decode<'_, sqlx::Sqlite>>::decode(value)?.into(),
    })
}
