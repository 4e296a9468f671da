//! The rows of API keys. How many tasks of each are unfinished is counted by triggers.

use protocol::timestamp::now_ms;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::open::{OpenError, connect_beside};
use super::{Store, StoreError, UnixMs};
use crate::key::{Scope, SecretHash, Token};

/// What a key may do at most; `None` is as much as anybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests a second, each task of a batch counted as one.
    pub requests: Option<u32>,
    /// Unfinished tasks.
    pub open_tasks: Option<u32>,
    /// Bytes of the arguments of unfinished tasks.
    pub waiting_bytes: Option<u64>,
}

/// A key as it is kept.
#[derive(Clone)]
pub struct ApiKey {
    /// Names it, and is the owner of its tasks.
    pub id: String,
    /// For people.
    pub name: String,
    /// Of its secret.
    pub hash: SecretHash,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// How much of it.
    pub limits: KeyLimits,
    /// When it was made.
    pub created_at: UnixMs,
    /// Since when it is refused.
    pub revoked_at: Option<UnixMs>,
    /// Unfinished tasks.
    pub open_tasks: i64,
    /// Bytes of their arguments.
    pub waiting_bytes: i64,
}

impl Store {
    /// Every key that there ever was.
    ///
    /// # Errors
    /// The database failed.
    pub async fn api_keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        Ok(sqlx::query(ALL).try_map(|row| api_key(&row)).fetch_all(&self.readers).await?)
    }
}

/// The keys of a store, whether or not a producer runs on it.
pub struct Keybook(SqliteConnection);

impl Keybook {
    /// Opens the store at a `sqlite:` URL, creating it when missing. Its owner's lock is taken only while the schema is
    /// brought up to date.
    ///
    /// # Errors
    /// See [`OpenError`]; a store of another version is in use.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        Ok(Self(connect_beside(url).await?))
    }

    /// Adds a key.
    ///
    /// # Errors
    /// The database failed, or has one with this id.
    pub async fn add(
        &mut self,
        token: &Token,
        name: &str,
        scopes: &[Scope],
        limits: KeyLimits,
    ) -> Result<(), sqlx::Error> {
        let scopes: Vec<&str> = scopes.iter().map(|scope| scope.name()).collect();
        let add = sqlx::query(
            "INSERT INTO api_keys (id, name, hash, scopes, max_requests, max_open_tasks, max_waiting_bytes, created_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        );
        let add = add.bind(&token.id).bind(name).bind(&token.secret.hash().0[..]).bind(scopes.join(" "));
        let bytes = limits.waiting_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        let add = add.bind(limits.requests).bind(limits.open_tasks).bind(bytes).bind(now_ms());
        add.execute(&mut self.0).await.map(drop)
    }

    /// Every key, the oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn all(&mut self) -> Result<Vec<ApiKey>, sqlx::Error> {
        sqlx::query(ALL).try_map(|row| api_key(&row)).fetch_all(&mut self.0).await
    }

    /// Revokes a key, from the first time on; whether there is one with this id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn revoke(&mut self, id: &str) -> Result<bool, sqlx::Error> {
        let revoke = sqlx::query("UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?");
        Ok(revoke.bind(now_ms()).bind(id).execute(&mut self.0).await?.rows_affected() > 0)
    }
}

const ALL: &str = "SELECT * FROM api_keys ORDER BY created_at, id";

fn api_key(row: &SqliteRow) -> Result<ApiKey, sqlx::Error> {
    let hash: Vec<u8> = row.try_get("hash")?;
    let hash = hash.try_into().map_err(|_| sqlx::Error::Decode("a hash of another length".into()))?;
    let scopes: &str = row.try_get("scopes")?;
    let bytes: Option<i64> = row.try_get("max_waiting_bytes")?;
    Ok(ApiKey {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        hash: SecretHash(hash),
        scopes: Scope::ALL.into_iter().filter(|scope| scopes.split(' ').any(|name| name == scope.name())).collect(),
        limits: KeyLimits {
            requests: row.try_get("max_requests")?,
            open_tasks: row.try_get("max_open_tasks")?,
            waiting_bytes: bytes.and_then(|bytes| bytes.try_into().ok()),
        },
        created_at: row.try_get("created_at")?,
        revoked_at: row.try_get("revoked_at")?,
        open_tasks: row.try_get("open_tasks")?,
        waiting_bytes: row.try_get("waiting_bytes")?,
    })
}
