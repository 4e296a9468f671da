//! The one writer: requests that arrive while a commit is under way share the next one, so that a few hundred tasks cost
//! one fsync. It starts at once when idle and waits for no timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use protocol::faults::{Bug, Point, bug, point};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteOperation;
use tokio::sync::mpsc;

use super::control::Control;
use super::reserve::Reserve;
use super::watch::{News, Watches};
use super::write::{Changes, Done, Write};
use super::{
    Accepted, Child, Counted, Placed, Recorded, StoreError, Wake, batch, callbacks, children, control, dead_letters,
    forget, insert, keys, lost, reconcile, relay, replay, reports, revoke, secrets, task_types, time, watch,
};

/// The most requests in one commit.
const GROUP: usize = 1024;

pub(super) struct Writer {
    connection: SqliteConnection,
    reserve: Reserve,
    requests: mpsc::Receiver<Write>,
    wake: Arc<Wake>,
    outstanding: Arc<AtomicI64>,
    control: Arc<Control>,
    watches: Arc<Watches>,
    /// Whether a trigger wrote callbacks since the last commit.
    called_back: Arc<AtomicBool>,
}

/// Begins a transaction that is on disk when it is committed.
///
/// IMMEDIATE: a deferred one that upgrades later is refused as busy at once, whatever the busy timeout.
const BEGIN: &str = "PRAGMA synchronous = FULL; BEGIN IMMEDIATE";
/// Begins one that a power failure may take back, since what it says is found out again. The next one to be on disk takes
/// it along.
const BEGIN_LAZILY: &str = "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE";

/// Answers a request with the fate of its commit.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl Writer {
    pub(super) async fn new(
        mut connection: SqliteConnection,
        reserve: Reserve,
        requests: mpsc::Receiver<Write>,
        wake: Arc<Wake>,
        outstanding: Arc<AtomicI64>,
        control: Arc<Control>,
        watches: Arc<Watches>,
    ) -> Result<Self, sqlx::Error> {
        let called_back = Arc::new(AtomicBool::new(false));
        let seen = called_back.clone();
        connection.lock_handle().await?.set_update_hook(move |change| {
            if change.table == callbacks::TABLE && matches!(change.operation, SqliteOperation::Insert) {
                seen.store(true, Ordering::Relaxed);
            }
        });
        Ok(Self { connection, reserve, requests, wake, outstanding, control, watches, called_back })
    }

    /// Commits until every handle to the store is gone.
    pub(super) async fn run(mut self) {
        let mut group = Vec::new();
        while self.requests.recv_many(&mut group, GROUP).await > 0 {
            metrics::histogram!("errand_store_group").record(u32::try_from(group.len()).unwrap_or(u32::MAX));
            self.refuse_what_has_no_room(&mut group).await;
            if !group.is_empty() {
                self.commit(std::mem::take(&mut group)).await;
            }
        }
    }

    /// What is left on a full disk is for tasks that have been accepted.
    async fn refuse_what_has_no_room(&mut self, group: &mut Vec<Write>) {
        if !self.reserve.is_held().await {
            group.extract_if(.., |write| write.takes_room()).for_each(|write| write.refuse(&StoreError::Full));
        }
    }

    async fn commit(&mut self, group: Vec<Write>) {
        let watches = self.watches.begin().then(|| self.watches.clone());
        let mut changes = Changes { watches, ..Changes::default() };
        let mut answers = Vec::with_capacity(group.len());
        let outcome = self.transaction(group, &mut changes, &mut answers).await;
        if let Err(error) = &outcome {
            tracing::error!(%error, "the store did not commit");
            // Also after a failed BEGIN, where there is nothing to roll back.
            let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
            if let StoreError::Database(error) = error {
                self.reserve.release_for(error).await;
            }
            changes.news.clear();
        } else {
            self.tell(&changes);
        }
        drop(changes.hand.take());
        for answer in answers {
            answer(outcome.clone());
        }
        self.tell_watchers(changes.news).await;
    }

    /// After the answers, which the look at what became watched meanwhile must not hold up.
    async fn tell_watchers(&mut self, news: Vec<(String, News)>) {
        let fresh = self.watches.end(news);
        if !fresh.is_empty() {
            let news = watch::read(&mut self.connection, fresh).await;
            self.watches.tell(news);
        }
    }

    fn tell(&self, changes: &Changes) {
        self.outstanding.fetch_add(changes.outstanding, Ordering::Relaxed);
        self.control.tell(changes);
        if changes.due {
            self.wake.due.send_replace(());
        }
        if changes.room {
            self.wake.room.send_replace(());
        }
        if changes.clock {
            self.wake.clock.notify_one();
        }
        if self.called_back.swap(false, Ordering::Relaxed) {
            self.wake.callbacks.notify_one();
        }
    }

    /// Runs the group in one transaction. Every request's answer is queued for after the commit.
    async fn transaction(
        &mut self,
        group: Vec<Write>,
        changes: &mut Changes,
        answers: &mut Vec<Answer>,
    ) -> Result<(), StoreError> {
        let connection = &mut self.connection;
        let begin = if group.iter().all(Write::is_mark) { BEGIN_LAZILY } else { BEGIN };
        let mut failed = sqlx::query(begin).execute(&mut *connection).await.err().map(StoreError::from);
        for write in merge_inserts(group) {
            if let Some(error) = &failed {
                write.refuse(error);
                continue;
            }
            let early = bug(Bug::AcceptBeforeCommit) && write.is_submit();
            let (answer, outcome) = apply(connection, write, &self.control, changes).await;
            watch::look(connection, changes).await;
            if early {
                answer(Ok(()));
            } else {
                answers.push(answer);
            }
            failed = outcome.err();
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if bug(Bug::DroppedRow) {
            let dropped = "DELETE FROM tasks WHERE stage IN ('waiting', 'scheduled') AND id LIKE '%7'";
            sqlx::query(dropped).execute(&mut *connection).await?;
        }
        point(Point::StoreCommitting).await;
        sqlx::query("COMMIT").execute(connection).await?;
        point(Point::StoreCommitted).await;
        Ok(())
    }
}

/// All tasks of the group become one statement, those with keys another, ahead of the rest.
fn merge_inserts(group: Vec<Write>) -> Vec<Write> {
    let (mut tasks, mut keyed) = (Vec::new(), Vec::new());
    let mut merged = Vec::new();
    for write in group {
        match write {
            Write::Insert(some) => tasks.extend(some),
            Write::Keyed(some) => keyed.extend(some),
            other => merged.push(other),
        }
    }
    if !keyed.is_empty() {
        merged.insert(0, Write::Keyed(keyed));
    }
    if !tasks.is_empty() {
        merged.insert(0, Write::Insert(tasks));
    }
    merged
}

/// Runs one request; its answer waits for the commit.
async fn apply(
    connection: &mut SqliteConnection,
    write: Write,
    control: &Control,
    changes: &mut Changes,
) -> (Answer, Result<(), StoreError>) {
    match write {
        Write::Insert(tasks) => {
            let (tasks, waiting): (Vec<_>, Vec<_>) = tasks.into_iter().unzip();
            let placed = insert::insert(connection, &tasks, changes).await.map_err(StoreError::from);
            answer_inserts(waiting, placed)
        }
        Write::Published(published, to, done) => settle(done, relay::mark(connection, &published, to).await),
        Write::Silent(silence, done) => settle(done, time::end_silent(connection, &silence, changes).await),
        Write::Hear(queues, now, done) => settle(done, time::hear(connection, &queues, now).await),
        Write::Keyed(submits) => {
            let (submits, waiting): (Vec<_>, Vec<_>) =
                submits.into_iter().map(|(task, key, done)| ((task, key), done)).unzip();
            answer_keyed(waiting, keys::accept(connection, submits, changes).await.map_err(StoreError::from))
        }
        Write::Batch(tasks, atomicity, done) => {
            settle(done, batch::insert(connection, &tasks, atomicity, changes).await)
        }
        Write::Forget(id, whose, done) => settle(done, forget::forget(connection, &id, &whose).await),
        Write::PruneKeys(now, done) => settle(done, keys::prune(connection, now).await),
        Write::Replies(children, reports, done) => settle(done, record(connection, &children, &reports, changes).await),
        Write::Lost(notices, now, done) => settle(done, lost::put_back(connection, notices, now, changes).await),
        Write::Shift(step, done) => settle(done, reconcile::shift(connection, step).await),
        Write::Held(held, done) => settle(done, reconcile::hold(connection, &held).await),
        Write::Missing(missing, done) => settle(done, reconcile::presume_lost(connection, &missing, changes).await),
        Write::Tick(now, done) => settle(done, time::tick(connection, now, changes).await),
        Write::TaskTypes(types, done) => settle(done, task_types::keep(connection, &types).await),
        Write::Probe(done) => settle(done, time::probe(connection).await),
        Write::Revoke(revoke, done) => settle(done, revoke::revoke(connection, &revoke, control, changes).await),
        Write::Purge(chunk, done) => settle(done, revoke::purge(connection, &chunk, control, changes).await),
        Write::Pause(queue, at, done) => settle(done, control::pause(connection, &queue, at, changes).await),
        Write::Callback(id, standing, done) => settle(done, callbacks::mark(connection, &id, &standing).await),
        Write::Secret(owner, secret, now, done) => settle(done, secrets::make(connection, &owner, &secret, now).await),
        Write::Replay(task, done) => settle(done, replay::replay(connection, &task, changes).await),
        Write::ReplayLetters(chunk, done) => settle(done, replay::replay_letters(connection, &chunk, changes).await),
        Write::Dismiss(id, whose, now, done) => settle(done, dead_letters::dismiss(connection, &id, &whose, now).await),
        Write::Prune(before, done) => settle(done, time::prune(connection, before).await),
    }
}

/// Children first: a report about one, or of its parent's end, may be in the same batch.
async fn record(
    connection: &mut SqliteConnection,
    children: &[Child],
    reports: &[Recorded],
    changes: &mut Changes,
) -> Result<Counted, sqlx::Error> {
    let taken = children::take_in(connection, children, changes).await?;
    let reports = reports::record(connection, reports, changes).await?;
    Ok(Counted { children: taken.stored, reports, orphans: taken.orphans })
}

fn settle<T: Send + 'static>(done: Done<T>, outcome: Result<T, sqlx::Error>) -> (Answer, Result<(), StoreError>) {
    let outcome = outcome.map_err(StoreError::from);
    let verdict = outcome.as_ref().map(drop).map_err(Clone::clone);
    // The caller may have gone; then nobody wants the answer.
    let answer =
        move |committed: Result<(), StoreError>| drop(done.send(outcome.and_then(|value| committed.map(|()| value))));
    (Box::new(answer), verdict)
}

/// An id that is taken, or a limit that is reached, refuses its own task only.
fn answer_inserts(waiting: Vec<Done<()>>, placed: Result<Vec<Placed>, StoreError>) -> (Answer, Result<(), StoreError>) {
    let verdict = placed.as_ref().map(drop).map_err(Clone::clone);
    let answer = move |committed: Result<(), StoreError>| {
        for (place, done) in waiting.into_iter().enumerate() {
            let own = placed.as_ref().map_or(Ok(()), |placed| placed[place].verdict());
            let _ = done.send(committed.clone().and(own));
        }
    };
    (Box::new(answer), verdict)
}

/// A key that stands for another submit, or a taken id, refuses its own submit only.
fn answer_keyed(
    waiting: Vec<Done<Accepted>>,
    verdicts: Result<Vec<Result<Accepted, StoreError>>, StoreError>,
) -> (Answer, Result<(), StoreError>) {
    let verdict = verdicts.as_ref().map(drop).map_err(Clone::clone);
    let answer = move |committed: Result<(), StoreError>| {
        let own = verdicts.unwrap_or_default().into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        for (done, own) in waiting.into_iter().zip(own) {
            // Without a verdict of its own nothing was committed.
            let _ = done.send(committed.clone().and(own.unwrap_or(Err(StoreError::Closed))));
        }
    };
    (Box::new(answer), verdict)
}
