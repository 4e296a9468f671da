//! What happens by the clock: tasks become due, expire, and are forgotten. One clock, the store's, decides.

use protocol::state::State;
use sqlx::SqliteConnection;

use super::column::json;
use super::reports::revoked;
use super::write::{Changes, Write};
use super::{Store, StoreError, UnixMs};

/// Rows that one statement touches, so that no commit is long; what is left over follows at once.
const CHUNK: i64 = 5_000;

impl Store {
    /// When the next task becomes due or expires.
    ///
    /// # Errors
    /// The database failed.
    pub async fn next_tick(&self) -> Result<Option<UnixMs>, StoreError> {
        let next = "SELECT min(at) FROM (SELECT min(due_at) AS at FROM tasks WHERE stage = 'scheduled'
            UNION ALL SELECT min(expires) FROM tasks WHERE expires IS NOT NULL AND stage IN ('scheduled', 'waiting'))";
        Ok(sqlx::query_scalar(next).fetch_one(&self.readers).await?)
    }

    /// Makes tasks due and ends those that expired before they were handed to the broker.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn tick(&self, now: UnixMs) -> Result<(), StoreError> {
        self.write(|done| Write::Tick(now, done)).await
    }

    /// Whether the store can be written: an empty transaction takes the write lock and changes nothing.
    ///
    /// # Errors
    /// It cannot.
    pub async fn is_writable(&self) -> Result<(), StoreError> {
        self.tick(UnixMs::MIN).await
    }

    /// Deletes tasks that ended before `before`; says how many. More may be left.
    ///
    /// # Errors
    /// The store failed and nothing was deleted.
    pub async fn prune(&self, before: UnixMs) -> Result<u64, StoreError> {
        self.write(|done| Write::Prune(before, done)).await
    }
}

/// One statement a stage, with the stage written out: the partial index serves no parameter.
macro_rules! expire {
    ($stage:literal) => {
        concat!(
            "UPDATE tasks SET state = ?2, stage = 'done', rank = ?3, error = ?4, finished_at = ?1
            WHERE seq IN (SELECT seq FROM tasks WHERE expires IS NOT NULL AND stage = '",
            $stage,
            "' AND expires <= ?1 ORDER BY expires LIMIT ?5)"
        )
    };
}

const WAKE: &str = "UPDATE tasks SET stage = 'waiting'
    WHERE seq IN (SELECT seq FROM tasks WHERE stage = 'scheduled' AND due_at <= ?1 ORDER BY due_at LIMIT ?2)";

pub(super) async fn tick(
    connection: &mut SqliteConnection,
    now: UnixMs,
    changes: &mut Changes,
) -> Result<(), sqlx::Error> {
    expire(connection, expire!("scheduled"), now).await?;
    changes.outstanding -= expire(connection, expire!("waiting"), now).await?;
    let woken = sqlx::query(WAKE).bind(now).bind(CHUNK).execute(connection).await?.rows_affected();
    changes.outstanding += i64::try_from(woken).unwrap_or(i64::MAX);
    changes.relay |= woken > 0;
    Ok(())
}

async fn expire(connection: &mut SqliteConnection, statement: &'static str, now: UnixMs) -> Result<i64, sqlx::Error> {
    let error = json(&revoked("expired".to_owned()))?;
    let expire = sqlx::query(statement).bind(now).bind(State::Revoked.name()).bind(State::Revoked.rank());
    let expired = expire.bind(error).bind(CHUNK).execute(connection).await?;
    Ok(i64::try_from(expired.rows_affected()).unwrap_or(i64::MAX))
}

const PRUNE: &str = "DELETE FROM tasks
    WHERE seq IN (SELECT seq FROM tasks WHERE finished_at < ?1 ORDER BY finished_at LIMIT ?2)";

pub(super) async fn prune(connection: &mut SqliteConnection, before: UnixMs) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(PRUNE).bind(before).bind(CHUNK).execute(connection).await?.rows_affected())
}
