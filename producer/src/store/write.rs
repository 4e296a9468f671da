//! What the writer is asked for, and what its commits changed.

use std::sync::Arc;

use protocol::lost::LostNotice;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use super::control::Hand;
use super::reconcile::Missing;
use super::replay::{Replay, ReplayChunk, Replayed};
use super::revoke::{Chunk, PurgeChunk, Revocation, Revoke};
use super::time::Silence;
use super::watch::{News, Watches};
use super::{
    Accepted, Atomicity, CallbackStanding, Child, Counted, Excess, Forgotten, HandedTo, Held, IdempotencyKey, KeptType,
    NewTask, Placed, Published, Recorded, Secret, StoreError, UnixMs, Whose,
};

/// A request and who waits for its commit.
pub(super) enum Write {
    Insert(Vec<(NewTask, Done<()>)>),
    Keyed(Vec<(NewTask, IdempotencyKey, Done<Accepted>)>),
    Batch(Vec<NewTask>, Atomicity, Done<Vec<Placed>>),
    Forget(String, Whose, Done<Forgotten>),
    PruneKeys(UnixMs, Done<u64>),
    Published(Arc<[Published]>, HandedTo, Done<()>),
    Silent(Silence, Done<u64>),
    Hear(Vec<String>, UnixMs, Done<()>),
    Replies(Arc<[Child]>, Arc<[Recorded]>, Done<Counted>),
    Lost(Vec<LostNotice>, UnixMs, Done<u64>),
    Held(Vec<Held>, Done<()>),
    /// The clock was set by so many ms.
    Shift(UnixMs, Done<()>),
    Missing(Missing, Done<u64>),
    Tick(UnixMs, Done<()>),
    Prune(UnixMs, Done<u64>),
    TaskTypes(Vec<KeptType>, Done<()>),
    Probe(Done<()>),
    Revoke(Revoke, Done<Revocation>),
    Purge(PurgeChunk, Done<Chunk>),
    Pause(String, Option<UnixMs>, Done<()>),
    Callback(String, CallbackStanding, Done<()>),
    Secret(String, Secret, UnixMs, Done<()>),
    Replay(Replay, Done<Replayed>),
    ReplayLetters(ReplayChunk, Done<(u64, Option<Excess>)>),
    Dismiss(String, Whose, UnixMs, Done<bool>),
}

/// Who waits for a request's commit.
pub(super) type Done<T> = oneshot::Sender<Result<T, StoreError>>;

impl Write {
    /// Whether it brings new tasks, or asks whether any would be taken.
    pub(super) fn takes_room(&self) -> bool {
        matches!(self, Self::Insert(_) | Self::Keyed(_) | Self::Batch(..) | Self::Probe(_))
    }

    /// Whether a client waits to hear that its tasks are accepted.
    pub(super) fn is_submit(&self) -> bool {
        matches!(self, Self::Insert(_) | Self::Keyed(_) | Self::Batch(..))
    }

    /// Whether it only says what our workers' queues have. Should that be forgotten, it is handed over again, and the second
    /// copy joins the run of the first; a Celery worker would run both.
    pub(super) fn is_mark(&self) -> bool {
        matches!(self, Self::Published(_, HandedTo::Workers(_), _))
    }

    /// Answers a request that was not run.
    pub(super) fn refuse(self, error: &StoreError) {
        let error = error.clone();
        match self {
            Self::Insert(tasks) => tasks.into_iter().for_each(|(_, done)| drop(done.send(Err(error.clone())))),
            Self::Published(_, _, done)
            | Self::Tick(_, done)
            | Self::Hear(_, _, done)
            | Self::Probe(done)
            | Self::Pause(_, _, done)
            | Self::Callback(_, _, done)
            | Self::Secret(_, _, _, done)
            | Self::Held(_, done)
            | Self::Shift(_, done)
            | Self::TaskTypes(_, done) => drop(done.send(Err(error))),
            Self::Replies(_, _, done) => drop(done.send(Err(error))),
            Self::Revoke(_, done) => drop(done.send(Err(error))),
            Self::Purge(_, done) => drop(done.send(Err(error))),
            Self::Keyed(tasks) => tasks.into_iter().for_each(|(_, _, done)| drop(done.send(Err(error.clone())))),
            Self::Batch(_, _, done) => drop(done.send(Err(error))),
            Self::Forget(_, _, done) => drop(done.send(Err(error))),
            Self::Replay(_, done) => drop(done.send(Err(error))),
            Self::Dismiss(_, _, _, done) => drop(done.send(Err(error))),
            Self::ReplayLetters(_, done) => drop(done.send(Err(error))),
            Self::Lost(_, _, done)
            | Self::Missing(_, done)
            | Self::Prune(_, done)
            | Self::PruneKeys(_, done)
            | Self::Silent(_, done) => drop(done.send(Err(error))),
        }
    }
}

/// What a commit changed, counted while its statements run and told once it is on disk.
#[derive(Default)]
pub(super) struct Changes {
    /// Rows that became due or ended: the difference in due and unfinished rows.
    pub(super) outstanding: i64,
    /// Rows for the relay.
    pub(super) due: bool,
    /// Room at the broker.
    pub(super) room: bool,
    /// Rows with a time of their own.
    pub(super) clock: bool,
    /// Ids that were revoked, each with when, by reason.
    pub(super) revoked: Vec<(&'static str, Vec<(String, UnixMs)>)>,
    /// Queues that were paused, since when, or resumed.
    pub(super) paused: Vec<(String, Option<UnixMs>)>,
    /// Kept from a revocation's look at it to the commit.
    pub(super) hand: Option<OwnedMutexGuard<Hand>>,
    /// Who is watched, when anybody is.
    pub(super) watches: Option<Arc<Watches>>,
    /// Watched rows that the request touched.
    pub(super) touched: Vec<String>,
    /// Watched rows as they were after it.
    pub(super) news: Vec<(String, News)>,
}

impl Changes {
    /// Locks what the relays hold until the commit.
    pub(super) async fn hold(&mut self, hand: &Arc<Mutex<Hand>>) -> &Hand {
        let mut held = match self.hand.take() {
            Some(held) => held,
            None => hand.clone().lock_owned().await,
        };
        held.revocations += 1;
        // A relay that finds rows gone looks for others.
        self.due = true;
        self.hand.insert(held)
    }

    /// Says that a row changed in what its watchers wait for.
    pub(super) fn touched(&mut self, id: &str) {
        if self.watches.as_ref().is_some_and(|watches| watches.is_watched(id)) {
            self.touched.push(id.to_owned());
        }
    }
}
