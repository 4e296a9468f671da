//! What the reconciler reads and puts back: tasks at the broker that nothing was heard of for a while.

use std::time::Duration;

use protocol::reply::{Reply, Report};
use sqlx::SqliteConnection;

use super::column::json;
use super::write::{Changes, Write};
use super::{Recorded, Store, StoreError, UnixMs, attempts, reports};

/// How much later than it was told a wait at the broker may end.
const MARGIN_MS: i64 = 5_000;

/// A task at the broker, by when it was last known to be somewhere.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Unheard {
    /// Until then.
    pub alive_at: UnixMs,
    /// Its row.
    pub seq: i64,
    /// Its id.
    pub id: String,
}

/// A note that a task waits at the broker.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Held {
    id: String,
    until: UnixMs,
}

/// Rows that are presumed lost.
pub(super) struct Missing {
    seqs: Vec<i64>,
    /// Those of which anything was heard since are not.
    before: UnixMs,
    now: UnixMs,
}

impl Held {
    /// A task that was sent away for `wait`, as heard at `at`.
    #[must_use]
    pub fn new(id: String, wait: Duration, at: UnixMs) -> Self {
        Self { id, until: end_of(wait, at) }
    }
}

/// When a wait is surely over that was told at `at`, by the store's clock.
pub(super) fn end_of(wait: Duration, at: UnixMs) -> UnixMs {
    at.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)).saturating_add(MARGIN_MS)
}

impl Store {
    /// Whether any task of a queue is at the broker.
    ///
    /// # Errors
    /// The database failed.
    pub async fn has_at_broker(&self, queue: &str) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar(ANY).bind(queue).fetch_one(&self.readers).await?)
    }

    /// Tasks of a queue at the broker of which nothing was heard since `before`, the oldest first, from after another one
    /// on, at most `limit`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn unheard(
        &self,
        queue: &str,
        before: UnixMs,
        after: Option<&Unheard>,
        limit: u32,
    ) -> Result<Vec<Unheard>, StoreError> {
        let (alive_at, seq) = after.map_or((UnixMs::MIN, 0), |row| (row.alive_at, row.seq));
        let rows = sqlx::query_as(UNHEARD).bind(queue).bind(before).bind(alive_at).bind(seq).bind(limit);
        Ok(rows.fetch_all(&self.readers).await?)
    }

    /// Keeps until when tasks wait at the broker. Nothing else of them changes.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn hold(&self, held: Vec<Held>) -> Result<(), StoreError> {
        self.write(|done| Write::Held(held, done)).await
    }

    /// The clock was set by so many ms: until when tasks are known to be somewhere is meant by the clock of before.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn shift_alive(&self, step: UnixMs) -> Result<(), StoreError> {
        self.write(|done| Write::Shift(step, done)).await
    }

    /// Gives tasks that the broker is presumed to have lost back to the relay, with the same id and attempt, unless they
    /// were heard of since `before`; those that were revoked end. Says how many.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn presume_lost(&self, seqs: Vec<i64>, before: UnixMs, now: UnixMs) -> Result<u64, StoreError> {
        let missing = Missing { seqs, before, now };
        self.write(|done| Write::Missing(missing, done)).await
    }
}

pub(super) const ANY: &str = "SELECT EXISTS (SELECT 1 FROM tasks WHERE stage IN ('queued', 'retrying') AND queue = ?)";

pub(super) const UNHEARD: &str = "SELECT alive_at, seq, id FROM tasks
    WHERE stage IN ('queued', 'retrying') AND queue = ?1 AND alive_at < ?2 AND (alive_at, seq) > (?3, ?4)
    ORDER BY alive_at, seq LIMIT ?5";

/// The note may overtake the mark of the publish that it is of.
const HOLD: &str = "UPDATE tasks SET alive_at = max(tasks.alive_at, h.until)
    FROM (SELECT value ->> 'id' AS id, max(value ->> 'until') AS until FROM json_each(?) GROUP BY 1) AS h
    WHERE tasks.id = h.id AND tasks.finished_at IS NULL";

pub(super) async fn hold(connection: &mut SqliteConnection, held: &[Held]) -> Result<(), sqlx::Error> {
    sqlx::query(HOLD).bind(json(&held)?).execute(connection).await.map(drop)
}

const SHIFT: &str = "UPDATE tasks SET alive_at = alive_at + ? WHERE stage IN ('queued', 'retrying')";

pub(super) async fn shift(connection: &mut SqliteConnection, step: UnixMs) -> Result<(), sqlx::Error> {
    sqlx::query(SHIFT).bind(step).execute(connection).await.map(drop)
}

const PRESUME_LOST: &str = "UPDATE tasks SET stage = 'waiting', due_at = ?3
    WHERE seq IN (SELECT value FROM json_each(?1)) AND stage IN ('queued', 'retrying') AND alive_at < ?2
    RETURNING id, iif(revoked_at IS NULL, NULL, revoke_reason)";

/// A row that was put back stays counted as outstanding.
pub(super) async fn presume_lost(
    connection: &mut SqliteConnection,
    Missing { seqs, before, now }: &Missing,
    changes: &mut Changes,
) -> Result<u64, sqlx::Error> {
    let lost = sqlx::query_as(PRESUME_LOST).bind(json(seqs)?).bind(before).bind(now);
    let lost: Vec<(String, Option<String>)> = lost.fetch_all(&mut *connection).await?;
    for (id, _) in &lost {
        attempts::lost(connection, id, *now).await?;
    }
    changes.due |= !lost.is_empty();
    changes.room |= !lost.is_empty();
    changes.clock |= !lost.is_empty();
    let count = lost.len() as u64;
    let revoked = |(id, reason): (String, Option<String>)| {
        Some(Recorded::now(Reply::of(id, Report::Revoked { reason: reason? }), *now))
    };
    let revoked: Vec<Recorded> = lost.into_iter().filter_map(revoked).collect();
    reports::record(connection, &revoked, changes).await?;
    Ok(count)
}
