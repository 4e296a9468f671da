//! Accepts tasks under their clients' idempotency keys. A key is written with its task or not at all.

use std::collections::HashMap;

use sqlx::SqliteConnection;

use super::column::json;
use super::write::{Changes, Write};
use super::{NewTask, Placed, Store, StoreError, UnixMs, insert};

/// How long a key is remembered: a day.
const KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// Keys that one statement forgets.
const CHUNK: i64 = 5_000;

/// A client's own name for a submit.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// The API key of which it is, empty without keys.
    pub owner: String,
    /// As it was sent.
    pub key: String,
    /// What was submitted under it: equal fingerprints are equal submits.
    pub fingerprint: String,
}

/// What became of a submit with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// The task is stored.
    Stored,
    /// The same was submitted before: the id of the task that it became.
    Replayed(String),
}

impl Store {
    /// Stores the task and its key, unless the key is known.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`], [`StoreError::Taken`], [`StoreError::Beyond`], or the store failed; nothing was written.
    pub async fn insert_once(&self, task: NewTask, key: IdempotencyKey) -> Result<Accepted, StoreError> {
        self.write(|done| Write::Keyed(vec![(task, key, done)])).await
    }

    /// The id of the task that the key stands for, `None` when it is new.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`], or the database failed.
    pub async fn replayed(&self, key: &IdempotencyKey, now: UnixMs) -> Result<Option<String>, StoreError> {
        let known: Option<(String, String)> = sqlx::query_as(
            "SELECT fingerprint, task_id FROM idempotency_keys WHERE owner = ? AND key = ? AND expires_at > ?",
        )
        .bind(&key.owner)
        .bind(&key.key)
        .bind(now)
        .fetch_optional(&self.readers)
        .await?;
        match known {
            Some((fingerprint, _)) if fingerprint != key.fingerprint => Err(StoreError::KeyReused),
            known => Ok(known.map(|(_, task_id)| task_id)),
        }
    }

    /// Forgets the keys whose day is over; says how many. More may be left.
    ///
    /// # Errors
    /// The store failed and nothing was forgotten.
    pub async fn prune_keys(&self, now: UnixMs) -> Result<u64, StoreError> {
        self.write(|done| Write::PruneKeys(now, done)).await
    }
}

/// An owner and what it calls a submit.
type Name = (String, String);

impl IdempotencyKey {
    fn name(&self) -> Name {
        (self.owner.clone(), self.key.clone())
    }
}

const KNOWN: &str = "SELECT owner, key, fingerprint, task_id FROM idempotency_keys
    WHERE (owner, key) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?)) AND expires_at > ?";

/// A key whose day is over may still be there.
const REMEMBER: &str = "INSERT INTO idempotency_keys (owner, key, fingerprint, task_id, expires_at)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?) WHERE true
    ON CONFLICT (owner, key) DO UPDATE SET fingerprint = excluded.fingerprint, task_id = excluded.task_id,
        expires_at = excluded.expires_at";

/// What the submit that is first in its group under its key became.
struct First {
    fingerprint: String,
    task_id: String,
    placed: Placed,
}

impl First {
    /// The verdict on another submit under the same key.
    fn judge(&self, key: &IdempotencyKey) -> Result<Accepted, StoreError> {
        if self.fingerprint != key.fingerprint {
            return Err(StoreError::KeyReused);
        }
        // The same submit would take the same id, and as much room.
        self.placed.verdict().map(|()| Accepted::Replayed(self.task_id.clone()))
    }
}

/// Inserts the tasks whose keys are new, the first one of each key, in one statement. Says of each submit what it became.
pub(super) async fn accept(
    connection: &mut SqliteConnection,
    submits: Vec<(NewTask, IdempotencyKey)>,
    changes: &mut Changes,
) -> Result<Vec<Result<Accepted, StoreError>>, sqlx::Error> {
    let mut firsts = known(connection, &submits).await?;
    let (mut tasks, mut keys, mut places) = (Vec::new(), Vec::new(), HashMap::new());
    for (task, key) in submits {
        let name = key.name();
        if !firsts.contains_key(&name) && !places.contains_key(&name) {
            places.insert(name, (keys.len(), tasks.len()));
            tasks.push(task);
        }
        keys.push(key);
    }
    let stored = insert::insert(connection, &tasks, changes).await?;
    remember(connection, &tasks, &keys, &stored, &places).await?;
    let mut verdicts = Vec::with_capacity(keys.len());
    for (place, key) in keys.iter().enumerate() {
        let own = places.get(&key.name()).filter(|(first, _)| *first == place);
        verdicts.push(match own {
            Some((_, task)) => {
                let (fingerprint, task_id) = (key.fingerprint.clone(), tasks[*task].id.clone());
                firsts.insert(key.name(), First { fingerprint, task_id, placed: stored[*task] });
                stored[*task].verdict().map(|()| Accepted::Stored)
            }
            None => firsts.get(&key.name()).map_or(Err(StoreError::Taken), |first| first.judge(key)),
        });
    }
    Ok(verdicts)
}

async fn known(
    connection: &mut SqliteConnection,
    submits: &[(NewTask, IdempotencyKey)],
) -> Result<HashMap<Name, First>, sqlx::Error> {
    let now = submits.iter().map(|(task, _)| task.created_at).max().unwrap_or_default();
    let keys: Vec<(&str, &str)> = submits.iter().map(|(_, key)| (key.owner.as_str(), key.key.as_str())).collect();
    let known: Vec<(String, String, String, String)> =
        sqlx::query_as(KNOWN).bind(json(&keys)?).bind(now).fetch_all(connection).await?;
    let first =
        |(owner, key, fingerprint, task_id)| ((owner, key), First { fingerprint, task_id, placed: Placed::Stored });
    Ok(known.into_iter().map(first).collect())
}

async fn remember(
    connection: &mut SqliteConnection,
    tasks: &[NewTask],
    keys: &[IdempotencyKey],
    stored: &[Placed],
    places: &HashMap<Name, (usize, usize)>,
) -> Result<(), sqlx::Error> {
    let rows: Vec<(&str, &str, &str, &str, UnixMs)> = places
        .values()
        .filter(|(_, task)| stored[*task] == Placed::Stored)
        .map(|(key, task)| {
            let (key, task) = (&keys[*key], &tasks[*task]);
            let expires = task.created_at.saturating_add(KEPT_MS);
            (key.owner.as_str(), key.key.as_str(), key.fingerprint.as_str(), task.id.as_str(), expires)
        })
        .collect();
    sqlx::query(REMEMBER).bind(json(&rows)?).execute(connection).await.map(drop)
}

const PRUNE: &str = "DELETE FROM idempotency_keys WHERE (owner, key) IN
    (SELECT owner, key FROM idempotency_keys WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)";

pub(super) async fn prune(connection: &mut SqliteConnection, now: UnixMs) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(PRUNE).bind(now).bind(CHUNK).execute(connection).await?.rows_affected())
}
