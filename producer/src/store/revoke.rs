//! Revokes tasks: ends those that were never handed to the broker, and marks the rest, which a worker then ends.

use protocol::control::{MAX_IDS, PURGED, REVOKED};
use protocol::state::State;
use sqlx::{Row, SqliteConnection};

use super::column::json;
use super::control::Control;
use super::write::{Changes, Write};
use super::{Store, StoreError, UnixMs, Whose, read};

/// Rows that one statement touches, so that no commit is long.
const CHUNK: i64 = 5_000;

/// What a revocation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revocation {
    /// No such task.
    Unknown,
    /// It had ended before.
    Ended,
    /// It is REVOKED and never starts.
    Never,
    /// It may be at the broker, or run.
    Told,
}

/// What a purge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Tasks that are REVOKED now, or will be.
    pub purged: u64,
    /// Those of them that end when a worker takes their message from the broker.
    pub at_broker: u64,
}

/// Which tasks one statement of a purge takes. In this order none is missed on its way to the broker.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Lost,
    /// With it what a relay holds, in one commit: what it lets go of meanwhile would be missed.
    Waiting,
    Queued,
    Retrying,
}

/// One statement of a purge.
pub(super) struct PurgeChunk {
    queue: String,
    part: Part,
    /// Rows after this one, and up to that one.
    after: i64,
    upto: i64,
    now: UnixMs,
}

/// What it did: how many rows have ended, how many end at the broker, and where to go on.
pub(super) struct Chunk {
    ended: u64,
    marked: u64,
    last: Option<i64>,
}

/// A revocation of one task, or the end of all that were revoked while they waited.
pub(super) struct Revoke {
    /// `None` for all that wait.
    id: Option<String>,
    whose: Whose,
    now: UnixMs,
}

/// A revoked task that workers are to know of.
pub struct RevokedTask {
    /// Where to read on.
    pub seq: i64,
    /// The task's id.
    pub id: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: UnixMs,
}

impl Store {
    /// Revokes a task. Workers are told of it after the commit.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn revoke(&self, id: &str, whose: &Whose, now: UnixMs) -> Result<Revocation, StoreError> {
        let revoke = Revoke { id: Some(id.to_owned()), whose: whose.clone(), now };
        self.write(|done| Write::Revoke(revoke, done)).await
    }

    /// Ends what was revoked while a relay held it and did not get to the broker after all.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn end_revoked(&self, now: UnixMs) -> Result<(), StoreError> {
        let any: bool = sqlx::query_scalar(HELD_BACK_ANY).fetch_one(&self.readers).await?;
        if any {
            let revoke = Revoke { id: None, whose: Whose::Anybody, now };
            self.write(|done| Write::Revoke(revoke, done)).await?;
        }
        Ok(())
    }

    /// Revokes what was accepted so far and waits in a queue: here, at the broker, or for its next attempt. What is not
    /// due yet is in no queue, and what runs is not in it any more. It goes on when its caller has gone.
    ///
    /// # Errors
    /// The store failed; what was purged before stays so.
    pub async fn purge(&self, queue: &str, now: UnixMs) -> Result<Purged, StoreError> {
        let (store, queue) = (self.clone(), queue.to_owned());
        let purge = self.tracker.spawn(async move { store.purge_parts(&queue, now).await });
        purge.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn purge_parts(&self, queue: &str, now: UnixMs) -> Result<Purged, StoreError> {
        let upto: i64 = sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM tasks").fetch_one(&self.readers).await?;
        let mut purged = Purged::default();
        for part in [Part::Lost, Part::Waiting, Part::Queued, Part::Retrying] {
            let mut after = 0;
            loop {
                let chunk = PurgeChunk { queue: queue.to_owned(), part, after, upto, now };
                let Chunk { ended, marked, last } = self.write(|done| Write::Purge(chunk, done)).await?;
                metrics::counter!("errand_purged_total").increment(ended + marked);
                purged.purged += ended + marked;
                purged.at_broker += marked;
                let Some(last) = last else { break };
                after = last;
            }
        }
        Ok(purged)
    }

    /// Revoked tasks that a message may be at the broker of, accepted before `seq`, the newest first, at most as many as a
    /// message to workers names. A worker that is told more than it keeps keeps the last: those that stand first in line.
    ///
    /// # Errors
    /// The database failed.
    pub async fn revoked_before(&self, seq: i64) -> Result<Vec<RevokedTask>, StoreError> {
        let limit = i64::try_from(MAX_IDS).unwrap_or(i64::MAX);
        let rows = sqlx::query(TELL).bind(seq).bind(limit).fetch_all(&self.readers).await?;
        let task = |row: &sqlx::sqlite::SqliteRow| {
            Ok(RevokedTask {
                seq: row.try_get("seq")?,
                id: row.try_get("id")?,
                reason: row.try_get("revoke_reason")?,
                at: row.try_get("revoked_at")?,
            })
        };
        Ok(rows.iter().map(task).collect::<Result<_, sqlx::Error>>()?)
    }
}

const TELL: &str = "SELECT seq, id, revoke_reason, revoked_at FROM tasks
    WHERE revoked_at IS NOT NULL AND (finished_at IS NULL OR revoked_in_doubt = 1) AND seq < ? ORDER BY seq DESC LIMIT ?";

const HELD_BACK_ANY: &str = "SELECT EXISTS (SELECT 1 FROM tasks
    WHERE revoked_at IS NOT NULL AND finished_at IS NULL AND stage IN ('scheduled', 'waiting'))";

const HELD_BACK: &str = "SELECT seq FROM tasks
    WHERE revoked_at IS NOT NULL AND finished_at IS NULL AND stage IN ('scheduled', 'waiting')
        AND id NOT IN (SELECT value FROM json_each(?))";

/// Ends rows that no relay holds. One that was published before, or may have been by the process before this one, is in
/// doubt, and so is one of which the caller says it. Of one in RETRY the next attempt is what ends.
const END: &str = "UPDATE tasks SET state = ?1, rank = ?2, stage = 'done', retry_at = NULL, finished_at = ?3,
        retries = retries + (state = 'RETRY'), worker = iif(state = 'RETRY', NULL, worker),
        error = json_object('type', 'TaskRevokedError', 'message', coalesce(revoke_reason, ?4), 'traceback', NULL),
        revoked_at = coalesce(revoked_at, ?3), revoke_reason = coalesce(revoke_reason, ?4),
        revoked_in_doubt = ?5 OR publishes > 0 OR lost > 0 OR (stage = 'waiting' AND due_at < ?6)
    WHERE seq IN (SELECT value FROM json_each(?7))
    RETURNING id, revoked_at, lost > 0, revoked_in_doubt";

const MARK: &str = "UPDATE tasks SET revoked_at = ?1, revoke_reason = ?2
    WHERE seq IN (SELECT value FROM json_each(?3)) AND revoked_at IS NULL RETURNING id, revoked_at";

impl Part {
    /// The rows: of the queue ?1, after ?2 and up to ?3, at most ?4, not held by a relay ?5.
    const fn rows(self) -> &'static str {
        match self {
            Self::Lost => {
                "SELECT seq FROM tasks WHERE stage = 'scheduled' AND lost > 0 AND queue = ?1 AND seq > ?2 AND seq <= ?3
                    AND id NOT IN (SELECT value FROM json_each(?5)) ORDER BY seq LIMIT ?4"
            }
            Self::Waiting => {
                "SELECT seq FROM tasks WHERE stage = 'waiting' AND queue = ?1 AND ?2 <= ?3 AND seq <= ?3
                    AND id NOT IN (SELECT value FROM json_each(?5)) LIMIT ?4"
            }
            Self::Queued => {
                "SELECT seq FROM tasks WHERE stage = 'queued' AND queue = ?1 AND seq > ?2 AND seq <= ?3
                    AND state <> 'STARTED' AND revoked_at IS NULL ORDER BY seq LIMIT ?4"
            }
            Self::Retrying => {
                "SELECT seq FROM tasks WHERE stage = 'retrying' AND queue = ?1 AND seq > ?2 AND seq <= ?3
                    AND revoked_at IS NULL ORDER BY seq LIMIT ?4"
            }
        }
    }
}

/// What a relay holds of the queue ?1 up to ?2.
const IN_HAND: &str = "SELECT seq FROM tasks WHERE id IN (SELECT value FROM json_each(?3)) AND stage = 'waiting'
    AND queue = ?1 AND seq <= ?2 AND revoked_at IS NULL";

/// Revokes, with the hand locked until the commit.
pub(super) async fn revoke(
    connection: &mut SqliteConnection,
    Revoke { id, whose, now }: &Revoke,
    control: &Control,
    changes: &mut Changes,
) -> Result<Revocation, sqlx::Error> {
    let hand = changes.hold(&control.hand).await;
    let end = End { reason: REVOKED, now: *now, doubt: id.is_none(), opened_at: control.opened_at };
    let Some(id) = id else {
        let held = json(&hand.ids)?;
        let seqs: Vec<i64> = sqlx::query_scalar(HELD_BACK).bind(held).fetch_all(&mut *connection).await?;
        end.rows(connection, &seqs, true, changes).await?;
        return Ok(Revocation::Told);
    };
    let in_hand = hand.ids.contains(id);
    let row = sqlx::query(read::ONE).bind(id).bind(whose.owner()).fetch_optional(&mut *connection).await?;
    let Some(row) = row else { return Ok(Revocation::Unknown) };
    let (seq, stage): (i64, String) = (row.try_get("seq")?, row.try_get("stage")?);
    match stage.as_str() {
        "done" => Ok(Revocation::Ended),
        "scheduled" | "waiting" if !in_hand => {
            let in_doubt = end.rows(connection, &[seq], stage == "waiting", changes).await?;
            Ok(if in_doubt { Revocation::Told } else { Revocation::Never })
        }
        _ => {
            // Whoever asks again has seen that it goes on, so workers are told again.
            let marked = mark(connection, &[seq], REVOKED, *now).await?;
            let told = if marked.is_empty() { vec![(id.clone(), row.try_get("revoked_at")?)] } else { marked };
            changes.revoked.push((REVOKED, told));
            Ok(Revocation::Told)
        }
    }
}

/// Revokes some rows, with the hand locked until the commit.
pub(super) async fn purge(
    connection: &mut SqliteConnection,
    chunk: &PurgeChunk,
    control: &Control,
    changes: &mut Changes,
) -> Result<Chunk, sqlx::Error> {
    let PurgeChunk { queue, part, after, upto, now } = chunk;
    let held = json(&changes.hold(&control.hand).await.ids)?;
    let rows = sqlx::query_scalar(part.rows()).bind(queue).bind(after).bind(upto).bind(CHUNK).bind(&held);
    let seqs: Vec<i64> = rows.fetch_all(&mut *connection).await?;
    let full = i64::try_from(seqs.len()).is_ok_and(|count| count == CHUNK);
    let last = seqs.iter().max().copied().filter(|_| full);
    let (ending, marking) = match part {
        Part::Lost => (seqs, Vec::new()),
        Part::Waiting if full => (seqs, Vec::new()),
        Part::Waiting => {
            let held = sqlx::query_scalar(IN_HAND).bind(queue).bind(upto).bind(&held);
            (seqs, held.fetch_all(&mut *connection).await?)
        }
        Part::Queued | Part::Retrying => (Vec::new(), seqs),
    };
    let end = End { reason: PURGED, now: *now, doubt: false, opened_at: control.opened_at };
    end.rows(connection, &ending, matches!(part, Part::Waiting), changes).await?;
    changes.revoked.push((PURGED, mark(connection, &marking, PURGED, *now).await?));
    Ok(Chunk { ended: ending.len() as u64, marked: marking.len() as u64, last })
}

/// How rows are ended.
struct End {
    reason: &'static str,
    now: UnixMs,
    doubt: bool,
    opened_at: UnixMs,
}

impl End {
    /// Ends them; whether one of them is in doubt. Those that `waited`, or were lost, were outstanding. Workers are told of
    /// those in doubt only: of all others there is no message, and what a worker remembers is bounded.
    async fn rows(
        &self,
        connection: &mut SqliteConnection,
        seqs: &[i64],
        waited: bool,
        changes: &mut Changes,
    ) -> Result<bool, sqlx::Error> {
        let end = sqlx::query_as(END).bind(State::Revoked.name()).bind(State::Revoked.rank()).bind(self.now);
        let end = end.bind(self.reason).bind(self.doubt).bind(self.opened_at).bind(json(&seqs)?);
        let ended: Vec<(String, UnixMs, bool, bool)> = end.fetch_all(connection).await?;
        let outstanding = ended.iter().filter(|(_, _, lost, _)| waited || *lost).count();
        changes.outstanding -= i64::try_from(outstanding).unwrap_or(i64::MAX);
        for (id, ..) in &ended {
            changes.touched(id);
        }
        let in_doubt = ended.into_iter().filter(|(.., in_doubt)| *in_doubt);
        let told: Vec<(String, UnixMs)> = in_doubt.map(|(id, at, ..)| (id, at)).collect();
        let in_doubt = !told.is_empty();
        changes.revoked.push((self.reason, told));
        Ok(in_doubt)
    }
}

/// Marks rows that only a worker can end; the ids of those that were not marked yet.
async fn mark(
    connection: &mut SqliteConnection,
    seqs: &[i64],
    reason: &'static str,
    now: UnixMs,
) -> Result<Vec<(String, UnixMs)>, sqlx::Error> {
    sqlx::query_as(MARK).bind(now).bind(reason).bind(json(&seqs)?).fetch_all(connection).await
}
