//! Records what workers reported, in the order of [`protocol::state::Standing::after`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::faults::{Bug, bug};
use protocol::reply::{ErrorInfo, Reply, Report};
use protocol::state::State;
use protocol::timestamp::unix_ms;
use protocol::trace;
use sqlx::error::BoxDynError;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, Row as _, SqliteConnection};

use super::bulk::{Bulk, Parameters};
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

/// A report as the statements take it. JSON stands in the columns as it came.
struct Row<'a> {
    id: &'a str,
    state: State,
    terminal: bool,
    retries: Option<u32>,
    seq: Option<u32>,
    redelivered: bool,
    since: Option<UnixMs>,
    worker: Option<&'a str>,
    progress: Option<Cow<'a, str>>,
    result: Option<&'a str>,
    error: Option<String>,
    retry_at: Option<UnixMs>,
    started_at: Option<UnixMs>,
    finished_at: Option<UnixMs>,
    at: UnixMs,
    alive_at: UnixMs,
}

/// The columns of [`Row`] as they are named in the statements.
macro_rules! reported {
    () => {
        "WITH r (id, state, terminal, stage, rank, retries, seq, redelivered, since, worker, progress, result, error,
        retry_at, started_at, finished_at, at, alive_at) AS (VALUES {rows}) "
    };
}

impl Parameters for Row<'_> {
    const COLUMNS: usize = 18;

    fn add_to(&self, parameters: &mut SqliteArguments) -> Result<(), BoxDynError> {
        parameters.add(self.id)?;
        parameters.add(self.state.name())?;
        parameters.add(self.terminal)?;
        parameters.add(stage_of(self.state).name())?;
        parameters.add(self.state.rank())?;
        parameters.add(self.retries)?;
        parameters.add(self.seq)?;
        parameters.add(self.redelivered)?;
        parameters.add(self.since)?;
        parameters.add(self.worker)?;
        parameters.add(self.progress.as_deref())?;
        parameters.add(self.result)?;
        parameters.add(self.error.as_deref())?;
        parameters.add(self.retry_at)?;
        parameters.add(self.started_at)?;
        parameters.add(self.finished_at)?;
        parameters.add(self.at)?;
        parameters.add(self.alive_at)
    }
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
            reported!(),
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
    FROM r WHERE tasks.id = r.id"
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

static OVERWRITE: Bulk = Bulk::new(overwrite!());
static RECORD: Bulk = Bulk::new(record!());
static RECORD_AND_NAME: Bulk = Bulk::new(concat!(record!(), " RETURNING tasks.id"));

/// Records the reports in rounds of at most one a task: one statement takes an arbitrary one of several matches.
pub(super) async fn record(
    connection: &mut SqliteConnection,
    reports: &[Recorded],
    changes: &mut Changes,
) -> Result<u64, sqlx::Error> {
    let mut counted = 0;
    for round in rounds(reports)? {
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
        changes.room |= finished > 0 || !retried.is_empty();
        look(connection, changes).await;
    }
    Ok(counted)
}

async fn update(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<u64, sqlx::Error> {
    let statement = if bug(Bug::LastWriteWins) { &OVERWRITE } else { &RECORD };
    Ok(statement.execute(connection, rows).await?.rows_affected())
}

/// Of what counted the attempts are kept.
async fn retry(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<u64, sqlx::Error> {
    let named = RECORD_AND_NAME.fetch(connection, rows).await?;
    let ids = named.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let ends: HashMap<&str, UnixMs> = rows.iter().map(|row| (row.id, row.at)).collect();
    let counted = ids.len() as u64;
    let ended: Vec<(&str, UnixMs)> = ids.iter().map(|id| (id.as_str(), ends[id.as_str()])).collect();
    attempts::retried(connection, &ended).await?;
    Ok(counted)
}

fn rounds(reports: &[Recorded]) -> Result<Vec<Vec<Row<'_>>>, sqlx::Error> {
    let mut rounds: Vec<Vec<Row<'_>>> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for report in reports {
        let round = seen.entry(&report.reply.task_id).or_insert(0);
        if rounds.len() == *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push(row(report)?);
        *round += 1;
    }
    Ok(rounds)
}

/// Times are the store's: a worker's clock decides neither when a task ended nor when its result is forgotten.
fn row(Recorded { reply, at, redelivered }: &Recorded) -> Result<Row<'_>, sqlx::Error> {
    let state = reply.report.state();
    let terminal = state.is_terminal();
    let starts = matches!(reply.report, Report::Started);
    let mut row = Row {
        id: &reply.task_id,
        state,
        terminal,
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
        Report::Progress(progress) => row.progress = Some(json(progress)?.into()),
        // What says nothing leaves what was said before.
        Report::Custom { meta, .. } => row.progress = Some(meta.get().into()).filter(|meta| meta != "null"),
        Report::Retry { error, eta } => {
            row.error = Some(json(error)?);
            row.retry_at = eta.map(unix_ms);
        }
        Report::Success(result) => row.result = Some(result.get()),
        Report::Failure(error) => row.error = Some(json(error)?),
        Report::Revoked { reason } => row.error = Some(json(&revoked(reason.clone()))?),
    }
    Ok(row)
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
