//! What runs here, keyed by (task id, attempt, life), with the deliveries that each run settles.
//!
//! A redelivery of a run that is still under way joins it and starts nothing: after a lost connection every task that
//! runs comes again. One that was done while its ack could not be sent is acked when it comes again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::heartbeat::{MAX_RUNNING, RunningTask};

use protocol::task::Task;

use super::remote::Revocation;
use crate::context::{Cancelled, ContextControl};

/// An attempt of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) task_id: Arc<str>,
    attempt: u32,
    /// A client may use the id of a task that was forgotten for another one.
    since: Option<i64>,
}

impl Key {
    pub(super) fn of(task: &Task) -> Self {
        Self { task_id: task.id.as_str().into(), attempt: task.retries, since: task.since }
    }
}

/// Runs that are remembered when they are done, for redeliveries.
const REMEMBERED: usize = 10_000;

/// The runs, with deliveries of type `D`.
pub(super) struct Runs<D>(Mutex<State<D>>);

struct State<D> {
    running: HashMap<Key, Running<D>>,
    done: HashSet<Key>,
    order: VecDeque<Key>,
    /// What every run is asked to end for, those that start later included.
    cancelled: Option<Cancelled>,
}

struct Running<D> {
    deliveries: Vec<D>,
    control: Option<ContextControl>,
}

/// What becomes of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission<D> {
    /// A run starts; the delivery is kept for its end.
    Start,
    /// The run is under way; the delivery is kept for its end.
    Joined,
    /// The run was done before; only the ack is missing.
    Done(Box<D>),
}

impl<D> Default for Runs<D> {
    fn default() -> Self {
        let state = State { running: HashMap::new(), done: HashSet::new(), order: VecDeque::new(), cancelled: None };
        Self(Mutex::new(state))
    }
}

impl<D> Runs<D> {
    /// Admits a delivery; `redelivered` as the broker says.
    pub(super) fn admit(&self, key: &Key, delivery: D, redelivered: bool) -> Admission<D> {
        let mut state = self.lock();
        if let Some(run) = state.running.get_mut(key) {
            run.deliveries.push(delivery);
            return Admission::Joined;
        }
        // Only a redelivery: a client of Celery's may use an id again on purpose.
        if redelivered && state.done.contains(key) {
            return Admission::Done(Box::new(delivery));
        }
        state.running.insert(key.clone(), Running { deliveries: vec![delivery], control: None });
        Admission::Start
    }

    /// Makes a run cancellable.
    pub(super) fn control(&self, key: &Key, control: ContextControl) {
        let mut state = self.lock();
        if let Some(reason) = state.cancelled {
            control.cancel(reason);
        }
        if let Some(run) = state.running.get_mut(key) {
            run.control = Some(control);
        }
    }

    /// Asks one run to end.
    pub(super) fn cancel(&self, key: &Key, reason: Cancelled) {
        if let Some(control) = self.lock().running.get(key).and_then(|run| run.control.as_ref()) {
            control.cancel(reason);
        }
    }

    /// Asks every attempt of a revoked task to end.
    pub(super) fn revoke(&self, revocation: &Revocation) {
        let state = self.lock();
        let is_revoked = |key: &Key| *key.task_id == *revocation.task_id && revocation.is_for(key.since);
        for (_, run) in state.running.iter().filter(|(key, _)| is_revoked(key)) {
            if let Some(control) = &run.control {
                control.cancel(Cancelled::Revoked);
            }
        }
    }

    /// Ends a run, whose deliveries are to be settled now.
    pub(super) fn end(&self, key: &Key) -> Vec<D> {
        self.lock().running.remove(key).map(|run| run.deliveries).unwrap_or_default()
    }

    /// Remembers a run whose outcome was published, so that it is not run again when its ack is lost.
    pub(super) fn remember(&self, key: &Key) {
        let mut state = self.lock();
        if state.done.insert(key.clone()) {
            state.order.push_back(key.clone());
        }
        while state.order.len() > REMEMBERED {
            if let Some(oldest) = state.order.pop_front() {
                state.done.remove(&oldest);
            }
        }
    }

    /// Asks all runs to end.
    pub(super) fn cancel_all(&self, reason: Cancelled) {
        let mut state = self.lock();
        state.cancelled = Some(reason);
        for control in state.running.values().filter_map(|run| run.control.as_ref()) {
            control.cancel(reason);
        }
    }

    /// What is here from its admission to its ack, for the heartbeat, and whether there is more.
    pub(super) fn running(&self) -> (Vec<RunningTask>, bool) {
        let state = self.lock();
        let keys = state.running.keys().take(MAX_RUNNING);
        let named = keys.map(|key| RunningTask { task_id: key.task_id.to_string(), retries: key.attempt }).collect();
        (named, state.running.len() > MAX_RUNNING)
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Context, ContextParts};

    fn key() -> Key {
        key_of("a", 1)
    }

    fn key_of(task_id: &str, attempt: u32) -> Key {
        Key { task_id: task_id.into(), attempt, since: Some(7) }
    }

    #[test]
    fn a_redelivery_joins_the_run_and_is_settled_with_it() {
        let runs = Runs::default();
        assert_eq!(runs.admit(&key(), "first", false), Admission::Start);
        assert_eq!(runs.admit(&key(), "again", true), Admission::Joined);
        assert_eq!(runs.admit(&key_of("a", 2), "next attempt", false), Admission::Start);
        assert_eq!(runs.end(&key()), ["first", "again"]);
        assert_eq!(runs.running(), (vec![RunningTask { task_id: "a".to_owned(), retries: 2 }], false));
    }

    #[test]
    fn a_heartbeat_that_does_not_name_all_says_so() {
        let runs = Runs::default();
        let named = |number: usize| (runs.admit(&key_of(&number.to_string(), 0), (), false), runs.running().1).1;
        assert!(!(0..MAX_RUNNING).any(named) && named(MAX_RUNNING));
    }

    #[test]
    fn what_is_done_is_acked_when_it_comes_again_and_run_when_it_is_sent_again() {
        let runs = Runs::default();
        runs.admit(&key(), "first", false);
        runs.remember(&key());
        runs.end(&key());
        assert_eq!(runs.admit(&key(), "again", true), Admission::Done(Box::new("again")));
        assert_eq!(runs.admit(&key(), "on purpose", false), Admission::Start);
        let other = Key { since: Some(8), ..key() };
        assert_eq!(runs.admit(&other, "another task of the same id", true), Admission::Start);
    }

    #[test]
    fn what_was_sent_on_or_abandoned_is_run_when_it_comes_again() {
        let runs = Runs::default();
        runs.admit(&key(), "sent on", false);
        runs.end(&key());
        assert_eq!(runs.admit(&key(), "delivered elsewhere before", true), Admission::Start);
    }

    #[test]
    fn only_the_latest_are_remembered() {
        let runs = Runs::<()>::default();
        for number in 0..=REMEMBERED {
            runs.remember(&key_of(&number.to_string(), 0));
        }
        assert_eq!(runs.admit(&key_of("0", 0), (), true), Admission::Start);
        assert_eq!(runs.admit(&key_of("1", 0), (), true), Admission::Done(Box::new(())));
    }

    #[test]
    fn a_run_that_starts_after_all_were_cancelled_hears_of_it() {
        let runs = Runs::default();
        runs.admit(&key(), (), false);
        runs.cancel_all(Cancelled::Shutdown);
        let [task_id, task, worker] = ["a", "t", "w"].map(str::to_owned);
        let parts = ContextParts { task_id, task, attempt: 1, worker, deadline: None };
        let (context, control, _) = Context::new(parts);
        runs.control(&key(), control);
        assert_eq!(context.is_cancelled(), Some(Cancelled::Shutdown));
    }
}
