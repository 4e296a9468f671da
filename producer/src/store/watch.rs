//! Wakes those who wait for news of a task. The writer reads the row of a watched task once after each request that
//! touched it and tells it after the commit, to however many watch; what nobody watches costs it a look at a flag.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::SqliteConnection;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::column::json;
use super::read::task_row;
use super::write::Changes;
use super::{Store, StoreError, TaskRow, Whose};

/// Watchers at once.
const MAX_WATCHERS: usize = 10_000;
/// News of one task that a slow watcher finds kept; of more it misses the oldest.
const KEPT: usize = 8;

/// As many watch as may.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_WATCHERS} requests wait for news of tasks already")]
pub struct TooManyWatchers;

/// A row as it was after a request; `None` when it is gone or could not be read.
pub(super) type News = Option<Arc<TaskRow>>;

/// Which tasks are watched.
#[derive(Default)]
pub(super) struct Watches(Mutex<Table>);

#[derive(Default)]
struct Table {
    slots: HashMap<String, Slot>,
    watchers: usize,
    /// Whether a transaction is under way.
    committing: bool,
    /// What became watched during the transaction, which may have been touched unseen.
    fresh: Vec<String>,
}

struct Slot {
    news: broadcast::Sender<News>,
    watchers: usize,
}

impl Watches {
    /// A transaction begins; whether anybody watches anything.
    pub(super) fn begin(&self) -> bool {
        let mut table = self.lock();
        table.committing = true;
        table.fresh.clear();
        !table.slots.is_empty()
    }

    pub(super) fn is_watched(&self, id: &str) -> bool {
        self.lock().slots.contains_key(id)
    }

    /// The transaction has ended: tells its news and answers what became watched meanwhile, to be looked at.
    pub(super) fn end(&self, news: Vec<(String, News)>) -> Vec<String> {
        let mut table = self.lock();
        table.committing = false;
        for (id, row) in news {
            table.tell(&id, row);
        }
        std::mem::take(&mut table.fresh)
    }

    pub(super) fn tell(&self, news: Vec<(String, News)>) {
        let table = self.lock();
        for (id, row) in news {
            table.tell(&id, row);
        }
    }

    fn join(&self, id: &str) -> Result<broadcast::Receiver<News>, TooManyWatchers> {
        let mut table = self.lock();
        let table = &mut *table;
        if table.watchers >= MAX_WATCHERS {
            return Err(TooManyWatchers);
        }
        table.watchers += 1;
        table.gauge();
        if let Some(slot) = table.slots.get_mut(id) {
            slot.watchers += 1;
            return Ok(slot.news.subscribe());
        }
        let (news, receiver) = broadcast::channel(KEPT);
        table.slots.insert(id.to_owned(), Slot { news, watchers: 1 });
        if table.committing {
            table.fresh.push(id.to_owned());
        }
        Ok(receiver)
    }

    fn leave(&self, id: &str) {
        let mut table = self.lock();
        table.watchers -= 1;
        table.gauge();
        if let Some(slot) = table.slots.get_mut(id) {
            slot.watchers -= 1;
            if slot.watchers == 0 {
                table.slots.remove(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn gauge(&self) {
        metrics::gauge!("errand_watchers").set(u32::try_from(self.watchers).unwrap_or(u32::MAX));
    }

    fn tell(&self, id: &str, row: News) {
        if let Some(slot) = self.slots.get(id) {
            // All may have gone meanwhile.
            let _ = slot.news.send(row);
        }
    }
}

/// Watches a task; dropped, it frees its place.
pub struct Watch {
    id: String,
    whose: Whose,
    news: broadcast::Receiver<News>,
    /// There was news that could not be read with its commit, and has not been read since.
    unread: bool,
    store: Store,
}

impl Store {
    /// Watches a task: its news from now on are in [`Watch::changed`], so look at it after this and not before.
    ///
    /// # Errors
    /// Too many watch already.
    pub fn watch(&self, id: &str, whose: Whose) -> Result<Watch, TooManyWatchers> {
        let news = self.watches.join(id)?;
        Ok(Watch { id: id.to_owned(), whose, news, unread: false, store: self.clone() })
    }
}

impl Watch {
    /// The task as it stands.
    ///
    /// # Errors
    /// The database failed.
    pub async fn now(&self) -> Result<Option<TaskRow>, StoreError> {
        self.store.task(&self.id, &self.whose).await
    }

    /// The task after its next change, `None` when it is gone. What a read saw already may come again, and of many
    /// changes in a row the oldest may be missing; the latest never is, nor is one when this is dropped half-way.
    ///
    /// # Errors
    /// The database failed.
    pub async fn changed(&mut self) -> Result<Option<Arc<TaskRow>>, StoreError> {
        loop {
            if self.unread {
                let row = self.now().await?;
                self.unread = false;
                return Ok(row.map(Arc::new));
            }
            match self.news.recv().await {
                // An id may have been deleted and taken by somebody else.
                Ok(Some(row)) => return Ok(Some(row).filter(|row| self.whose.includes(&row.accepted))),
                Ok(None) => self.unread = true,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err(StoreError::Closed),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.store.watches.leave(&self.id);
    }
}

/// Reads what a request touched while it was watched. Called once for each report, so that of several in one commit none
/// is missed.
pub(super) async fn look(connection: &mut SqliteConnection, changes: &mut Changes) {
    if !changes.touched.is_empty() {
        let touched = std::mem::take(&mut changes.touched);
        changes.news.extend(read(connection, touched).await);
    }
}

/// That a row cannot be read must not undo a commit: its watchers are sent to read it themselves.
pub(super) async fn read(connection: &mut SqliteConnection, ids: Vec<String>) -> Vec<(String, News)> {
    let rows = rows(connection, &ids).await;
    let mut rows =
        rows.inspect_err(|error| tracing::error!(%error, "watched tasks cannot be read")).unwrap_or_default();
    let news = |id: String| {
        let row = rows.remove(&id);
        (id, row)
    };
    ids.into_iter().map(news).collect()
}

async fn rows(connection: &mut SqliteConnection, ids: &[String]) -> Result<HashMap<String, Arc<TaskRow>>, sqlx::Error> {
    let select = "SELECT * FROM tasks WHERE id IN (SELECT value FROM json_each(?))";
    let rows = sqlx::query(select).bind(json(&ids)?).fetch_all(connection).await?;
    let named = |row| task_row(row).map(|row| (row.accepted.id.clone(), Arc::new(row)));
    rows.iter().map(named).collect()
}
