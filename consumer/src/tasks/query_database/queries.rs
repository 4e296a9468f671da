//! The queries that an operator allows: the file, its checks, and the pools that queries share.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::postgres::Postgres;
use super::query::Query;
use super::sqlite::Sqlite;
use crate::tasks::named;

const MAX_ROWS: usize = 100_000;

/// An entry of `QUERIES_FILE`:
/// `{"orders": {"database": "postgres://…", "sql": "select id from orders where buyer = $1", "params": ["buyer"]}}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// `postgres://user:password@host/database?sslmode=verify-full`, or `sqlite:/path/to/file.db`. Give it a user who
    /// may only read: a read-only transaction still lets a function do what is no write to the database.
    database: String,
    /// One statement, with `$1`, `$2`, … for the parameters.
    sql: String,
    /// The parameters' names, `$1` first.
    #[serde(default)]
    params: Vec<String>,
    /// More rows than this are an error; at most 100 000.
    #[serde(default = "max_rows")]
    max_rows: usize,
}

fn max_rows() -> usize {
    1000
}

/// A query and where it runs.
pub(super) struct Configured {
    pub(super) database: Arc<Database>,
    pub(super) query: Query,
}

/// Where queries run. Those of the same URL share one.
pub(super) enum Database {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

/// Reads the file and connects to nothing.
pub(super) fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Configured>> {
    let entries = named::read::<Entry>("QUERIES_FILE", "query", path)?;
    let mut databases = HashMap::new();
    let check = |(name, entry): (String, Entry)| {
        let configured = entry.check(&mut databases).with_context(|| format!("QUERIES_FILE: query `{name}`"))?;
        Ok((name, configured))
    };
    entries.into_iter().map(check).collect()
}

impl Entry {
    fn check(self, databases: &mut HashMap<String, Arc<Database>>) -> anyhow::Result<Configured> {
        let Self { database: url, sql, params, max_rows } = self;
        ensure!(!sql.trim().is_empty(), "`sql` is empty");
        ensure!((1..=MAX_ROWS).contains(&max_rows), "`max_rows` is not 1 to {MAX_ROWS}");
        for (place, param) in params.iter().enumerate() {
            ensure!(
                !param.is_empty() && !params[..place].contains(param),
                "`params`: `{param}` is empty or there twice"
            );
        }
        let database = match databases.get(&url) {
            Some(known) => known.clone(),
            None => Arc::new(database(&url)?),
        };
        databases.insert(url, database.clone());
        Ok(Configured { database, query: Query { sql: sql.into(), params, max_rows } })
    }
}

/// No part of the URL is in an error.
fn database(url: &str) -> anyhow::Result<Database> {
    let Some((scheme, _)) = url.split_once(':') else { bail!("`database` is no URL") };
    Ok(match scheme {
        "postgres" | "postgresql" => Database::Postgres(Postgres::new(url).context("`database`")?),
        "sqlite" => Database::Sqlite(Sqlite::new(url).context("`database`")?),
        _ => bail!("`database` is neither a postgres: nor a sqlite: URL"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn configured(queries: &Value) -> Result<BTreeMap<String, Configured>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), queries.to_string()).unwrap();
        read(file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn queries_of_one_url_share_a_database() {
        let [a, b] = ["postgres://u:p@h/a", "sqlite:/b.db"].map(|url| json!({"database": url, "sql": "select 1"}));
        let queries = configured(&json!({"1": a, "2": b, "3": a})).unwrap();
        assert!(Arc::ptr_eq(&queries["1"].database, &queries["3"].database));
        assert!(matches!(*queries["2"].database, Database::Sqlite(_)));
        assert_eq!(queries["1"].query.max_rows, 1000);
    }

    #[test]
    fn a_query_that_cannot_be_used_is_named_and_its_password_is_not_shown() {
        let good = json!({"database": "postgres://u:s3cret@h/d", "sql": "select 1", "params": ["a"]});
        for (field, value) in [
            ("sql", json!(" ")),
            ("max_rows", json!(0)),
            ("max_rows", json!(100_001)),
            ("params", json!(["a", "a"])),
            ("database", json!("mysql://u:s3cret@h/d")),
            ("database", json!("s3cret")),
            ("database", json!("postgres://u:s3cret@h:port/d")),
            ("database", json!("sqlite:/x.db?mode=s3cret")),
            ("timeout", json!(1)),
        ] {
            let mut query = good.clone();
            query[field] = value;
            let error = configured(&json!({"orders": query})).err().unwrap();
            assert!(error.starts_with("QUERIES_FILE: query `orders`: "), "{error}");
            assert!(error.contains(field) && !error.contains("s3cret"), "{error}");
        }
    }
}
