//! What runs here, keyed by (task id, attempt), with the deliveries that each run settles.
//!
//! A redelivery of a run that is still under way joins it and starts nothing: after a lost connection every task that
//! runs comes again. One that was settled while its ack could not be sent is acked when it comes again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::amqp::Delivery;
use protocol::heartbeat::{MAX_RUNNING, RunningTask};

use crate::context::{Cancelled, ContextControl};

/// A task id and an attempt.
pub(super) type Key = (String, u32);

/// Settled runs that are remembered, for redeliveries.
const REMEMBERED: usize = 10_000;

#[derive(Default)]
pub(super) struct Runs(Mutex<State>);

#[derive(Default)]
struct State {
    running: HashMap<Key, Running>,
    settled: HashSet<Key>,
    order: VecDeque<Key>,
}

#[derive(Default)]
struct Running {
    deliveries: Vec<Delivery>,
    control: Option<ContextControl>,
}

/// What becomes of a delivery.
#[derive(Debug)]
pub(super) enum Admission {
    /// A run starts; the delivery is kept for its end.
    Start,
    /// The run is under way; the delivery is kept for its end.
    Joined,
    /// The run was settled before; only the ack is missing.
    Settled(Box<Delivery>),
}

impl Runs {
    /// Admits a delivery.
    pub(super) fn admit(&self, key: &Key, delivery: Delivery) -> Admission {
        let mut state = self.lock();
        if let Some(run) = state.running.get_mut(key) {
            run.deliveries.push(delivery);
            return Admission::Joined;
        }
        // Only a redelivery: a client may use an id again on purpose.
        if delivery.redelivered && state.settled.contains(key) {
            return Admission::Settled(Box::new(delivery));
        }
        state.running.insert(key.clone(), Running { deliveries: vec![delivery], control: None });
        Admission::Start
    }

    /// Makes a run cancellable.
    pub(super) fn control(&self, key: &Key, control: ContextControl) {
        if let Some(run) = self.lock().running.get_mut(key) {
            run.control = Some(control);
        }
    }

    /// Asks one run to end.
    pub(super) fn cancel(&self, key: &Key, reason: Cancelled) {
        if let Some(control) = self.lock().running.get(key).and_then(|run| run.control.as_ref()) {
            control.cancel(reason);
        }
    }

    /// Ends a run whose follow-up was published; its deliveries are to be acked now.
    pub(super) fn settled(&self, key: &Key) -> Vec<Delivery> {
        let mut state = self.lock();
        let run = state.running.remove(key).unwrap_or_default();
        if state.settled.insert(key.clone()) {
            state.order.push_back(key.clone());
        }
        while state.order.len() > REMEMBERED {
            if let Some(oldest) = state.order.pop_front() {
                state.settled.remove(&oldest);
            }
        }
        run.deliveries
    }

    /// Ends a run that was not settled; its deliveries come again when the connection ends.
    pub(super) fn abandoned(&self, key: &Key) -> Vec<Delivery> {
        self.lock().running.remove(key).unwrap_or_default().deliveries
    }

    /// Asks all runs to end.
    pub(super) fn cancel_all(&self, reason: Cancelled) {
        for control in self.lock().running.values().filter_map(|run| run.control.as_ref()) {
            control.cancel(reason);
        }
    }

    /// What runs, for the heartbeat.
    pub(super) fn running(&self) -> Vec<RunningTask> {
        let state = self.lock();
        let keys = state.running.keys().take(MAX_RUNNING);
        keys.map(|(task_id, retries)| RunningTask { task_id: task_id.clone(), retries: *retries }).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
