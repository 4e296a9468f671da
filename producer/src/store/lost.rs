//! Puts back what the broker lost, and gives it up at the third time.

use protocol::lost::{LostNotice, LostReason};
use protocol::reply::{ErrorInfo, Reply, Report};
use sqlx::{Row, SqliteConnection};

use super::write::{Changes, Write};
use super::{MAX_LOST, Recorded, Store, StoreError, UnixMs, attempts, reports};

/// How long a task waits after it was lost for the first and the second time, ms: long enough for a missing binding to be
/// declared again or a crashing worker to be replaced.
const BACKOFF_MS: [i64; 2] = [1_000, 15_000];
/// By how much more at random, ms, so that a task that kills its workers does not meet the same neighbours again.
const SPREAD_MS: [i64; 2] = [5_000, 30_000];

impl Store {
    /// Puts back what the broker lost, with backoff; ends it at the third loss, or when it had expired. Says how many
    /// notices counted: the broker repeats them, and other producers' tasks are none of ours.
    ///
    /// # Errors
    /// The store failed and nothing was recorded.
    pub async fn put_back(&self, notices: Vec<LostNotice>, now: UnixMs) -> Result<u64, StoreError> {
        self.write(|done| Write::Lost(notices, now, done)).await
    }
}

/// Counts a notice once: each names the publish that was lost, and that publish must be the latest and still out. The
/// notice may overtake the mark of its own publish, which then is the next one; a higher one is a stranger's. A copy of an attempt that was followed
/// by another is no loss. A row that was put back stays counted as outstanding.
const PUT_BACK: &str = "UPDATE tasks SET lost = lost + 1, stage = 'scheduled', due_at = ?3 + iif(lost = 0, ?4, ?5),
        publishes = max(publishes, coalesce(?2, publishes))
    WHERE id = ?1 AND finished_at IS NULL
        AND (?2 = publishes + 1
            OR (coalesce(?2, publishes) = publishes AND stage IN ('queued', 'retrying')))
        AND ?6 >= retries + (state = 'RETRY')
    RETURNING lost, iif(revoked_at IS NULL, NULL, revoke_reason) AS revoked";

fn backoff(lost: usize) -> i64 {
    BACKOFF_MS[lost] + fastrand::i64(0..SPREAD_MS[lost])
}

pub(super) async fn put_back(
    connection: &mut SqliteConnection,
    notices: Vec<LostNotice>,
    now: UnixMs,
    changes: &mut Changes,
) -> Result<u64, sqlx::Error> {
    let mut counted = 0;
    let mut ended = Vec::new();
    for notice in notices {
        let lost = sqlx::query(PUT_BACK)
            .bind(&notice.task_id)
            .bind(notice.publish)
            .bind(now)
            .bind(backoff(0))
            .bind(backoff(1))
            .bind(notice.retries)
            .fetch_optional(&mut *connection)
            .await?;
        let Some(row) = lost else { continue };
        counted += 1;
        attempts::lost(connection, &notice.task_id, now).await?;
        changes.clock = true;
        changes.room = true;
        let revoked: Option<String> = row.try_get("revoked")?;
        let revoked = revoked.map(|reason| Report::Revoked { reason });
        if let Some(report) = revoked.or(end_of(notice.reason, row.try_get("lost")?)) {
            ended.push(Recorded::now(reply(notice, report), now));
        }
    }
    reports::record(connection, &ended, changes).await?;
    Ok(counted)
}

/// A death decided by the broker is no verdict: a delivery limit cannot tell the task that killed a worker from those
/// beside it. Only the third is one.
fn end_of(reason: LostReason, lost: u32) -> Option<Report> {
    let failure = |kind: &str, message: &str| Report::Failure(ErrorInfo::new(kind, message));
    match reason {
        LostReason::Expired => Some(Report::Revoked { reason: "expired".to_owned() }),
        _ if lost < MAX_LOST => None,
        LostReason::Unroutable => Some(failure("Unroutable", "no queue took the task, three times over")),
        LostReason::DeliveryLimit => Some(failure(
            "WorkerLost",
            "workers died or lost their connection while they held the task, three times over",
        )),
        LostReason::Rejected => Some(failure("WorkerLost", "the broker dropped the task, three times over")),
    }
}

fn reply(notice: LostNotice, report: Report) -> Reply {
    Reply { retries: Some(notice.retries), ..Reply::of(notice.task_id, report) }
}
