//! Statements over many rows at once. Each value is a parameter of its own: of a row of JSON every column that is read
//! parses the whole row again.

use std::sync::OnceLock;

use sqlx::error::BoxDynError;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteQueryResult, SqliteRow};
use sqlx::{Arguments, Sqlite, SqliteConnection};

/// Where the rows stand in a statement.
const ROWS: &str = "{rows}";
/// The most rows that it takes at once; more make it longer and hardly cheaper.
const MOST: usize = 64;
/// It is prepared for 1, 2, 4 … rows.
const SIZES: usize = MOST.ilog2() as usize + 1;

/// A row of parameters.
pub(super) trait Parameters {
    /// How many there are.
    const COLUMNS: usize;

    /// Adds them, in order.
    fn add_to(&self, parameters: &mut SqliteArguments) -> Result<(), BoxDynError>;
}

/// A statement with `VALUES {rows}` in it. It meets rows of NULLs among them, which must change nothing.
pub(super) struct Bulk {
    text: &'static str,
    sized: [OnceLock<String>; SIZES],
}

impl Bulk {
    pub(super) const fn new(text: &'static str) -> Self {
        Self { text, sized: [const { OnceLock::new() }; SIZES] }
    }

    /// Runs it over these rows, in their order. How many it changed does not count what triggers did.
    pub(super) async fn execute<R: Parameters>(
        &'static self,
        connection: &mut SqliteConnection,
        rows: &[R],
    ) -> Result<SqliteQueryResult, sqlx::Error> {
        let mut done = SqliteQueryResult::default();
        for rows in rows.chunks(MOST) {
            done.extend([self.query(rows)?.execute(&mut *connection).await?]);
        }
        Ok(done)
    }

    /// Runs it over these rows, in their order, for what it returns.
    pub(super) async fn fetch<R: Parameters>(
        &'static self,
        connection: &mut SqliteConnection,
        rows: &[R],
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let mut returned = Vec::new();
        for rows in rows.chunks(MOST) {
            returned.extend(self.query(rows)?.fetch_all(&mut *connection).await?);
        }
        Ok(returned)
    }

    fn query<R: Parameters>(&'static self, rows: &[R]) -> Result<Query<'static, Sqlite, SqliteArguments>, sqlx::Error> {
        let size = rows.len().next_power_of_two().ilog2() as usize;
        let text = self.sized[size].get_or_init(|| self.of::<R>(1 << size));
        Ok(sqlx::query_with(text.as_str(), parameters(rows).map_err(sqlx::Error::Encode)?))
    }

    fn of<R: Parameters>(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; R::COLUMNS].join(", "));
        self.text.replace(ROWS, &vec![row; rows].join(", "))
    }
}

/// What is not bound is NULL, so the rows up to the statement's number need nothing here.
fn parameters<R: Parameters>(rows: &[R]) -> Result<SqliteArguments, BoxDynError> {
    let mut parameters = SqliteArguments::default();
    parameters.reserve(rows.len() * R::COLUMNS, 0);
    rows.iter().try_for_each(|row| row.add_to(&mut parameters))?;
    Ok(parameters)
}
