//! Records what workers reported, in the order of [`protocol::state::Standing::after`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::faults::{Bug, bug};
use protocol::reply::{ErrorInfo, Progress, Reply, Report};
use protocol::state::State;
use protocol::timestamp::unix_ms;
use protocol::trace;
use serde_json::value::RawValue;
use sqlx::SqliteConnection;

use super::column::json;
use super::watch::look;
use super::write::{Changes, Write};
use super::{Child, Counted, Recorded, Stage, Store, StoreError, UnixMs, attempts, reconcile};

impl Store {
    /// Takes in children and then records reports, in one commit, so that no parent is seen to have ended before its
    /// children are there. Late and duplicate reports, and those about ids that this store does not own, change nothing;
    /// so does a child that was taken in before.
    ///
    /// # Errors
    /// The store failed and nothing was recorded.
    pub async fn record(&self, children: Arc<[Child]>, reports: Arc<[Recorded]>) -> Result<Counted, StoreError> {
        self.write(|done| Write::Replies(children, reports, done)).await
    }
}

/// A report as the statement takes it.
#[derive(serde::Serialize)]
struct Row<'a> {
    id: &'a str,
    state: State,
    terminal: bool,
    stage: &'static str,
    rank: u8,
    retries: Option<u32>,
    seq: Option<u32>,
    redelivered: bool,
    since: Option<UnixMs>,
    worker: Option<&'a str>,
    progress: Option<ProgressColumn<'a>>,
    result: Option<&'a RawValue>,
    error: Option<Cow<'a, ErrorInfo>>,
    retry_at: Option<UnixMs>,
    started_at: Option<UnixMs>,
    finished_at: Option<UnixMs>,
    at: UnixMs,
    alive_at: UnixMs,
}

/// Progress, or what a worker reports in a state of its own.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum ProgressColumn<'a> {
    Progress(&'a Progress),
    Meta(&'a RawValue),
}

/// The attempt that a report is of. A stock Celery worker's has none: it is of the one that is under way.
macro_rules! attempt {
    () => {
        "coalesce(r.retries, min(tasks.retries + (tasks.state = 'RETRY'), 4294967295))"
    };
}

/// Macros, since one statement is the other with an end to it. This one takes any report.
macro_rules! overwrite {
    () => {
        concat!(
            "UPDATE tasks SET state = r.state, rank = r.rank,
        stage = iif(r.terminal OR tasks.lost + tasks.replayed_from = 0 OR tasks.stage IN ('queued', 'retrying'),
            r.stage, tasks.stage),
        retries = max(", attempt!(), ", tasks.retries),
        report_seq = coalesce(r.seq, min(tasks.report_seq + 1, 4294967295)),
        worker = coalesce(r.worker, tasks.worker),
        progress = coalesce(r.progress, iif(", attempt!(), " = tasks.retries, tasks.progress, NULL)),
        result = r.result, error = r.error, retry_at = r.retry_at, 
        heard_at = iif(tasks.heard_at IS NULL AND r.retries IS NOT NULL, NULL, r.at),
        alive_at = max(tasks.alive_at, r.alive_at),
        started_at = coalesce(r.started_at, tasks.started_at), finished_at = r.finished_at
    FROM (SELECT value ->> 'id' AS id, value ->> 'state' AS state, value ->> 'terminal' AS terminal,
            value ->> 'stage' AS stage, value ->> 'rank' AS rank, value ->> 'retries' AS retries,
            value ->> 'seq' AS seq, value ->> 'redelivered' AS redelivered, value ->> 'since' AS since,
            value ->> 'worker' AS worker, nullif(value -> 'progress', 'null') AS progress,
            iif(value ->> 'state' = 'SUCCESS', value -> 'result', NULL) AS result,
            nullif(value -> 'error', 'null') AS error, value ->> 'retry_at' AS retry_at,
            value ->> 'at' AS at, value ->> 'alive_at' AS alive_at, value ->> 'started_at' AS started_at, value ->> 'finished_at' AS finished_at
        FROM json_each(?)) AS r
    WHERE tasks.id = r.id"
        )
    };
}

/// With the guard, which is `Standing::after`: an open row takes any terminal report of its life, and an open report only
/// when (attempt, rank, seq) rises. A stock Celery worker's report has neither attempt nor seq, so a late one of an
/// earlier life can be told from its own only while the replay is not due.
///
/// A row that was put back as lost, or replayed, stays with the clock or the relay until it is published or has ended: the
/// copy that reported may be the one that was lost, or of an earlier life.
macro_rules! record {
    () => {
        concat!(
            overwrite!(),
            " AND (r.since IS NULL OR r.since = coalesce(tasks.replayed_at, tasks.created_at))
        AND tasks.finished_at IS NULL AND ",
            attempt!(),
            " >= tasks.replayed_from
        AND (tasks.replayed_from = 0 OR tasks.lost > 0 OR tasks.stage <> 'scheduled') AND (r.terminal
        OR NOT (r.redelivered AND r.retries IS NULL AND tasks.state = 'RETRY')
        AND (",
            attempt!(),
            ", r.rank, coalesce(r.seq, tasks.report_seq + 1))
            > (tasks.retries, tasks.rank, tasks.report_seq))"
        )
    };
}

const OVERWRITE: &str = overwrite!();
const RECORD: &str = record!();
const RECORD_AND_NAME: &str = concat!(record!(), " RETURNING tasks.id");

/// Records the reports in rounds of at most one a task: one statement takes an arbitrary one of several matches.
pub(super) async fn record(
    connection: &mut SqliteConnection,
    reports: &[Recorded],
    changes: &mut Changes,
) -> Result<u64, sqlx::Error> {
    let mut counted = 0;
    for round in rounds(reports) {
        for row in &round {
            changes.touched(row.id);
        }
        let (ended, open): (Vec<Row<'_>>, Vec<Row<'_>>) = round.into_iter().partition(|row| row.terminal);
        let (retried, open): (Vec<Row<'_>>, Vec<Row<'_>>) = open.into_iter().partition(|row| row.state == State::Retry);
        counted += update(connection, &open).await?;
        counted += retry(connection, &retried).await?;
        let finished = update(connection, &ended).await?;
        counted += finished;
        changes.outstanding -= i64::try_from(finished).unwrap_or(i64::MAX);
        changes.relay |= finished > 0 || !retried.is_empty();
        look(connection, changes).await;
    }
    Ok(counted)
}

async fn update(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<u64, sqlx::Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    let statement = if bug(Bug::LastWriteWins) { OVERWRITE } else { RECORD };
    Ok(sqlx::query(statement).bind(json(&rows)?).execute(connection).await?.rows_affected())
}

/// Of what counted the attempts are kept.
async fn retry(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<u64, sqlx::Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    let ids: Vec<String> = sqlx::query_scalar(RECORD_AND_NAME).bind(json(&rows)?).fetch_all(&mut *connection).await?;
    let ends: HashMap<&str, UnixMs> = rows.iter().map(|row| (row.id, row.at)).collect();
    let counted = ids.len() as u64;
    let ended: Vec<(&str, UnixMs)> = ids.iter().map(|id| (id.as_str(), ends[id.as_str()])).collect();
    attempts::retried(connection, &ended).await?;
    Ok(counted)
}

fn rounds(reports: &[Recorded]) -> Vec<Vec<Row<'_>>> {
    let mut rounds: Vec<Vec<Row<'_>>> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for report in reports {
        let round = seen.entry(&report.reply.task_id).or_insert(0);
        if rounds.len() == *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push(row(report));
        *round += 1;
    }
    rounds
}

/// Times are the store's: a worker's clock decides neither when a task ended nor when its result is forgotten.
fn row(Recorded { reply, at, redelivered }: &Recorded) -> Row<'_> {
    let state = reply.report.state();
    let terminal = state.is_terminal();
    let starts = matches!(reply.report, Report::Started);
    let mut row = Row {
        id: &reply.task_id,
        state,
        terminal,
        stage: stage_of(state).name(),
        rank: state.rank(),
        retries: reply.retries,
        seq: reply.seq,
        redelivered: *redelivered,
        since: reply.since,
        worker: reply.worker.as_deref(),
        progress: None,
        result: None,
        error: None,
        retry_at: None,
        started_at: reply.started_at.map(unix_ms).or(starts.then_some(*at)),
        finished_at: terminal.then_some(*at),
        at: *at,
        alive_at: alive_at(reply, *at),
    };
    match &reply.report {
        Report::Started => {}
        Report::Progress(progress) => row.progress = Some(ProgressColumn::Progress(progress)),
        Report::Custom { meta, .. } => row.progress = Some(ProgressColumn::Meta(meta)),
        Report::Retry { error, eta } => {
            row.error = Some(Cow::Borrowed(error));
            row.retry_at = eta.map(unix_ms);
        }
        Report::Success(result) => row.result = Some(result),
        Report::Failure(error) => row.error = Some(Cow::Borrowed(error)),
        Report::Revoked { reason } => row.error = Some(Cow::Owned(revoked(reason.clone()))),
    }
    row
}

/// Until when the task is somewhere by this report. The wait that it tells is the broker's, an `eta` a worker's clock.
fn alive_at(reply: &Reply, at: UnixMs) -> UnixMs {
    match (&reply.report, reply.held_ms) {
        (Report::Retry { .. }, Some(held)) => reconcile::end_of(trace::wait(held), at),
        (Report::Retry { eta: Some(eta), .. }, None) => reconcile::end_of(Duration::ZERO, unix_ms(*eta).max(at)),
        _ => at,
    }
}

/// Celery's word for a task that was revoked or expired.
pub(super) fn revoked(reason: String) -> ErrorInfo {
    ErrorInfo::new("TaskRevokedError", reason)
}

fn stage_of(state: State) -> Stage {
    match state {
        State::Retry => Stage::Retrying,
        state if state.is_terminal() => Stage::Done,
        _ => Stage::Queued,
    }
}
