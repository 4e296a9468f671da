//! A file beside the database that holds room on its disk, to be given back when the disk is full: a full disk refuses
//! deletes too, for they are written first. While it is gone tasks end, are revoked and are deleted, and no task is
//! accepted.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;
use sqlx::error::DatabaseError;
use tokio::task::spawn_blocking;

/// Bytes. As much as the log of changes takes before it goes into the database, which then grows by as much, twice.
const SIZE: u64 = 32 * 1024 * 1024;
/// How often it is tried to get the room back.
const AGAIN: Duration = Duration::from_secs(1);
/// SQLite's codes for a write that the disk did not take: `FULL`; `IOERR_WRITE`, as beyond a quota; `IOERR_SHMSIZE`.
const NO_ROOM: [&str; 3] = ["13", "778", "4874"];

pub(super) struct Reserve {
    path: PathBuf,
    is_held: bool,
    tried: Instant,
}

impl Reserve {
    /// Holds room for a database, if there is enough.
    pub(super) async fn beside(database: &Path) -> Self {
        let path = database.with_added_extension("reserve");
        let mut reserve = Self { path, is_held: false, tried: Instant::now() };
        if let Err(error) = reserve.take().await {
            tracing::warn!(%error, "the store's disk has no room to spare; no task is accepted");
        }
        reserve
    }

    /// Whether it holds room, which it tries to get back when it does not.
    pub(super) async fn is_held(&mut self) -> bool {
        if !self.is_held && self.tried.elapsed() >= AGAIN && self.take().await.is_ok() {
            tracing::info!("the store's disk has room again; tasks are accepted");
        }
        self.is_held
    }

    async fn take(&mut self) -> io::Result<()> {
        let path = self.path.clone();
        let taken = spawn_blocking(move || take(&path)).await.map_err(io::Error::other).flatten();
        self.is_held = taken.is_ok();
        self.tried = Instant::now();
        taken
    }

    /// Gives the room back when that is what a write lacked; whether it did.
    pub(super) async fn release_for(&mut self, error: &sqlx::Error) -> bool {
        if !self.is_held || !is_for_want_of_room(error) {
            return false;
        }
        let path = self.path.clone();
        match spawn_blocking(move || fs::remove_file(path)).await.map_err(io::Error::other).flatten() {
            Ok(()) => {
                tracing::error!("the store's disk is full: its reserve is given back, and no task is accepted");
                self.is_held = false;
                self.tried = Instant::now();
            }
            Err(error) => tracing::error!(%error, "the reserve of the store's disk cannot be given back"),
        }
        !self.is_held
    }
}

fn is_for_want_of_room(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| NO_ROOM.contains(&code.as_ref()))
}

/// Twice as much must be there: else it would be taken and given back in turns.
fn take(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    if file.metadata()?.len() == SIZE {
        return allocate(&file, SIZE);
    }
    let disk = fstatvfs(&file)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let taken = if free < 2 * SIZE { Err(io::ErrorKind::StorageFull.into()) } else { allocate(&file, 2 * SIZE) };
    let taken = taken.and_then(|()| file.set_len(SIZE));
    taken.inspect_err(|_| drop(fs::remove_file(path)))
}

fn allocate(mut file: &File, size: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        // A file system that cannot: NFS, ZFS.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => io::copy(&mut io::repeat(0).take(size), &mut file).map(drop),
        allocated => Ok(allocated?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn room_is_held_given_back_and_taken_again() {
        let dir = tempfile::TempDir::new().unwrap();
        let (database, path) = (dir.path().join("a.db"), dir.path().join("a.db.reserve"));
        let mut reserve = Reserve::beside(&database).await;
        let held = fs::metadata(&path).unwrap();
        assert!(reserve.is_held().await);
        assert_eq!((held.len(), held.blocks() * 512 / SIZE), (SIZE, 1), "it is there in fact");
        assert!(Reserve::beside(&database).await.is_held, "that of the process before is kept");
        reserve.release_for(&sqlx::Error::RowNotFound).await;
        assert!(reserve.is_held);
        reserve.release_for(&full().await).await;
        assert_eq!((reserve.is_held().await, path.exists()), (false, false), "not at once again");
        reserve.tried = reserve.tried.checked_sub(AGAIN).unwrap();
        assert_eq!((reserve.is_held().await, path.exists()), (true, true));
    }

    /// What SQLite says when it may not grow.
    async fn full() -> sqlx::Error {
        use sqlx::{Connection, SqliteConnection};
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::raw_sql("PRAGMA max_page_count = 2; CREATE TABLE a (b)").execute(&mut connection).await.unwrap();
        let insert = sqlx::query("INSERT INTO a VALUES (zeroblob(100000))");
        insert.execute(&mut connection).await.unwrap_err()
    }
}
