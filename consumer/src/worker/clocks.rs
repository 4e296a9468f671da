//! What time it is by the clocks of the producers' stores. They set etas and expiries, so this machine's own clock, which
//! may be an hour off, decides nothing while a producer has said the time. It is no source of durations: those are
//! measured.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use protocol::timestamp::from_unix_ms;
use time::OffsetDateTime;
use tokio::time::Instant;

/// Stores whose time is known, whoever speaks on the exchange.
const MAX_STORES: usize = 64;

/// The clocks, each by the reply queue of its store.
#[derive(Default)]
pub(super) struct Clocks(Mutex<HashMap<String, Told>>);

/// A clock that was read, and when.
#[derive(Clone, Copy)]
struct Told {
    at: Instant,
    time: OffsetDateTime,
}

impl Told {
    fn now(self) -> Option<OffsetDateTime> {
        self.time.checked_add(self.at.elapsed().try_into().ok()?)
    }
}

impl Clocks {
    /// Takes in what a producer says its clock shows, ms since 1970.
    pub(super) fn set(&self, reply_queue: String, unix_ms: i64) {
        let Some(time) = from_unix_ms(unix_ms) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(reply_queue, Told { at: Instant::now(), time });
        if known.len() > MAX_STORES
            && let Some(oldest) = known.iter().min_by_key(|(_, told)| told.at).map(|(queue, _)| queue.clone())
        {
            known.remove(&oldest);
        }
    }

    /// The latest time that any clock shows, this machine's too.
    pub(super) fn latest(&self) -> OffsetDateTime {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(|told| told.now()).fold(OffsetDateTime::now_utc(), OffsetDateTime::max)
    }

    /// The time by the store that a task reports to. A task of a Celery client has none: it gets that of the store that
    /// spoke last, and this machine's where none has.
    pub(super) fn now(&self, reply_to: Option<&str>) -> OffsetDateTime {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = reply_to.and_then(|queue| known.get(queue));
        let told = own.or_else(|| known.values().max_by_key(|told| told.at));
        told.and_then(|told| told.now()).unwrap_or_else(OffsetDateTime::now_utc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::Duration;

    fn is_about(left: OffsetDateTime, right: OffsetDateTime) -> bool {
        (left - right).abs() < Duration::MINUTE
    }

    #[test]
    fn each_task_is_timed_by_the_clock_of_its_store() {
        let (clocks, own) = (Clocks::default(), OffsetDateTime::now_utc());
        let hours = |hours| own + Duration::hours(hours);
        assert!(is_about(clocks.now(Some("a")), own), "nobody has said anything");
        for (store, time) in [("a", hours(1)), ("b", hours(-1)), ("a", hours(2))] {
            clocks.set(store.to_owned(), i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap());
        }
        let known = [Some("a"), Some("b"), Some("a client's"), None].map(|store| clocks.now(store));
        let expected = [hours(2), hours(-1), hours(2), hours(2)];
        assert!(known.iter().zip(expected).all(|(known, expected)| is_about(*known, expected)), "{known:?}");
        assert!(is_about(clocks.latest(), hours(2)));
        clocks.set("c".to_owned(), i64::MAX);
        assert!(is_about(clocks.now(Some("c")), hours(2)), "beyond the calendar");
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let clocks = Clocks::default();
        for number in 0..1000 {
            clocks.set(number.to_string(), 0);
        }
        assert_eq!(clocks.0.lock().unwrap().len(), MAX_STORES);
        assert!(clocks.0.lock().unwrap().contains_key("999"), "those that speak are known");
    }
}
