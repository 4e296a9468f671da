//! The ids of revoked tasks, within bounds of number and age.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use protocol::control::TOLD_TTL;
use tokio::time::Instant;

/// The newest that are kept.
const MAX_REVOKED: usize = 100_000;

/// Producers tell the ids of open tasks again every hour, so one that is not heard of for three has ended.
#[derive(Default)]
pub(super) struct Revoked {
    ids: HashMap<Arc<str>, (Instant, Arc<str>)>,
    /// One entry a telling; one that is not the latest of its id counts for nothing.
    order: VecDeque<(Instant, Arc<str>)>,
}

impl Revoked {
    /// Takes ids in, each from now on for [`TOLD_TTL`].
    pub(super) fn insert(&mut self, task_ids: &[String], reason: &str, now: Instant) {
        let reason: Arc<str> = reason.into();
        for id in task_ids {
            let id: Arc<str> = id.as_str().into();
            // The first reason stays: a task that was revoked is not purged afterwards.
            let known = self.ids.remove(&id).map(|(_, reason)| reason);
            self.ids.insert(id.clone(), (now, known.unwrap_or_else(|| reason.clone())));
            self.order.push_back((now, id));
        }
        self.forget(now);
    }

    /// Why that task was revoked, `None` when it was not.
    pub(super) fn reason(&mut self, id: &str, now: Instant) -> Option<Arc<str>> {
        let (at, reason) = self.ids.get(id)?;
        (now.duration_since(*at) < TOLD_TTL).then(|| reason.clone())
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, id)) = self.order.front() {
            let latest = self.ids.get(id).is_some_and(|(latest, _)| latest == at);
            let old = now.duration_since(*at) >= TOLD_TTL;
            if latest && !old && self.order.len() <= MAX_REVOKED {
                return;
            }
            if latest {
                self.ids.remove(id);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ids(numbers: std::ops::Range<usize>) -> Vec<String> {
        numbers.map(|number| number.to_string()).collect()
    }

    #[test]
    fn the_newest_are_kept_within_their_number() {
        let (mut revoked, now) = (Revoked::default(), Instant::now());
        revoked.insert(&ids(0..MAX_REVOKED), "revoked", now);
        revoked.insert(&ids(MAX_REVOKED..MAX_REVOKED + 10), "purged", now + Duration::from_secs(1));
        assert_eq!((revoked.ids.len(), revoked.order.len()), (MAX_REVOKED, MAX_REVOKED));
        let known = [0, 9, 10, MAX_REVOKED + 9].map(|number| revoked.reason(&number.to_string(), now).is_some());
        assert_eq!(known, [false, false, true, true]);
    }

    #[test]
    fn one_that_is_told_again_stays_and_others_leave_with_their_age() {
        let (mut revoked, start) = (Revoked::default(), Instant::now());
        revoked.insert(&ids(0..2), "revoked", start);
        revoked.insert(&ids(1..2), "purged", start + TOLD_TTL / 2);
        let later = start + TOLD_TTL;
        assert_eq!((revoked.reason("0", later), revoked.reason("1", later).as_deref()), (None, Some("revoked")));
        revoked.insert(&[], "revoked", later);
        assert_eq!((revoked.ids.len(), revoked.order.len()), (1, 1));
    }
}
