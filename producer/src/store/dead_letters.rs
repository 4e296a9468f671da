//! The dead letters: tasks that were given up, and neither dismissed nor replayed since. They are no rows of their own.
//!
//! Lists go along the end of the tasks, within what is rare in the filter, and look at a bounded number of rows a page.

use futures_util::TryStreamExt;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::write::Write;
use super::{Store, StoreError, TaskRow, UnixMs, Whose, list, read};

/// Rows that a page looks at.
const SCAN: usize = 2_000;

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    /// Of tasks of this name.
    pub task: Option<String>,
    /// Of tasks in this queue.
    pub queue: Option<String>,
    /// With an error of this type.
    pub error_type: Option<String>,
    /// Given up at or after.
    pub since: Option<UnixMs>,
    /// Given up at or before.
    pub until: Option<UnixMs>,
    /// Of these tasks.
    pub whose: Whose,
}

/// Where a letter stands among all: by its end, and then by its acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LetterPlace {
    /// When it was given up.
    pub finished_at: UnixMs,
    /// Its row.
    pub seq: i64,
}

/// Some dead letters and where to go on.
#[derive(Debug, Clone)]
pub struct LetterPage {
    /// The tasks, latest first. There may be fewer than asked for, or none, and still more to come.
    pub rows: Vec<TaskRow>,
    /// After which place the next page begins, `None` at the end.
    pub next: Option<LetterPlace>,
}

/// What a page found before its rows are read.
pub(super) struct FoundLetters {
    pub(super) places: Vec<LetterPlace>,
    pub(super) next: Option<LetterPlace>,
}

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    LatestFirst,
    OldestFirst,
}

/// The index that a page goes along. It must be named: the planner may prefer one that has to be sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Along {
    Error,
    Task,
    Queue,
    Owner,
    All,
}

const LETTER: &str = "SELECT * FROM tasks
    WHERE id = ?1 AND state = 'FAILURE' AND dismissed_at IS NULL AND (?2 IS NULL OR owner = ?2)";
const DISMISS: &str = "UPDATE tasks SET dismissed_at = ?3
    WHERE id = ?1 AND state = 'FAILURE' AND dismissed_at IS NULL AND (?2 IS NULL OR owner = ?2)";

impl Store {
    /// At most `limit` dead letters after the place `after`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn letters(
        &self,
        filter: &LetterFilter,
        after: Option<LetterPlace>,
        limit: usize,
    ) -> Result<LetterPage, StoreError> {
        // One snapshot: a letter must not be replayed between the two statements.
        let mut snapshot = self.readers.begin().await?;
        let FoundLetters { mut places, mut next } =
            find(&mut snapshot, filter, Order::LatestFirst, after, limit).await?;
        let seqs: Vec<i64> = places.iter().map(|place| place.seq).collect();
        let rows = list::read_rows(&mut snapshot, &seqs).await?;
        if rows.len() < places.len() {
            places.truncate(rows.len());
            next = places.last().copied();
        }
        Ok(LetterPage { rows, next })
    }

    /// The task of a dead letter, `None` when there is none of that id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn letter(&self, id: &str, whose: &Whose) -> Result<Option<TaskRow>, StoreError> {
        let row = sqlx::query(LETTER).bind(id).bind(whose.owner()).fetch_optional(&self.readers).await?;
        Ok(row.as_ref().map(read::task_row).transpose()?)
    }

    /// Takes a letter off the list; its task stays as it is. Whether there was one.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn dismiss(&self, id: &str, whose: &Whose, now: UnixMs) -> Result<bool, StoreError> {
        self.write(|done| Write::Dismiss(id.to_owned(), whose.clone(), now, done)).await
    }

    /// The next letters that match, as many as one page looks at.
    pub(super) async fn find_letters(
        &self,
        filter: &LetterFilter,
        order: Order,
        after: Option<LetterPlace>,
    ) -> Result<FoundLetters, StoreError> {
        let mut connection = self.readers.acquire().await?;
        Ok(find(&mut connection, filter, order, after, SCAN).await?)
    }
}

/// Takes a letter off the list; whether there was one.
pub(super) async fn dismiss(
    connection: &mut SqliteConnection,
    id: &str,
    whose: &Whose,
    now: UnixMs,
) -> Result<bool, sqlx::Error> {
    let dismiss = sqlx::query(DISMISS).bind(id).bind(whose.owner()).bind(now);
    Ok(dismiss.execute(connection).await?.rows_affected() > 0)
}

impl LetterFilter {
    /// None that dies later.
    pub(super) fn until_at_most(&self, now: UnixMs) -> Self {
        Self { until: Some(self.until.map_or(now, |until| until.min(now))), ..self.clone() }
    }
}

impl Along {
    fn of(filter: &LetterFilter) -> Self {
        match filter {
            LetterFilter { error_type: Some(_), .. } => Self::Error,
            LetterFilter { task: Some(_), .. } => Self::Task,
            LetterFilter { queue: Some(queue), .. } if queue != list::USUAL_QUEUE => Self::Queue,
            LetterFilter { whose: Whose::Of(_), .. } => Self::Owner,
            _ => Self::All,
        }
    }

    const fn from(self) -> &'static str {
        match self {
            Self::Error => " FROM tasks INDEXED BY dead_letters_by_error",
            Self::Task => " FROM tasks INDEXED BY dead_letters_by_task",
            Self::Queue => " FROM tasks INDEXED BY dead_letters_by_queue",
            Self::Owner => " FROM tasks INDEXED BY dead_letters_by_owner",
            Self::All => " FROM tasks INDEXED BY dead_letters",
        }
    }
}

async fn find(
    connection: &mut SqliteConnection,
    filter: &LetterFilter,
    order: Order,
    after: Option<LetterPlace>,
    limit: usize,
) -> Result<FoundLetters, sqlx::Error> {
    let scan = SCAN.max(limit + 1);
    let mut query = statement(filter, order, after, scan);
    let mut rows = query.build_query_as::<(UnixMs, i64, bool)>().fetch(connection);
    let (mut places, mut scanned, mut last): (Vec<LetterPlace>, usize, _) = (Vec::new(), 0, after);
    while let Some((finished_at, seq, matches)) = rows.try_next().await? {
        if matches && places.len() == limit {
            let next = places.last().copied();
            return Ok(FoundLetters { places, next });
        }
        let place = LetterPlace { finished_at, seq };
        if matches {
            places.push(place);
        }
        (scanned, last) = (scanned + 1, Some(place));
    }
    Ok(FoundLetters { places, next: last.filter(|_| scanned == scan) })
}

/// The places along the way, and of each whether it matches.
fn statement(filter: &LetterFilter, order: Order, after: Option<LetterPlace>, scan: usize) -> QueryBuilder<Sqlite> {
    let along = Along::of(filter);
    let LetterFilter { task, queue, error_type, since, until, whose } = filter;
    let owner = &whose.owner().map(str::to_owned);
    let mut query = QueryBuilder::new("SELECT finished_at, seq, true");
    let mut such = |column: &str, value: &Option<String>, is_way: bool| {
        if let Some(value) = value.as_ref().filter(|_| !is_way) {
            query.push(" AND ").push(column).push(" = ").push_bind(value.clone());
        }
    };
    such("task", task, along == Along::Task);
    such("queue", queue, along == Along::Queue);
    such("owner", owner, along == Along::Owner);
    query.push(" AS matches").push(along.from()).push(" WHERE state = 'FAILURE' AND dismissed_at IS NULL");
    let mut on_the_way = |condition: &str, value: &Option<String>| {
        query.push(condition).push_bind(value.clone());
    };
    match along {
        Along::Error => on_the_way(" AND error ->> 'type' = ", error_type),
        Along::Task => on_the_way(" AND task = ", task),
        Along::Queue => on_the_way(" AND queue <> 'default' AND queue = ", queue),
        Along::Owner => on_the_way(" AND owner = ", owner),
        Along::All => {}
    }
    if let Some(since) = since {
        query.push(" AND finished_at >= ").push_bind(*since);
    }
    if let Some(until) = until {
        query.push(" AND finished_at <= ").push_bind(*until);
    }
    let (sign, direction) = if order == Order::LatestFirst { ("<", "DESC") } else { (">", "ASC") };
    if let Some(LetterPlace { finished_at, seq }) = after {
        query.push(format_args!(" AND (finished_at, seq) {sign} (")).push_bind(finished_at).push(", ");
        query.push_bind(seq).push(")");
    }
    query.push(format_args!(" ORDER BY finished_at {direction}, seq {direction} LIMIT "));
    query.push_bind(i64::try_from(scan).unwrap_or(i64::MAX));
    query
}
