//! What workers have in hand, by their own word, and whether every word of it was heard.

use std::collections::HashMap;
use std::time::Instant;

use protocol::heartbeat::{HEARTBEAT_INTERVAL, HEARTBEAT_TTL, Heartbeat};

use super::Workers;

/// The most tasks remembered, whoever names them.
const MAX_NAMED: usize = 1_000_000;

/// Tasks that were named lately. By task and not by worker: two workers may have been given one name.
#[derive(Default)]
pub(super) struct Holding {
    named: HashMap<String, Instant>,
    swept_at: Option<Instant>,
    /// When something was last said that is not here in full.
    cut_at: Option<Instant>,
}

impl Holding {
    /// Takes in what a worker names.
    pub(super) fn hear(&mut self, heartbeat: &Heartbeat, now: Instant) {
        self.sweep(now);
        let fits = self.named.len() + heartbeat.running.len() <= MAX_NAMED;
        if fits {
            self.named.extend(heartbeat.running.iter().map(|running| (running.task_id.clone(), now)));
        }
        if heartbeat.cut || !fits {
            self.miss(now);
        }
    }

    /// Something was said that is not taken in.
    pub(super) fn miss(&mut self, now: Instant) {
        self.cut_at = Some(now);
    }

    fn names(&self, task_id: &str, now: Instant) -> bool {
        self.named.get(task_id).is_some_and(|at| now.duration_since(*at) < HEARTBEAT_TTL)
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept_at.is_none_or(|at| now.duration_since(at) >= HEARTBEAT_INTERVAL) {
            self.named.retain(|_, at| now.duration_since(*at) < HEARTBEAT_TTL);
            self.swept_at = Some(now);
        }
    }
}

impl Workers {
    /// Whether everybody alive has spoken after `since`, those that take no more tasks too.
    #[must_use]
    pub fn have_all_spoken(&self, since: Instant) -> bool {
        let now = Instant::now();
        self.lock().workers.values().filter(|alive| alive.is_fresh(now)).all(|alive| alive.at > since)
    }

    /// Whether what workers have in hand is known in full since then.
    #[must_use]
    pub fn are_complete(&self, since: Instant) -> bool {
        self.lock().holding.cut_at.is_none_or(|cut| cut < since)
    }

    /// Whether the workers of a queue could hold more than they do.
    #[must_use]
    pub fn have_room(&self, queue: &str) -> bool {
        let now = Instant::now();
        let heard = self.lock();
        let living = heard.workers.values().filter(|alive| alive.is_alive(now)).map(|alive| &alive.heartbeat);
        let mut serving = living.filter(|heartbeat| heartbeat.queues.iter().any(|served| served == queue));
        serving.any(|heartbeat| heartbeat.running.len() < heartbeat.concurrency)
    }

    /// Of these the ones that no worker has named lately.
    #[must_use]
    pub fn unnamed<T>(&self, tasks: Vec<T>, id: impl Fn(&T) -> &str) -> Vec<T> {
        let (now, heard) = (Instant::now(), self.lock());
        tasks.into_iter().filter(|task| !heard.holding.names(id(task), now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use protocol::heartbeat::RunningTask;
    use std::time::Duration;

    use super::*;

    fn heartbeat(ids: impl IntoIterator<Item = usize>, cut: bool) -> Heartbeat {
        let running = ids.into_iter().map(|id| RunningTask { task_id: id.to_string(), retries: 0 }).collect();
        Heartbeat { running, cut, ..crate::workers::tests::heartbeat(&["default"], false) }
    }

    #[test]
    fn who_is_named_by_anybody_is_held_until_it_was_not_for_a_while() {
        let (mut holding, start) = (Holding::default(), Instant::now());
        holding.hear(&heartbeat([1], false), start);
        holding.hear(&heartbeat([2], false), start + HEARTBEAT_INTERVAL);
        let late = start + HEARTBEAT_TTL;
        assert_eq!(["1", "2", "3"].map(|id| holding.names(id, late)), [false, true, false]);
        holding.hear(&heartbeat([], false), late);
        assert_eq!(holding.named.len(), 1, "what is over is forgotten");
        assert_eq!(holding.cut_at, None);
    }

    #[test]
    fn what_is_not_heard_in_full_is_known() {
        let workers = Workers::new();
        let (before, after) = (Instant::now(), Instant::now() + Duration::from_mins(1));
        workers.hear(heartbeat([1], true), 100, before);
        assert!(!workers.are_complete(before) && workers.are_complete(after));
        let mut holding = Holding::default();
        holding.hear(&heartbeat(0..MAX_NAMED, false), before);
        holding.hear(&heartbeat([MAX_NAMED], false), before);
        assert_eq!((holding.named.len(), holding.cut_at), (MAX_NAMED, Some(before)));
    }

    #[test]
    fn who_takes_no_more_tasks_is_still_to_be_heard() {
        let (workers, start) = (Workers::new(), Instant::now());
        let stopping = crate::workers::tests::heartbeat(&["default"], true);
        workers.hear(stopping, 100, start);
        assert!(!workers.have_all_spoken(start) && workers.living().is_empty());
    }
}
