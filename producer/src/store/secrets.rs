//! The secrets that callbacks are signed with. An operator's command reads and changes them beside a running producer.

use sqlx::SqliteConnection;

use super::open::{OpenError, connect_beside};
use super::write::Write;
use super::{Store, StoreError, UnixMs};

/// How long a secret that was replaced signs beside the new one: a day, for receivers to take that over.
const OVERLAP_MS: i64 = 24 * 60 * 60 * 1000;
/// Secrets that sign at once, the newest: whoever replaces more in a day means the old ones to go.
const MAX_SECRETS: i64 = 4;

/// A secret, never shown but by the command.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

const KNOWN: &str = "SELECT ?1 = '' OR EXISTS (SELECT 1 FROM api_keys WHERE id = ?1)";
const CURRENT: &str = "SELECT secret FROM callback_secrets WHERE owner = ? AND retires_at IS NULL";
const SIGNING: &str = "SELECT secret FROM callback_secrets WHERE owner = ?1 AND (retires_at IS NULL OR retires_at > ?2)
    ORDER BY seq DESC LIMIT ?3";
const MAKE: &str = "INSERT INTO callback_secrets (owner, secret, created_at) VALUES (?1, ?2, ?3)
    ON CONFLICT (owner) WHERE retires_at IS NULL DO NOTHING";
const FORGET: &str = "DELETE FROM callback_secrets WHERE owner = ?1 AND retires_at <= ?2";
const RETIRE: &str = "UPDATE callback_secrets SET retires_at = ?2 WHERE owner = ?1 AND retires_at IS NULL";

impl Store {
    /// What the owner's callbacks are signed with, the newest first; none before the first was made.
    ///
    /// # Errors
    /// The database failed.
    pub async fn secrets(&self, owner: &str, now: UnixMs) -> Result<Vec<Secret>, StoreError> {
        let signing = sqlx::query_scalar(SIGNING).bind(owner).bind(now).bind(MAX_SECRETS);
        let signing: Vec<Vec<u8>> = signing.fetch_all(&self.readers).await?;
        Ok(signing.into_iter().map(Secret).collect())
    }

    /// Gives the owner this secret, unless there is one.
    ///
    /// # Errors
    /// The store failed and nothing was kept.
    pub async fn make_secret(&self, owner: &str, secret: Secret, now: UnixMs) -> Result<(), StoreError> {
        self.write(|done| Write::Secret(owner.to_owned(), secret, now, done)).await
    }
}

pub(super) async fn make(
    connection: &mut SqliteConnection,
    owner: &str,
    Secret(secret): &Secret,
    now: UnixMs,
) -> Result<(), sqlx::Error> {
    sqlx::query(MAKE).bind(owner).bind(secret).bind(now).execute(connection).await.map(drop)
}

/// The owner's secret in the store at that URL: `fresh` when it had none or `rotates`; `None` when the owner is no API key
/// of it. A producer may be running on it.
///
/// # Errors
/// The database cannot be opened or written.
pub async fn secret_at(
    url: &str,
    owner: &str,
    fresh: &Secret,
    rotates: bool,
    now: UnixMs,
) -> Result<Option<Secret>, OpenError> {
    let mut connection = connect_beside(url).await?;
    // IMMEDIATE: a transaction that upgrades later is refused as busy at once, whatever the busy timeout.
    let mut transaction = sqlx::Connection::begin_with(&mut connection, "BEGIN IMMEDIATE").await?;
    let is_known: bool = sqlx::query_scalar(KNOWN).bind(owner).fetch_one(&mut *transaction).await?;
    if !is_known {
        return Ok(None);
    }
    if rotates {
        sqlx::query(FORGET).bind(owner).bind(now).execute(&mut *transaction).await?;
        sqlx::query(RETIRE).bind(owner).bind(now.saturating_add(OVERLAP_MS)).execute(&mut *transaction).await?;
    }
    make(&mut transaction, owner, fresh, now).await?;
    let secret = sqlx::query_scalar(CURRENT).bind(owner).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Some(Secret(secret)))
}
