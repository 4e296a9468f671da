//! Queries of a Postgres database, each in a read-only transaction of its own.

use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::postgres::{PgArguments, PgColumn, PgConnectOptions, PgPoolOptions, PgRow, PgTypeInfo};
use sqlx::{
    Arguments, AssertSqlSafe, Column, Connection, Either, Executor, PgPool, PgTransaction, Row as _, SqlSafeStr,
    Statement, TypeInfo, ValueRef,
};

use super::parameters::Parameter;
use super::query::Query;
use super::values::Kind;
use super::{CONNECT, CONNECTIONS, Row, Rows, failure, unique};
use crate::handler::TaskError;

pub(super) struct Postgres {
    options: PgConnectOptions,
    pool: OnceLock<PgPool>,
}

impl Postgres {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        // What it says of a part of the URL may quote it.
        let options = PgConnectOptions::from_str(url).map_err(|_| anyhow!("not a URL of a Postgres database"))?;
        Ok(Self { options: options.application_name("errand"), pool: OnceLock::new() })
    }

    fn pool(&self) -> &PgPool {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT);
        self.pool.get_or_init(|| options.connect_lazy_with(self.options.clone()))
    }

    pub(super) async fn run(&self, query: &Query, params: &[Value], limit: Duration) -> Result<Vec<Row>, TaskError> {
        let mut transaction = self.pool().begin_with("BEGIN READ ONLY").await.map_err(failure)?;
        settle(&mut transaction, limit).await.map_err(failure)?;
        // Prepared, so the server takes one statement only, and says what it takes and returns.
        let sql = AssertSqlSafe(query.sql.clone()).into_sql_str();
        let statement = transaction.prepare(sql).await.map_err(failure)?;
        let arguments = match statement.parameters() {
            Some(Either::Left(types)) => arguments(query, params, types)?,
            _ => PgArguments::default(),
        };
        let kinds = kinds(statement.columns())?;
        let mut rows = Rows::new(query);
        let mut stream = statement.query_with(arguments).fetch(&mut *transaction);
        while let Some(row) = stream.try_next().await.map_err(failure)? {
            rows.push(&object(&row, &kinds)?)?;
        }
        drop(stream);
        transaction.rollback().await.map_err(failure)?;
        Ok(rows.kept)
    }
}

/// Sets the time limit, and by that takes the transaction's snapshot: afterwards Postgres lets nobody, and no function
/// that the query calls, make it read-write.
async fn settle(transaction: &mut PgTransaction<'_>, limit: Duration) -> sqlx::Result<()> {
    // A plan kept from the last run would fail after a change of the tables: "cached plan must not change result type".
    transaction.clear_cached_statements().await?;
    let timeout = limit.as_millis().max(1).to_string();
    let set = sqlx::query("SELECT set_config('statement_timeout', $1, true)").bind(timeout).persistent(false);
    set.execute(&mut **transaction).await.map(drop)
}

fn arguments(query: &Query, params: &[Value], types: &[PgTypeInfo]) -> Result<PgArguments, TaskError> {
    query.expects(types.len())?;
    let mut arguments = PgArguments::default();
    for ((name, value), info) in query.params.iter().zip(params).zip(types) {
        let kind = Kind::of(info).ok_or_else(|| {
            let name = info.name().to_lowercase();
            let message = format!("a parameter of type {name} cannot be given: in the SQL, write `$1::text::{name}`");
            TaskError::fail("QueryFailed", message)
        })?;
        let parameter = Parameter::new(info, kind, value).and_then(|it| arguments.add(it).map_err(|e| e.to_string()));
        parameter
            .map_err(|why| TaskError::fail("InvalidArguments", format!("argument `params`: `{name}` is {why}")))?;
    }
    Ok(arguments)
}

/// How each column is read. Found out before the first row, so that a query without rows fails as one with rows.
fn kinds(columns: &[PgColumn]) -> Result<Vec<Kind>, TaskError> {
    unique(columns.iter().map(Column::name))?;
    let kind = |column: &PgColumn| {
        Kind::of(column.type_info()).ok_or_else(|| {
            let (name, info) = (column.name(), column.type_info().name().to_lowercase());
            let message = format!("column `{name}` is of type {info}: in the SQL, cast it to text or use to_json");
            TaskError::fail("QueryFailed", message)
        })
    };
    columns.iter().map(kind).collect()
}

fn object(row: &PgRow, kinds: &[Kind]) -> Result<Map<String, Value>, TaskError> {
    let mut object = Map::new();
    for (column, kind) in row.columns().iter().zip(kinds) {
        let raw = row.try_get_raw(column.ordinal()).map_err(failure)?;
        let value = if raw.is_null() { Some(Value::Null) } else { raw.as_bytes().ok().and_then(|it| kind.json(it)) };
        let name = column.name().to_owned();
        let unreadable =
            || TaskError::fail("QueryFailed", format!("column `{name}` holds a value beyond what JSON can tell"));
        let value = value.ok_or_else(unreadable)?;
        object.insert(name, value);
    }
    Ok(object)
}
