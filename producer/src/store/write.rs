//! What the writer is asked for, and what its commits changed.

use std::sync::Arc;

use protocol::lost::LostNotice;
use tokio::sync::oneshot;

use super::watch::{News, Watches};
use super::{Child, Counted, NewTask, Published, Recorded, StoreError, UnixMs};

/// A request and who waits for its commit.
pub(super) enum Write {
    Insert(Vec<(NewTask, Done<()>)>),
    Published(Arc<[Published]>, Done<()>),
    Replies(Arc<[Child]>, Arc<[Recorded]>, Done<Counted>),
    Lost(Vec<LostNotice>, UnixMs, Done<u64>),
    Tick(UnixMs, Done<()>),
    Prune(UnixMs, Done<u64>),
    Probe(Done<()>),
}

/// Who waits for a request's commit.
pub(super) type Done<T> = oneshot::Sender<Result<T, StoreError>>;

impl Write {
    /// Answers a request that was not run.
    pub(super) fn refuse(self, error: &StoreError) {
        let error = error.clone();
        match self {
            Self::Insert(tasks) => tasks.into_iter().for_each(|(_, done)| drop(done.send(Err(error.clone())))),
            Self::Published(_, done) | Self::Tick(_, done) | Self::Probe(done) => drop(done.send(Err(error))),
            Self::Replies(_, _, done) => drop(done.send(Err(error))),
            Self::Lost(_, _, done) | Self::Prune(_, done) => drop(done.send(Err(error))),
        }
    }
}

/// What a commit changed, counted while its statements run and told once it is on disk.
#[derive(Default)]
pub(super) struct Changes {
    /// Rows that became due or ended: the difference in due and unfinished rows.
    pub(super) outstanding: i64,
    /// Rows for the relay, or room at the broker.
    pub(super) relay: bool,
    /// Rows with a time of their own.
    pub(super) clock: bool,
    /// Who is watched, when anybody is.
    pub(super) watches: Option<Arc<Watches>>,
    /// Watched rows that the request touched.
    pub(super) touched: Vec<String>,
    /// Watched rows as they were after it.
    pub(super) news: Vec<(String, News)>,
}

impl Changes {
    /// Says that a row changed in what its watchers wait for.
    pub(super) fn touched(&mut self, id: &str) {
        if self.watches.as_ref().is_some_and(|watches| watches.is_watched(id)) {
            self.touched.push(id.to_owned());
        }
    }
}
