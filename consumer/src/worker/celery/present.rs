//! The tasks that are in this worker, as `celery inspect` shows them, and how many of each have run.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::message::Message;
use protocol::task::Task;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::events::{epoch, shown};
use crate::worker::runs::Key;

/// The tasks. As many as there are runs, which the prefetch bounds.
#[derive(Default)]
pub(super) struct Present(Mutex<State>);

#[derive(Default)]
struct State {
    tasks: HashMap<Key, Entry>,
    /// Runs that have begun since the worker's start, by the names of tasks that it has.
    total: BTreeMap<String, u64>,
}

struct Entry {
    task: String,
    args: String,
    kwargs: String,
    queue: String,
    priority: u8,
    redelivered: bool,
    started_at: Option<OffsetDateTime>,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It runs.
    Active,
    /// It waits for a place to run.
    Reserved,
}

/// That a task is here, until this is dropped.
pub(in crate::worker) struct Seen<'a> {
    present: &'a Present,
    key: Key,
}

impl Present {
    pub(super) fn enter(&self, key: &Key, task: &Task, message: &Message, queue: &str) -> Seen<'_> {
        let entry = Entry {
            task: task.task.clone(),
            args: shown(message, "argsrepr"),
            kwargs: shown(message, "kwargsrepr"),
            queue: queue.to_owned(),
            priority: task.priority,
            redelivered: message.returns() > 0,
            started_at: None,
        };
        self.lock().tasks.insert(key.clone(), entry);
        Seen { present: self, key: key.clone() }
    }

    pub(super) fn start(&self, key: &Key, at: OffsetDateTime) {
        let mut state = self.lock();
        let State { tasks, total } = &mut *state;
        let Some(entry) = tasks.get_mut(key) else { return };
        entry.started_at = Some(at);
        match total.get_mut(&entry.task) {
            Some(count) => *count += 1,
            None => drop(total.insert(entry.task.clone(), 1)),
        }
    }

    /// Runs that have begun, by task.
    pub(super) fn total(&self) -> BTreeMap<String, u64> {
        self.lock().total.clone()
    }

    /// How many run, and how many ever began.
    pub(super) fn counts(&self) -> (usize, u64) {
        let state = self.lock();
        let active = state.tasks.values().filter(|entry| entry.started_at.is_some()).count();
        (active, state.total.values().sum())
    }

    /// The tasks at a stage, of a worker of that name, as Celery shows them.
    pub(super) fn at(&self, stage: Stage, worker: &str, exchange: &str) -> Vec<Value> {
        let present = self.lock();
        let tasks = present.tasks.iter().filter(|(_, entry)| entry.stage() == stage);
        tasks.map(|(key, entry)| entry.show(&key.task_id, worker, exchange)).collect()
    }

    /// Those of the tasks of these ids that are here, by id, each with its stage.
    pub(super) fn of(&self, ids: &[String], worker: &str, exchange: &str) -> Value {
        let state = self.lock();
        let tasks = state.tasks.iter().filter(|(key, _)| ids.iter().any(|id| **id == *key.task_id));
        let show = |entry: &Entry, id: &str| json!([entry.stage().name(), entry.show(id, worker, exchange)]);
        tasks.map(|(key, entry)| (key.task_id.to_string(), show(entry, &key.task_id))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn stage(&self) -> Stage {
        if self.started_at.is_some() { Stage::Active } else { Stage::Reserved }
    }

    fn show(&self, id: &str, worker: &str, exchange: &str) -> Value {
        let running = self.started_at.is_some();
        json!({
            "id": id,
            "name": self.task,
            "type": self.task,
            "args": self.args,
            "kwargs": self.kwargs,
            "hostname": worker,
            "time_start": self.started_at.map(epoch),
            "acknowledged": false,
            "delivery_info": {
                "exchange": exchange, "routing_key": self.queue,
                "priority": self.priority, "redelivered": self.redelivered,
            },
            "worker_pid": running.then(std::process::id),
        })
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Reserved => "reserved",
        }
    }
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        self.present.lock().tasks.remove(&self.key);
    }
}
