//! Records what workers reported, in the order of [`protocol::state::Standing::after`].

use protocol::reply::{ErrorInfo, Report};
use protocol::state::State;
use protocol::timestamp::unix_ms;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::SqliteConnection;

use super::column::json;
use super::write::{Changes, Write};
use super::{Recorded, Stage, Store, StoreError, UnixMs};

impl Store {
    /// Records reports; says how many of them counted. Late and duplicate ones, and those about ids that this store does
    /// not own, change nothing.
    ///
    /// # Errors
    /// The store failed and nothing was recorded.
    pub async fn record(&self, reports: Vec<Recorded>) -> Result<u64, StoreError> {
        self.write(|done| Write::Reports(reports, done)).await
    }
}

/// A report as the statement takes it.
#[derive(serde::Serialize)]
struct Row {
    id: String,
    state: State,
    terminal: bool,
    stage: &'static str,
    rank: u8,
    retries: Option<u32>,
    seq: Option<u32>,
    worker: Option<String>,
    progress: Option<Box<RawValue>>,
    result: Option<Box<RawValue>>,
    error: Option<Box<RawValue>>,
    retry_at: Option<UnixMs>,
    started_at: Option<UnixMs>,
    finished_at: Option<UnixMs>,
}

/// The guard in the last lines is `Standing::after`: an open row takes any terminal report, and an open report only when
/// (attempt, rank, seq) rises. A stock Celery worker's report has neither attempt nor seq.
const RECORD: &str = "UPDATE tasks SET state = r.state, stage = r.stage, rank = r.rank,
        retries = coalesce(r.retries, tasks.retries), report_seq = coalesce(r.seq, tasks.report_seq + 1),
        worker = coalesce(r.worker, tasks.worker),
        progress = coalesce(r.progress, iif(coalesce(r.retries, tasks.retries) = tasks.retries, tasks.progress, NULL)),
        result = r.result, error = r.error, retry_at = r.retry_at,
        started_at = coalesce(r.started_at, tasks.started_at), finished_at = r.finished_at
    FROM (SELECT value ->> 'id' AS id, value ->> 'state' AS state, value ->> 'terminal' AS terminal,
            value ->> 'stage' AS stage, value ->> 'rank' AS rank, value ->> 'retries' AS retries,
            value ->> 'seq' AS seq, value ->> 'worker' AS worker, nullif(value -> 'progress', 'null') AS progress,
            iif(value ->> 'state' = 'SUCCESS', value -> 'result', NULL) AS result,
            nullif(value -> 'error', 'null') AS error, value ->> 'retry_at' AS retry_at,
            value ->> 'started_at' AS started_at, value ->> 'finished_at' AS finished_at
        FROM json_each(?)) AS r
    WHERE tasks.id = r.id AND tasks.finished_at IS NULL AND (r.terminal
        OR (coalesce(r.retries, tasks.retries), r.rank, coalesce(r.seq, tasks.report_seq + 1))
            > (tasks.retries, tasks.rank, tasks.report_seq))";

/// Records the reports in rounds of at most one a task: one statement takes an arbitrary one of several matches.
pub(super) async fn record(
    connection: &mut SqliteConnection,
    reports: Vec<Recorded>,
    changes: &mut Changes,
) -> Result<u64, sqlx::Error> {
    let mut counted = 0;
    for round in rounds(reports) {
        let (ended, open): (Vec<Row>, Vec<Row>) = round.into_iter().partition(|row| row.terminal);
        counted += update(connection, &open).await?;
        let finished = update(connection, &ended).await?;
        counted += finished;
        changes.outstanding -= i64::try_from(finished).unwrap_or(i64::MAX);
        changes.relay |= finished > 0 || open.iter().any(|row| row.state == State::Retry);
    }
    Ok(counted)
}

async fn update(connection: &mut SqliteConnection, rows: &[Row]) -> Result<u64, sqlx::Error> {
    if rows.is_empty() {
        return Ok(0);
    }
    Ok(sqlx::query(RECORD).bind(json(&rows)?).execute(connection).await?.rows_affected())
}

fn rounds(reports: Vec<Recorded>) -> Vec<Vec<Row>> {
    let mut rounds: Vec<Vec<Row>> = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for report in reports {
        let row = row(report);
        let round = seen.entry(row.id.clone()).or_insert(0_usize);
        if rounds.len() == *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push(row);
        *round += 1;
    }
    rounds
}

fn row(Recorded { reply, at }: Recorded) -> Row {
    let state = reply.report.state();
    let terminal = state.is_terminal();
    let mut row = Row {
        id: reply.task_id,
        state,
        terminal,
        stage: stage_of(state).name(),
        rank: state.rank(),
        retries: reply.retries,
        seq: reply.seq,
        worker: reply.worker,
        progress: None,
        result: None,
        error: None,
        retry_at: None,
        started_at: reply.started_at.map(unix_ms).or((state == State::Started).then_some(at)),
        finished_at: terminal.then(|| reply.date_done.map_or(at, unix_ms)),
    };
    match reply.report {
        Report::Started => {}
        Report::Progress(progress) => row.progress = to_raw_value(&progress).ok(),
        Report::Custom { meta, .. } => row.progress = Some(meta),
        Report::Retry { error, eta } => {
            row.error = to_raw_value(&error).ok();
            row.retry_at = eta.map(unix_ms);
        }
        Report::Success(result) => row.result = Some(result),
        Report::Failure(error) => row.error = to_raw_value(&error).ok(),
        Report::Revoked { reason } => row.error = to_raw_value(&revoked(reason)).ok(),
    }
    row
}

/// Celery's word for a task that was revoked or expired.
pub(super) fn revoked(reason: String) -> ErrorInfo {
    ErrorInfo { kind: "TaskRevokedError".to_owned(), message: reason, traceback: None }
}

fn stage_of(state: State) -> Stage {
    match state {
        State::Retry => Stage::Retrying,
        state if state.is_terminal() => Stage::Done,
        _ => Stage::Queued,
    }
}
