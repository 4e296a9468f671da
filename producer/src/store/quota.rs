//! Keeps the tasks of a key within its limits. It looks in the transaction that stores them, so however many submit at
//! once, no more get in than may. What a running task submits is counted and let in: nobody could be told.

use std::collections::HashMap;

use sqlx::SqliteConnection;

use super::NewTask;
use super::column::json;

/// The limit that a task is beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Unfinished tasks of the key, at most so many.
    OpenTasks(u32),
    /// Bytes of the arguments of its unfinished tasks, at most so many.
    WaitingBytes(u64),
}

impl std::fmt::Display for Excess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OpenTasks(max) => write!(f, "is beyond the {max} unfinished tasks that this key may have"),
            Self::WaitingBytes(max) => {
                write!(f, "is beyond the {max} bytes of arguments that this key's unfinished tasks may have")
            }
        }
    }
}

/// A key's limits and what is used of them.
#[derive(sqlx::FromRow)]
struct Room {
    id: String,
    max_open_tasks: Option<u32>,
    max_waiting_bytes: Option<i64>,
    open_tasks: i64,
    waiting_bytes: i64,
}

const ROOM: &str = "SELECT id, max_open_tasks, max_waiting_bytes, open_tasks, waiting_bytes FROM api_keys
    WHERE id IN (SELECT value FROM json_each(?))
        AND (max_open_tasks IS NOT NULL OR max_waiting_bytes IS NOT NULL)";

/// Says of each task, in order, which limit it is beyond, as if those before it that are within theirs were stored.
pub(super) async fn excess(
    connection: &mut SqliteConnection,
    tasks: &[NewTask],
) -> Result<Vec<Option<Excess>>, sqlx::Error> {
    let mut owners: Vec<&str> = tasks.iter().filter_map(limited).collect();
    owners.sort_unstable();
    owners.dedup();
    if owners.is_empty() {
        return Ok(vec![None; tasks.len()]);
    }
    let mut rooms = rooms(connection, &owners).await?;
    Ok(tasks.iter().map(|task| rooms.get_mut(limited(task)?)?.admit(bytes(task))).collect())
}

/// The owner of a task whose submitter can be refused.
fn limited(task: &NewTask) -> Option<&str> {
    task.owner.as_deref().filter(|_| task.parent.is_none())
}

/// A task that is to be unfinished again: its owner and the bytes of its arguments.
pub(super) struct Reopened<'a> {
    pub(super) owner: Option<&'a str>,
    pub(super) bytes: i64,
}

/// The first limit that a replay of these is beyond, and how many before it are within theirs.
pub(super) async fn excess_of_replays(
    connection: &mut SqliteConnection,
    tasks: &[Reopened<'_>],
) -> Result<(usize, Option<Excess>), sqlx::Error> {
    let mut owners: Vec<&str> = tasks.iter().filter_map(|task| task.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    if owners.is_empty() {
        return Ok((tasks.len(), None));
    }
    let mut rooms = rooms(connection, &owners).await?;
    let mut beyond = |task: &Reopened<'_>| rooms.get_mut(task.owner?)?.admit(task.bytes);
    let first = tasks.iter().enumerate().find_map(|(place, task)| Some((place, beyond(task)?)));
    Ok(first.map_or((tasks.len(), None), |(place, excess)| (place, Some(excess))))
}

async fn rooms(connection: &mut SqliteConnection, owners: &[&str]) -> Result<HashMap<String, Room>, sqlx::Error> {
    let rooms: Vec<Room> = sqlx::query_as(ROOM).bind(json(&owners)?).fetch_all(connection).await?;
    Ok(rooms.into_iter().map(|room| (room.id.clone(), room)).collect())
}

fn bytes(task: &NewTask) -> i64 {
    i64::try_from(task.args.get().len() + task.kwargs.get().len()).unwrap_or(i64::MAX)
}

impl Room {
    fn admit(&mut self, bytes: i64) -> Option<Excess> {
        let bytes = self.waiting_bytes.saturating_add(bytes);
        if let Some(max) = self.max_open_tasks.filter(|max| self.open_tasks >= i64::from(*max)) {
            return Some(Excess::OpenTasks(max));
        }
        if let Some(max) = self.max_waiting_bytes.filter(|max| bytes > *max) {
            return Some(Excess::WaitingBytes(max.try_into().unwrap_or(0)));
        }
        (self.open_tasks, self.waiting_bytes) = (self.open_tasks + 1, bytes);
        None
    }
}
