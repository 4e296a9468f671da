//! The ids of revoked tasks, within bounds of number and age.

use std::collections::{HashMap, VecDeque};
use std::iter::repeat;
use std::sync::Arc;

use protocol::control::TOLD_TTL;
use tokio::time::Instant;

/// The newest that are kept.
const MAX_REVOKED: usize = 100_000;

/// That a task was revoked, and when, ms since 1970 by its producer's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::worker) struct Revocation {
    pub(in crate::worker) task_id: String,
    at: i64,
}

impl Revocation {
    /// Each id with its time; the last time there is when none is said.
    pub(super) fn of(task_ids: Vec<String>, at: &[i64]) -> Vec<Self> {
        let at = at.iter().copied().chain(repeat(i64::MAX));
        task_ids.into_iter().zip(at).map(|(task_id, at)| Self { task_id, at }).collect()
    }

    /// Whether it is for a task that has been alive since then: one that was replayed, or submitted under the same id,
    /// after it is not revoked. A task that does not say it is.
    pub(in crate::worker) fn is_for(&self, since: Option<i64>) -> bool {
        since.is_none_or(|since| since <= self.at)
    }
}

/// Producers tell the ids of open tasks again every hour, so one that is not heard of for three has ended.
#[derive(Default)]
pub(super) struct Revoked {
    ids: HashMap<Arc<str>, Told>,
    /// One entry a telling; one that is not the latest of its id counts for nothing.
    order: VecDeque<(Instant, Arc<str>)>,
}

struct Told {
    heard: Instant,
    revocation: Revocation,
    reason: Arc<str>,
}

impl Revoked {
    /// Takes them in, each from now on for [`TOLD_TTL`].
    pub(super) fn insert(&mut self, revocations: &[Revocation], reason: &str, now: Instant) {
        let reason: Arc<str> = reason.into();
        for revocation in revocations {
            let id: Arc<str> = revocation.task_id.as_str().into();
            let fresh = Told { heard: now, revocation: revocation.clone(), reason: reason.clone() };
            // Of one life the first reason stays: a task that was revoked is not purged afterwards.
            let told = match self.ids.remove(&id) {
                Some(known) if known.revocation.at >= revocation.at => Told { heard: now, ..known },
                _ => fresh,
            };
            self.ids.insert(id.clone(), told);
            self.order.push_back((now, id));
        }
        self.forget(now);
    }

    /// Why the task of that id, alive since then, was revoked; `None` when it was not.
    pub(super) fn reason(&mut self, id: &str, since: Option<i64>, now: Instant) -> Option<Arc<str>> {
        let told = self.ids.get(id).filter(|told| told.revocation.is_for(since))?;
        (now.duration_since(told.heard) < TOLD_TTL).then(|| told.reason.clone())
    }

    /// The ids, at most so many.
    pub(super) fn ids(&self, max: usize) -> Vec<String> {
        self.ids.keys().take(max).map(ToString::to_string).collect()
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, id)) = self.order.front() {
            let latest = self.ids.get(id).is_some_and(|told| told.heard == *at);
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

    fn ids(numbers: std::ops::Range<usize>) -> Vec<Revocation> {
        Revocation::of(numbers.map(|number| number.to_string()).collect(), &[])
    }

    #[test]
    fn the_newest_are_kept_within_their_number() {
        let (mut revoked, now) = (Revoked::default(), Instant::now());
        revoked.insert(&ids(0..MAX_REVOKED), "revoked", now);
        revoked.insert(&ids(MAX_REVOKED..MAX_REVOKED + 10), "purged", now + Duration::from_secs(1));
        assert_eq!((revoked.ids.len(), revoked.order.len()), (MAX_REVOKED, MAX_REVOKED));
        let known = [0, 9, 10, MAX_REVOKED + 9];
        let known = known.map(|number| revoked.reason(&number.to_string(), Some(1), now).is_some());
        assert_eq!(known, [false, false, true, true]);
    }

    #[test]
    fn one_that_is_told_again_stays_and_others_leave_with_their_age() {
        let (mut revoked, start) = (Revoked::default(), Instant::now());
        revoked.insert(&ids(0..2), "revoked", start);
        revoked.insert(&ids(1..2), "purged", start + TOLD_TTL / 2);
        let later = start + TOLD_TTL;
        let reasons = ["0", "1"].map(|id| revoked.reason(id, None, later));
        assert_eq!((reasons[0].as_deref(), reasons[1].as_deref()), (None, Some("revoked")));
        revoked.insert(&[], "revoked", later);
        assert_eq!((revoked.ids.len(), revoked.order.len()), (1, 1));
    }

    #[test]
    fn a_life_that_began_after_it_is_not_revoked_by_it() {
        let (mut revoked, now) = (Revoked::default(), Instant::now());
        let at = |at: i64| Revocation::of(vec!["a".to_owned()], &[at]);
        revoked.insert(&at(5), "revoked", now);
        let mut why = |since| revoked.reason("a", since, now).as_deref().map(str::to_owned);
        assert_eq!([Some(6), Some(5), None].map(&mut why), [None, Some("revoked".into()), Some("revoked".into())]);
        revoked.insert(&at(9), "purged", now);
        revoked.insert(&at(5), "revoked", now);
        assert_eq!(revoked.reason("a", Some(6), now).as_deref(), Some("purged"), "the latest holds");
    }
}
