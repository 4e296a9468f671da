//! Lists tasks, newest first, a page at a time. What a page costs does not grow with the table: it continues by `seq`,
//! looks at a bounded number of rows, and holds a bounded number of bytes.

use futures_util::TryStreamExt;
use protocol::state::State;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::column::json;
use super::{Store, StoreError, TaskRow, UnixMs, Whose, read};

/// Rows that a page looks at when not every one of them matches.
const SCAN: usize = 2_000;
/// Bytes of JSON of a page's rows; one row is always shown.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// A task is stored within seconds of its creation, so one that is so much older than asked for, ms, ends the list.
const LATEST_COMMIT_MS: i64 = 60 * 60 * 1000;
/// The queue of which rows stand in no index of their own.
pub(super) const USUAL_QUEUE: &str = "default";

/// Which tasks.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// In one of these states; all when empty.
    pub states: Vec<State>,
    /// Of this name.
    pub task: Option<String>,
    /// In this queue.
    pub queue: Option<String>,
    /// Created at or after.
    pub since: Option<UnixMs>,
    /// Of these.
    pub whose: Whose,
}

/// Some tasks and where to go on.
#[derive(Debug, Clone)]
pub struct Page {
    /// Newest first. There may be fewer than asked for, or none, and still more to come.
    pub rows: Vec<TaskRow>,
    /// Before which place the next page begins, `None` at the end.
    pub next: Option<i64>,
}

/// What a page found before its rows are read.
struct Found {
    places: Vec<i64>,
    next: Option<i64>,
}

/// The index that a list goes along, newest first. It must be named: the planner may prefer one that has to be sorted.
enum Along {
    /// Rare states, each in its own run.
    States(Vec<State>),
    Owner,
    Queue,
    Task,
    Table,
}

impl Store {
    /// At most `limit` tasks before the place `before`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list(&self, filter: &Filter, before: Option<i64>, limit: usize) -> Result<Page, StoreError> {
        // One snapshot: a row must not leave its state between the two statements.
        let mut snapshot = self.readers.begin().await?;
        let found = find(&mut snapshot, filter, before.unwrap_or(i64::MAX), limit).await?;
        let Found { places, mut next } = found;
        let rows = read_rows(&mut snapshot, &places).await?;
        if rows.len() < places.len() {
            next = rows.len().checked_sub(1).map(|last| places[last]);
        }
        Ok(Page { rows, next })
    }
}

impl Along {
    fn of(filter: &Filter) -> Self {
        if !filter.states.is_empty() && !filter.states.contains(&State::Success) {
            return Self::States(filter.states.clone());
        }
        // Nobody looks through others' tasks for his own: how long that takes would tell how many there are.
        if filter.whose != Whose::Anybody {
            return Self::Owner;
        }
        match (&filter.queue, &filter.task) {
            (Some(queue), _) if queue != USUAL_QUEUE => Self::Queue,
            (_, Some(_)) => Self::Task,
            _ => Self::Table,
        }
    }

    /// Whether every row on the way matches.
    fn is_exact(&self, filter: &Filter) -> bool {
        let rest = |states: bool, queue: bool, task: bool| {
            filter.since.is_some()
                || (states && !filter.states.is_empty())
                || (queue && filter.queue.is_some())
                || (task && filter.task.is_some())
        };
        match self {
            Self::States(_) => !rest(false, true, true),
            Self::Queue => !rest(true, false, true),
            Self::Task => !rest(true, true, false),
            Self::Owner | Self::Table => !rest(true, true, true),
        }
    }
}

async fn find(
    connection: &mut SqliteConnection,
    filter: &Filter,
    before: i64,
    limit: usize,
) -> Result<Found, sqlx::Error> {
    let along = Along::of(filter);
    let scan = if along.is_exact(filter) { limit + 1 } else { SCAN.max(limit + 1) };
    let mut query = statement(filter, &along, before, scan);
    let mut rows = query.build_query_as::<(i64, bool, bool)>().fetch(connection);
    let mut found = Found { places: Vec::new(), next: None };
    let (mut scanned, mut last) = (0, before);
    while let Some((place, matches, is_too_old)) = rows.try_next().await? {
        if is_too_old {
            return Ok(found);
        }
        if matches && found.places.len() == limit {
            found.next = found.places.last().copied();
            return Ok(found);
        }
        if matches {
            found.places.push(place);
        }
        (scanned, last) = (scanned + 1, place);
    }
    found.next = (scanned == scan).then_some(last);
    Ok(found)
}

/// The places along the way, and of each whether it matches and whether it ends the list.
fn statement(filter: &Filter, along: &Along, before: i64, scan: usize) -> QueryBuilder<Sqlite> {
    let scan = i64::try_from(scan).unwrap_or(i64::MAX);
    let mut query = QueryBuilder::new("SELECT seq, matches, is_too_old FROM (");
    let runs = if let Along::States(states) = along { states.len() } else { 1 };
    for run in 0..runs {
        query.push(if run == 0 { "SELECT * FROM (SELECT seq, " } else { " UNION ALL SELECT * FROM (SELECT seq, " });
        push_match(&mut query, filter);
        match (along, &filter.queue, &filter.task) {
            (Along::States(states), ..) => {
                match filter.whose.owner() {
                    Some(owner) => {
                        query.push(" FROM tasks INDEXED BY tasks_by_owner_state WHERE owner = ");
                        query.push_bind(owner.to_owned());
                    }
                    None => drop(query.push(" FROM tasks INDEXED BY tasks_by_state WHERE true")),
                }
                query.push(" AND state <> 'SUCCESS' AND state = ").push_bind(states[run].name());
            }
            (Along::Owner, ..) => {
                query.push(" FROM tasks INDEXED BY tasks_by_owner WHERE owner = ");
                query.push_bind(filter.whose.owner().unwrap_or_default().to_owned());
            }
            (Along::Queue, queue, _) => {
                query.push(" FROM tasks INDEXED BY tasks_by_queue WHERE queue <> 'default' AND queue = ");
                query.push_bind(queue.clone());
            }
            (Along::Task, _, task) => {
                query.push(" FROM tasks INDEXED BY tasks_by_task WHERE task = ").push_bind(task.clone());
            }
            (Along::Table, ..) => drop(query.push(" FROM tasks NOT INDEXED WHERE true")),
        }
        query.push(" AND seq < ").push_bind(before);
        query.push(" ORDER BY seq DESC LIMIT ").push_bind(scan).push(")");
    }
    query.push(") ORDER BY seq DESC LIMIT ").push_bind(scan);
    query
}

fn push_match(query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    query.push("(true");
    if let Some(task) = &filter.task {
        query.push(" AND task = ").push_bind(task.clone());
    }
    if let Some(queue) = &filter.queue {
        query.push(" AND queue = ").push_bind(queue.clone());
    }
    if !filter.states.is_empty() {
        query.push(" AND state IN (");
        let mut states = query.separated(", ");
        for state in &filter.states {
            states.push_bind(state.name());
        }
        query.push(")");
    }
    if let Some(since) = filter.since {
        query.push(" AND created_at >= ").push_bind(since);
        query.push(") AS matches, created_at < ").push_bind(since.saturating_sub(LATEST_COMMIT_MS));
    } else {
        query.push(") AS matches, false");
    }
    query.push(" AS is_too_old");
}

/// In the order of the places, without a sort: that would hold all rows at once.
const ROWS: &str = "SELECT t.* FROM json_each(?) AS p CROSS JOIN tasks AS t ON t.seq = p.value";

/// As many of the rows as a page may hold.
pub(super) async fn read_rows(connection: &mut SqliteConnection, seqs: &[i64]) -> Result<Vec<TaskRow>, sqlx::Error> {
    let mut rows = sqlx::query(ROWS).bind(json(&seqs)?).fetch(connection);
    let (mut shown, mut bytes): (Vec<TaskRow>, usize) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let row = read::task_row(&row)?;
        bytes += size(&row);
        if bytes > PAGE_BYTES && !shown.is_empty() {
            break;
        }
        shown.push(row);
    }
    Ok(shown)
}

fn size(row: &TaskRow) -> usize {
    let kept = [&row.progress, &row.result, &row.error];
    let kept: usize = kept.into_iter().flatten().map(|json| json.get().len()).sum();
    kept + row.accepted.args.get().len() + row.accepted.kwargs.get().len()
}
