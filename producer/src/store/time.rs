//! What happens by the clock: tasks become due, expire, and are forgotten. One clock, the store's, decides.

use std::time::Duration;

use protocol::reply::{ErrorInfo, Reply, Report};
use protocol::state::State;
use sqlx::SqliteConnection;

use super::column::json;
use super::reports::{self, revoked};
use super::write::{Changes, Write};
use super::{Recorded, Store, StoreError, UnixMs};

/// Rows that one statement touches, so that no commit is long; what is left over follows at once.
const CHUNK: i64 = 5_000;
/// The type of the error of a task that stock Celery workers never reported.
const FOREIGN_TIMEOUT: &str = "ForeignTimeout";
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// For how long stock Celery workers may say nothing of a task.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    /// After it was handed to them, or their last report, and its time limit.
    pub longest: Duration,
    /// The time.
    pub now: UnixMs,
}

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

    /// Ends tasks that stock Celery workers have said nothing of for too long; says how many. More may be left.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn end_silent(&self, silence: Silence) -> Result<u64, StoreError> {
        self.write(|done| Write::Silent(silence, done)).await
    }

    /// Lets the silence count, from now on, of tasks that were handed to these queues of stock Celery workers before it
    /// was noted when: by an earlier version, or before the queue was one of theirs.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn hear_from_now(&self, queues: Vec<String>, now: UnixMs) -> Result<(), StoreError> {
        if queues.is_empty() {
            return Ok(());
        }
        self.write(|done| Write::Hear(queues, now, done)).await
    }

    /// Writes something that means nothing, to see whether the disk takes it.
    ///
    /// # Errors
    /// It does not, or not within two seconds.
    pub async fn is_writable(&self) -> Result<(), StoreError> {
        let probe = self.write(Write::Probe);
        tokio::time::timeout(PROBE_DEADLINE, probe).await.unwrap_or(Err(StoreError::Slow))
    }

    /// Deletes tasks that ended before `before`; says how many. More may be left.
    ///
    /// # Errors
    /// The store failed and nothing was deleted.
    pub async fn prune(&self, before: UnixMs) -> Result<u64, StoreError> {
        self.write(|done| Write::Prune(before, done)).await
    }
}

/// Expired rows, and which of them were counted as outstanding. The plus keeps the stage from choosing the index: it is
/// the one on `expires`.
pub(super) const EXPIRED: &str = "SELECT seq, id, +stage = 'waiting' OR lost > 0 FROM tasks
    WHERE expires IS NOT NULL AND stage IN ('scheduled', 'waiting') AND expires <= ?1 ORDER BY expires LIMIT ?2";

/// Of one in RETRY the next attempt ends.
const EXPIRE: &str = "UPDATE tasks SET state = ?2, stage = 'done', rank = ?3, error = ?4, finished_at = ?1,
        retries = retries + (state = 'RETRY'), worker = iif(state = 'RETRY', NULL, worker)
    WHERE seq IN (SELECT value FROM json_each(?5))";

/// Makes rows due. Those that the broker lost were due before, and stayed counted.
const WAKE: &str = "UPDATE tasks SET stage = 'waiting'
    WHERE seq IN (SELECT seq FROM tasks WHERE stage = 'scheduled' AND due_at <= ?1 ORDER BY due_at LIMIT ?2)
    RETURNING lost = 0";

pub(super) async fn tick(
    connection: &mut SqliteConnection,
    now: UnixMs,
    changes: &mut Changes,
) -> Result<(), sqlx::Error> {
    expire(connection, now, changes).await?;
    let woken: Vec<i64> = sqlx::query_scalar(WAKE).bind(now).bind(CHUNK).fetch_all(connection).await?;
    changes.outstanding += woken.iter().sum::<i64>();
    changes.due |= !woken.is_empty();
    Ok(())
}

async fn expire(connection: &mut SqliteConnection, now: UnixMs, changes: &mut Changes) -> Result<(), sqlx::Error> {
    let expired: Vec<(i64, String, bool)> =
        sqlx::query_as(EXPIRED).bind(now).bind(CHUNK).fetch_all(&mut *connection).await?;
    if expired.is_empty() {
        return Ok(());
    }
    let (error, seqs) = (revoked("expired".to_owned()), expired.iter().map(|(seq, ..)| *seq).collect::<Vec<_>>());
    let expire = sqlx::query(EXPIRE).bind(now).bind(State::Revoked.name()).bind(State::Revoked.rank());
    expire.bind(json(&error)?).bind(json(&seqs)?).execute(connection).await?;
    for (_, id, outstanding) in &expired {
        changes.touched(id);
        changes.outstanding -= i64::from(*outstanding);
    }
    Ok(())
}

/// Rows of which nothing was heard since ?1.
pub(super) const SILENT: &str = "SELECT id, iif(revoked_at IS NULL, NULL, revoke_reason) FROM tasks
    WHERE heard_at IS NOT NULL AND stage IN ('queued', 'retrying') AND silent_since <= ?1
    ORDER BY silent_since LIMIT ?2";

const HEAR: &str = "UPDATE tasks SET heard_at = ?2 WHERE heard_at IS NULL AND stage IN ('queued', 'retrying')
    AND queue IN (SELECT value FROM json_each(?1))";

pub(super) async fn hear(connection: &mut SqliteConnection, queues: &[String], now: UnixMs) -> Result<(), sqlx::Error> {
    sqlx::query(HEAR).bind(json(&queues)?).bind(now).execute(connection).await.map(drop)
}

/// What was revoked meanwhile ends as it was asked to. A report of ours goes by the same guard as a worker's.
pub(super) async fn end_silent(
    connection: &mut SqliteConnection,
    &Silence { longest, now }: &Silence,
    changes: &mut Changes,
) -> Result<u64, sqlx::Error> {
    let since = now.saturating_sub(i64::try_from(longest.as_millis()).unwrap_or(i64::MAX));
    let silent: Vec<(String, Option<String>)> =
        sqlx::query_as(SILENT).bind(since).bind(CHUNK).fetch_all(&mut *connection).await?;
    let message = format!("no Celery worker has reported the task within {longest:?}; it may have run");
    let end = |revoked: Option<String>| match revoked {
        Some(reason) => Report::Revoked { reason },
        None => Report::Failure(ErrorInfo::new(FOREIGN_TIMEOUT, message.clone())),
    };
    let ended: Vec<Recorded> =
        silent.into_iter().map(|(id, revoked)| Recorded::now(Reply::of(id, end(revoked)), now)).collect();
    reports::record(connection, &ended, changes).await
}

/// What is to be posted is kept until it was, or was given up.
const PRUNE: &str = "DELETE FROM tasks WHERE seq IN (SELECT seq FROM tasks WHERE finished_at < ?1
    AND (callback IS NULL OR id NOT IN (SELECT task_id FROM callbacks)) ORDER BY finished_at LIMIT ?2)";

pub(super) async fn prune(connection: &mut SqliteConnection, before: UnixMs) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(PRUNE).bind(before).bind(CHUNK).execute(connection).await?.rows_affected())
}

pub(super) async fn probe(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    // An update that changes nothing writes nothing, and a disk that takes no write would not be noticed; this writes.
    sqlx::query("PRAGMA user_version = 1").execute(connection).await.map(drop)
}
