//! Gives tasks that were given up or revoked one more attempt. This is the only way out of a terminal state.
//!
//! A row goes on at the next attempt, which no report of its life before reaches (`Standing::replayed`), and with the next
//! publish, so that a late mark or loss of an earlier one is not taken for its own.

use protocol::faults::{Point, point};
use protocol::state::State;
use serde_json::value::RawValue;
use sqlx::{Row, SqliteConnection};

use super::column::json;
use super::dead_letters::{LetterFilter, Order};
use super::quota::{Reopened, excess_of_replays};
use super::write::{Changes, Write};
use super::{Excess, Stage, Store, StoreError, UnixMs, Whose, attempts, read};

/// Letters that one request replays or counts, at most.
const MAX_REPLAYED: u64 = 100_000;

/// By which call a replay was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The task's own.
    Task,
    /// That of one dead letter.
    Letter,
    /// That of many.
    Letters,
}

impl Route {
    const ALL: [Self; 3] = [Self::Task, Self::Letter, Self::Letters];

    /// The word for it, in the store and in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Letter => "dead-letter",
            Self::Letters => "dead-letters",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.name() == name)
    }
}

/// What a task is called with from now on; what is `None` stays.
#[derive(Debug, Clone)]
pub struct Edit {
    /// A JSON array.
    pub args: Option<Box<RawValue>>,
    /// A JSON object.
    pub kwargs: Option<Box<RawValue>>,
}

/// One task to be replayed.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Its id.
    pub id: String,
    /// Of [`Route::Letter`] only what is a dead letter is replayed, of [`Route::Task`] what was revoked, too.
    pub route: Route,
    /// Among these tasks.
    pub whose: Whose,
    /// What is to be another.
    pub edit: Option<Edit>,
    /// The time.
    pub now: UnixMs,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// It goes on.
    Done,
    /// It had been replayed and goes on since then: nothing changed.
    Already,
    /// It has not ended, and nothing changed.
    Open,
    /// It has succeeded, and nothing changed.
    Succeeded,
    /// Its key may have no more, and nothing changed.
    Beyond(Excess),
    /// It is a child that could not be accepted, and so there is nothing to be run.
    NeverAccepted,
    /// There is no such task, or no such dead letter.
    Unknown,
}

/// How many are replayed.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Tasks a second; all at once when `None`.
    pub rate: Option<f64>,
    /// Due and unfinished rows, at most, where all are due at once.
    pub cap: u64,
    /// The time of the first.
    pub start: UnixMs,
}

/// What a replay of many did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bulk {
    /// Letters replayed, or counted.
    pub letters: u64,
    /// It ended at the most that one request takes, at the cap or at a limit, and there may be more.
    pub more: bool,
    /// The limit of a key at which it ended.
    pub beyond: Option<Excess>,
}

/// Rows to be replayed where they are dead letters still, each with when it is due.
pub(super) struct ReplayChunk {
    letters: Vec<(i64, UnixMs)>,
    now: UnixMs,
}

impl Store {
    /// Replays one task.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn replay(&self, replay: Replay) -> Result<Replayed, StoreError> {
        let replayed = self.write(|done| Write::Replay(replay, done)).await;
        point(Point::ReplayStored).await;
        replayed
    }

    /// Replays the dead letters of now that match, oldest first. What a rate holds back waits in the store for its time,
    /// so nothing of it depends on this process, and what a crash leaves out are dead letters still. It goes on when its
    /// caller has gone.
    ///
    /// # Errors
    /// The store failed; what was replayed before stays so.
    pub async fn replay_letters(&self, filter: &LetterFilter, pace: Pace) -> Result<Bulk, StoreError> {
        let (store, filter) = (self.clone(), filter.clone());
        let replay = self.tracker.spawn(async move { store.replay_found(&filter, pace).await });
        replay.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn replay_found(&self, filter: &LetterFilter, pace: Pace) -> Result<Bulk, StoreError> {
        let mut bulk = Bulk::default();
        let (filter, mut after, mut found) = (filter.until_at_most(pace.start), None, 0_u64);
        loop {
            let some = self.find_letters(&filter, Order::OldestFirst, after).await?;
            // What is due later does not count, as with any task.
            let room = if pace.rate.is_none() { pace.cap.saturating_sub(self.outstanding()) } else { MAX_REPLAYED };
            let numbered = (found..MAX_REPLAYED.min(found.saturating_add(room))).zip(&some.places);
            let letters: Vec<(i64, UnixMs)> = numbered.map(|(n, at)| (at.seq, pace.due(n))).collect();
            let is_cut = letters.len() < some.places.len();
            found += letters.len() as u64;
            if !letters.is_empty() {
                let chunk = ReplayChunk { letters, now: pace.start };
                let (replayed, beyond) = self.write(|done| Write::ReplayLetters(chunk, done)).await?;
                point(Point::ReplayStored).await;
                bulk.letters += replayed;
                if beyond.is_some() {
                    return Ok(Bulk { more: true, beyond, ..bulk });
                }
            }
            let Some(next) = some.next.filter(|_| !is_cut) else { return Ok(Bulk { more: is_cut, ..bulk }) };
            after = Some(next);
        }
    }

    /// Counts what [`Store::replay_letters`] would replay, the cap apart.
    ///
    /// # Errors
    /// The database failed.
    pub async fn count_letters(&self, filter: &LetterFilter, now: UnixMs) -> Result<Bulk, StoreError> {
        let (filter, mut after, mut letters) = (filter.until_at_most(now), None, 0);
        loop {
            let page = self.find_letters(&filter, Order::OldestFirst, after).await?;
            letters += page.places.len() as u64;
            if letters > MAX_REPLAYED {
                return Ok(Bulk { letters: MAX_REPLAYED, more: true, beyond: None });
            }
            let Some(next) = page.next else { return Ok(Bulk { letters, more: false, beyond: None }) };
            after = Some(next);
        }
    }
}

impl Pace {
    /// When the letter of that number, from 0, is due.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a time to the millisecond")]
    fn due(&self, number: u64) -> UnixMs {
        let wait = self.rate.map_or(0.0, |rate| number as f64 * 1000.0 / rate);
        self.start.saturating_add(wait as i64)
    }
}

/// Replays one task, if it may be.
pub(super) async fn replay(
    connection: &mut SqliteConnection,
    replay: &Replay,
    changes: &mut Changes,
) -> Result<Replayed, sqlx::Error> {
    let row = sqlx::query(read::ONE).bind(&replay.id).bind(replay.whose.owner());
    let row = row.fetch_optional(&mut *connection).await?;
    let Some(row) = row else { return Ok(Replayed::Unknown) };
    let state = read::state(&row)?;
    if read::was_never_accepted(&row)? {
        return Ok(if replay.route == Route::Task { Replayed::NeverAccepted } else { Replayed::Unknown });
    }
    let is_letter = state == State::Failure && row.try_get::<Option<UnixMs>, _>("dismissed_at")?.is_none();
    let may_be = match replay.route {
        Route::Task => matches!(state, State::Failure | State::Revoked),
        Route::Letter | Route::Letters => is_letter,
    };
    if may_be {
        let length = |edited: Option<&RawValue>, column| match edited {
            Some(edited) => Ok(edited.get().len()),
            None => row.try_get::<&str, _>(column).map(str::len),
        };
        let edit = replay.edit.as_ref();
        let args = length(edit.and_then(|edit| edit.args.as_deref()), "args")?;
        let kwargs = length(edit.and_then(|edit| edit.kwargs.as_deref()), "kwargs")?;
        let bytes = i64::try_from(args + kwargs).unwrap_or(i64::MAX);
        let reopened = Reopened { owner: row.try_get("owner")?, bytes };
        if let (_, Some(excess)) = excess_of_replays(connection, &[reopened]).await? {
            return Ok(Replayed::Beyond(excess));
        }
        let again = Again { route: replay.route, edit: replay.edit.as_ref(), now: replay.now };
        again.rows(connection, &[(row.try_get("seq")?, replay.now)], changes).await?;
        return Ok(Replayed::Done);
    }
    let was_replayed = row.try_get::<u32, _>("replayed_from")? > 0;
    Ok(match (state, replay.route) {
        // An edit that is not made must not look as if it were.
        (state, _) if !state.is_terminal() && was_replayed && replay.edit.is_none() => Replayed::Already,
        (state, Route::Task) if !state.is_terminal() => Replayed::Open,
        (state, Route::Letter) if !state.is_terminal() && was_replayed => Replayed::Open,
        (State::Success, Route::Task) => Replayed::Succeeded,
        _ => Replayed::Unknown,
    })
}

const STILL_LETTERS: &str = "SELECT r.value, t.owner, length(t.args) + length(t.kwargs) FROM json_each(?) AS r CROSS JOIN tasks AS t ON t.seq = r.value ->> 0
    WHERE t.state = 'FAILURE' AND t.dismissed_at IS NULL AND t.finished_at <= ?";

/// Replays what are dead letters still, and were given up by then, up to a limit of their keys; says how many, and which
/// limit that was.
pub(super) async fn replay_letters(
    connection: &mut SqliteConnection,
    ReplayChunk { letters, now }: &ReplayChunk,
    changes: &mut Changes,
) -> Result<(u64, Option<Excess>), sqlx::Error> {
    let still: Vec<(String, Option<String>, i64)> =
        sqlx::query_as(STILL_LETTERS).bind(json(letters)?).bind(now).fetch_all(&mut *connection).await?;
    let reopened: Vec<Reopened<'_>> =
        still.iter().map(|(_, owner, bytes)| Reopened { owner: owner.as_deref(), bytes: *bytes }).collect();
    let (within, beyond) = excess_of_replays(connection, &reopened).await?;
    let still: Result<Vec<(i64, UnixMs)>, _> =
        still[..within].iter().map(|(letter, ..)| serde_json::from_str(letter)).collect();
    let still = still.map_err(|error| sqlx::Error::Decode(error.into()))?;
    let again = Again { route: Route::Letters, edit: None, now: *now };
    again.rows(connection, &still, changes).await?;
    Ok((still.len() as u64, beyond))
}

const PROVENANCE: &str = "INSERT INTO replays (task_seq, attempt, at, route, args, kwargs)
    SELECT seq, min(retries + 1, 4294967295), ?2, ?3, iif(?4, args, NULL), iif(?4, kwargs, NULL)
    FROM tasks WHERE seq IN (SELECT value ->> 0 FROM json_each(?1))
    ON CONFLICT DO UPDATE SET at = excluded.at, route = excluded.route, args = excluded.args, kwargs = excluded.kwargs";

/// The one statement that leads out of a terminal state; `Standing::replayed` in its first line. An expiry that has passed
/// when it is due is lifted, or it would end at once. Its revocation is over, and no worker takes the one it was told
/// for this life's, which began later.
const REOPEN: &str =
    "UPDATE tasks SET state = 'PENDING', rank = 0, retries = min(retries + 1, 4294967295), report_seq = 0,
        replayed_from = min(retries + 1, 4294967295), replayed_at = max(?2, coalesce(revoked_at, 0) + 1),
        stage = iif(r.due_at > ?2, 'scheduled', 'waiting'), due_at = r.due_at, publishes = publishes + 1, lost = 0, alive_at = 0,
        expires = iif(expires <= r.due_at, NULL, expires), args = coalesce(?3, args), kwargs = coalesce(?4, kwargs),
        worker = NULL, progress = NULL, result = NULL, error = NULL, retry_at = NULL, started_at = NULL,
        finished_at = NULL, dismissed_at = NULL, revoked_at = NULL, revoke_reason = NULL, revoked_in_doubt = 0
    FROM (SELECT value ->> 0 AS seq, value ->> 1 AS due_at FROM json_each(?1)) AS r
    WHERE tasks.seq = r.seq
    RETURNING id, stage";

/// How rows are replayed.
struct Again<'a> {
    route: Route,
    edit: Option<&'a Edit>,
    now: UnixMs,
}

impl Again<'_> {
    /// Replays rows that have ended, each due at its time.
    async fn rows(
        &self,
        connection: &mut SqliteConnection,
        rows: &[(i64, UnixMs)],
        changes: &mut Changes,
    ) -> Result<(), sqlx::Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = json(&rows)?;
        attempts::ended(connection, &rows).await?;
        let provenance = sqlx::query(PROVENANCE).bind(&rows).bind(self.now).bind(self.route.name());
        provenance.bind(self.edit.is_some()).execute(&mut *connection).await?;
        let args = self.edit.and_then(|edit| edit.args.as_deref()).map(RawValue::get);
        let kwargs = self.edit.and_then(|edit| edit.kwargs.as_deref()).map(RawValue::get);
        let reopen = sqlx::query_as(REOPEN).bind(rows).bind(self.now).bind(args).bind(kwargs);
        let reopened: Vec<(String, String)> = reopen.fetch_all(connection).await?;
        for (id, stage) in &reopened {
            let is_due = stage == Stage::Waiting.name();
            changes.outstanding += i64::from(is_due);
            changes.due |= is_due;
            changes.touched(id);
        }
        // By a time that is left, its own or that of its expiry.
        changes.clock = true;
        Ok(())
    }
}
