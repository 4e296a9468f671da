//! What revocations and relays have to know of each other, and which queues are paused.
//!
//! A row in stage `waiting` may be in a relay's hands: read, and not yet marked. The relay adds ids to the hand before it
//! publishes, and a revocation keeps the hand locked from its look at it until its commit. So either the relay finds the
//! row ended, or the revocation finds it in the hand.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use protocol::timestamp::now_ms;
use sqlx::SqliteConnection;
use tokio::sync::{Mutex, Notify, watch};

use super::column::json;
use super::write::{Changes, Write};
use super::{Store, StoreError, Taken, UnixMs};

/// Revoked ids that wait to be told, at most. What is beyond is told with all the rest within the hour.
const MAX_UNTOLD: usize = 200_000;

/// Shared by the store's handles and its writer.
pub(super) struct Control {
    pub(super) hand: Arc<Mutex<Hand>>,
    /// What was due before is in doubt: the process before this one may have published it.
    pub(super) opened_at: UnixMs,
    pub(super) untold: Untold,
    paused: watch::Sender<BTreeMap<String, UnixMs>>,
}

/// What the relays hold.
#[derive(Default)]
pub(super) struct Hand {
    pub(super) ids: HashSet<String>,
    /// Counts revocations, so that a relay looks again only when there was one.
    pub(super) revocations: u64,
}

/// Ids that were revoked, each with when, and are to be told to all workers, by reason.
#[derive(Default)]
pub(super) struct Untold {
    ids: SyncMutex<BTreeMap<String, Vec<(String, UnixMs)>>>,
    more: Notify,
}

impl Control {
    pub(super) async fn load(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query_as("SELECT queue, paused_at FROM paused_queues").fetch_all(connection).await?;
        let paused: BTreeMap<String, UnixMs> = rows.into_iter().collect();
        let (hand, untold) = (Arc::default(), Untold::default());
        Ok(Self { hand, opened_at: now_ms(), untold, paused: watch::Sender::new(paused) })
    }

    /// Says what a commit revoked and paused, once it is on disk.
    pub(super) fn tell(&self, changes: &Changes) {
        for (reason, ids) in changes.revoked.iter().filter(|(_, ids)| !ids.is_empty()) {
            self.untold.push(reason, ids);
        }
        for (queue, at) in &changes.paused {
            self.paused.send_modify(|paused| match at {
                Some(at) => drop(paused.entry(queue.clone()).or_insert(*at)),
                None => drop(paused.remove(queue)),
            });
        }
    }
}

impl Untold {
    pub(super) fn push(&self, reason: &str, ids: &[(String, UnixMs)]) {
        let mut untold = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_UNTOLD.saturating_sub(untold.values().map(Vec::len).sum());
        untold.entry(reason.to_owned()).or_default().extend(ids.iter().take(room).cloned());
        self.more.notify_one();
    }
}

impl Store {
    /// The next waiting tasks as [`Store::due`] reads them, in the relay's hands until [`Store::let_go`].
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_due(&self, queue: &str, limit: u32, max_bytes: usize) -> Result<Taken, StoreError> {
        let before = self.control.hand.lock().await.revocations;
        let mut due = self.due(queue, limit, max_bytes).await?;
        let bytes: usize = due.iter().map(|task| task.args.get().len() + task.kwargs.get().len()).sum();
        let is_all = due.len() < limit as usize && bytes < max_bytes;
        let ids: Vec<String> = due.iter().map(|task| task.id.clone()).collect();
        let revocations = {
            let mut hand = self.control.hand.lock().await;
            hand.ids.extend(ids.iter().cloned());
            hand.revocations
        };
        if revocations != before {
            let waiting = self.waiting(&ids).await;
            let none = HashSet::new();
            let still = waiting.as_ref().unwrap_or(&none);
            self.let_go(ids.iter().filter(|id| !still.contains(*id))).await;
            due.retain(|task| still.contains(&task.id));
            waiting?;
        }
        Ok(Taken { tasks: due, is_all })
    }

    /// Which of these still wait for the relay. One that was revoked in its hands is among them: whoever revoked it was
    /// told that it may be at the broker, and it would wait here for ever.
    async fn waiting(&self, ids: &[String]) -> Result<HashSet<String>, StoreError> {
        let waiting = "SELECT id FROM tasks
            WHERE id IN (SELECT value FROM json_each(?)) AND stage = 'waiting'";
        let waiting: Vec<String> = sqlx::query_scalar(waiting).bind(json(&ids)?).fetch_all(&self.readers).await?;
        Ok(waiting.into_iter().collect())
    }

    /// The relay has published and marked these, or not published them.
    pub async fn let_go(&self, ids: impl Iterator<Item = &String>) {
        let mut hand = self.control.hand.lock().await;
        for id in ids {
            hand.ids.remove(id);
        }
    }

    /// Waits until tasks were revoked, and takes their ids, each with when, by reason. Cancel safe.
    pub async fn untold(&self) -> BTreeMap<String, Vec<(String, UnixMs)>> {
        self.control.untold.more.notified().await;
        std::mem::take(&mut *self.control.untold.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The paused queues, each with since when.
    #[must_use]
    pub fn paused_queues(&self) -> watch::Receiver<BTreeMap<String, UnixMs>> {
        self.control.paused.subscribe()
    }

    /// Since when a queue is paused, `None` when it is not.
    #[must_use]
    pub fn paused_at(&self, queue: &str) -> Option<UnixMs> {
        self.control.paused.borrow().get(queue).copied()
    }

    /// Pauses a queue from `at` on, or resumes it. A queue that is paused already stays so since then.
    ///
    /// # Errors
    /// The store failed and nothing changed.
    pub async fn pause(&self, queue: &str, at: Option<UnixMs>) -> Result<(), StoreError> {
        self.write(|done| Write::Pause(queue.to_owned(), at, done)).await
    }
}

pub(super) async fn pause(
    connection: &mut SqliteConnection,
    queue: &str,
    at: Option<UnixMs>,
    changes: &mut Changes,
) -> Result<(), sqlx::Error> {
    let change = match at {
        Some(at) => sqlx::query("INSERT INTO paused_queues (queue, paused_at) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(queue)
            .bind(at),
        None => sqlx::query("DELETE FROM paused_queues WHERE queue = ?").bind(queue),
    };
    changes.paused.push((queue.to_owned(), at));
    change.execute(connection).await.map(drop)
}
