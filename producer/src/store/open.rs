//! Opens the database: one owner, durable commits, one writer, a few readers.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::control::Control;
use super::reserve::Reserve;
use super::watch::Watches;
use super::write::Write;
use super::writer::Writer;
use super::{StoreError, Wake};

/// Requests that may wait for the next commit.
const WRITE_QUEUE: usize = 4096;
const READERS: u32 = 4;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Only SQLite is supported.
    #[error("DATABASE_URL: not a sqlite: URL")]
    Url,
    /// The file that guards the database.
    #[error("DATABASE_URL: cannot lock {path}: {source}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another producer has it: two writers would publish everything twice.
    #[error("DATABASE_URL: another producer uses this store ({0} is locked)")]
    InUse(PathBuf),
    /// SQLite's own words.
    #[error("DATABASE_URL: {0}")]
    Database(sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("DATABASE_URL: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The file is damaged; starting would lose what was accepted.
    #[error(
        "DATABASE_URL: the database is damaged: {0}; it is left as it is: restore it, or move it away to start with an \
        empty one"
    )]
    Corrupt(String),
}

/// SQLite's codes for a database that contradicts itself, and for a file that is none.
const DAMAGED: [u32; 2] = [11, 26];

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(DatabaseError::code);
        // The codes of its kinds are above these by a multiple of 256.
        let damaged =
            code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| DAMAGED.contains(&(code & 0xFF)));
        if damaged { Self::Corrupt(error.to_string()) } else { Self::Database(error) }
    }
}

impl OpenError {
    /// Gives the room back if that is what was lacking, which a full disk does also to who only opens the database.
    async fn release(&self, reserve: &mut Reserve) -> bool {
        use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
        if let Self::Database(error) | Self::Migrate(Execute(error) | ExecuteMigration(error, _)) = self {
            return reserve.release_for(error).await;
        }
        false
    }
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    pub(super) readers: SqlitePool,
    pub(super) writes: mpsc::Sender<Write>,
    pub(super) outstanding: Arc<AtomicI64>,
    pub(super) control: Arc<Control>,
    pub(super) watches: Arc<Watches>,
    /// What goes on when its caller has gone.
    pub(super) tracker: TaskTracker,
    wake: Arc<Wake>,
    id: Arc<str>,
    _lock: Arc<File>,
}

impl Store {
    /// Opens the database at a `sqlite:` URL, creating it when missing, and starts its writer on `tracker`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(url: &str, tracker: &TaskTracker) -> Result<Self, OpenError> {
        let options = options(url)?;
        let lock = lock(options.get_filename())?;
        let mut reserve = Reserve::beside(options.get_filename()).await;
        let connected = match connect(&options).await {
            Err(error) if error.release(&mut reserve).await => connect(&options).await,
            connected => connected,
        };
        let (mut connection, id) = connected?;
        let outstanding = Arc::new(AtomicI64::new(count_outstanding(&mut connection).await?));
        let control = Arc::new(Control::load(&mut connection).await?);
        let readers = SqlitePoolOptions::new().max_connections(READERS).test_before_acquire(false);
        let readers = readers.connect_with(options.read_only(true)).await?;
        let (writes, requests) = mpsc::channel(WRITE_QUEUE);
        let store = Self {
            readers,
            writes,
            outstanding,
            control,
            watches: Arc::default(),
            tracker: tracker.clone(),
            wake: Arc::default(),
            id: id.into(),
            _lock: Arc::new(lock),
        };
        let Self { wake, outstanding, control, watches, .. } = store.clone();
        let committing = Writer::new(connection, reserve, requests, wake, outstanding, control, watches);
        tracker.spawn(committing.await?.run());
        Ok(store)
    }

    /// The id that was made with the store; its reply queue is named after it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who to wake.
    #[must_use]
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Due and unfinished rows, which `OUTBOX_CAP` bounds.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }

    /// Hands a request to the writer and awaits its commit.
    pub(super) async fn write<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Write,
    ) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        self.writes.send(request(done)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

fn options(url: &str) -> Result<SqliteConnectOptions, OpenError> {
    let options = SqliteConnectOptions::from_str(url).map_err(|_| OpenError::Url)?;
    // FULL: a commit is on disk before it is answered. Group commit pays for it.
    Ok(options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .pragma("wal_autocheckpoint", "4000")
        .disable_statement_logging())
}

/// A connection for an operator's command. The producer that may run on the store has brought its schema up to date;
/// when none does, this does.
pub(super) async fn connect_beside(url: &str) -> Result<SqliteConnection, OpenError> {
    let options = options(url)?;
    let lock = match lock(options.get_filename()) {
        Err(OpenError::InUse(_)) => None,
        lock => Some(lock?),
    };
    let path = options.get_filename().to_owned();
    let mut connection = options.connect().await?;
    if lock.is_some() {
        MIGRATIONS.run(&mut connection).await?;
    } else if !is_current(&mut connection).await {
        return Err(OpenError::InUse(path));
    }
    Ok(connection)
}

/// Whether the schema is this version's.
async fn is_current(connection: &mut SqliteConnection) -> bool {
    let latest: Result<Option<i64>, _> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await;
    latest.is_ok_and(|latest| latest == MIGRATIONS.iter().map(|migration| migration.version).max())
}

/// sqlx's migration lock does nothing on SQLite, so one owner is made sure of by a file lock, held for the process.
fn lock(database: &Path) -> Result<File, OpenError> {
    let path = database.with_added_extension("lock");
    let failed = |source| OpenError::Lock { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path)),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The database with this version's schema, and the store's id.
async fn connect(options: &SqliteConnectOptions) -> Result<(SqliteConnection, String), OpenError> {
    let mut connection = options.connect().await?;
    check(&mut connection).await?;
    MIGRATIONS.run(&mut connection).await?;
    let id = store_id(&mut connection).await?;
    Ok((connection, id))
}

async fn check(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(connection).await?;
    if verdict == "ok" { Ok(()) } else { Err(OpenError::Corrupt(verdict)) }
}

async fn store_id(connection: &mut SqliteConnection) -> Result<String, sqlx::Error> {
    let made = uuid::Uuid::now_v7().simple().to_string();
    let insert = "INSERT INTO store (id) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM store)";
    sqlx::query(insert).bind(made).execute(&mut *connection).await?;
    sqlx::query_scalar("SELECT id FROM store").fetch_one(connection).await
}

async fn count_outstanding(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    // What is not due yet does not count, unless it was due before and the broker lost it.
    let count = "SELECT (SELECT sum(tasks) FROM counts WHERE place IN ('waiting', 'queued', 'running', 'retrying'))
        + (SELECT count(*) FROM tasks WHERE stage = 'scheduled' AND lost > 0)";
    sqlx::query_scalar(count).fetch_one(connection).await
}
