//! When the silence of stock Celery workers counts: only while this producer has been listening for a while. Replies that
//! came when it was down, or the broker, or the store, or the machine slept, are read first.

use std::time::Duration;

use protocol::amqp::Link;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::{Silence, UnixMs};

/// In which replies that have piled up are recorded.
const CATCH_UP: Duration = Duration::from_mins(1);
/// What a machine that is merely busy may take from one look to the next.
const SHORTEST_GAP: Duration = Duration::from_secs(4);

/// What tells of it: the reply queue's connection, the loop that records, and the wall clock, which goes on while the
/// machine is suspended.
pub struct Hearing {
    link: watch::Receiver<Link>,
    failures: watch::Receiver<()>,
    longest: Duration,
    looked: Option<(Instant, UnixMs)>,
    /// How far the wall clock has gone ahead of the machine's, and when it last did: by it tasks were silent for longer
    /// than they were.
    ahead: Option<(Instant, Duration)>,
    /// Since when nothing has kept replies from being read.
    since: Option<Instant>,
}

impl Hearing {
    /// By the connection that replies come over and the store's failures to take them. Celery's workers may be silent for
    /// `longest`.
    #[must_use]
    pub fn new(mut link: watch::Receiver<Link>, failures: watch::Receiver<()>, longest: Duration) -> Self {
        link.mark_changed();
        Self { link, failures, longest, looked: None, ahead: None, since: None }
    }

    /// How often to ask.
    #[must_use]
    pub fn every(&self) -> Duration {
        (self.longest / 10).clamp(Duration::from_millis(500), Duration::from_mins(1))
    }

    /// The silence that has been too long by now, `at` by the machine and `now` by the wall; `None` while it may be this
    /// producer that did not hear.
    pub fn too_long(&mut self, at: Instant, now: UnixMs) -> Option<Silence> {
        if self.was_kept_from_it(at, now) {
            self.since = self.link.borrow_and_update().is_ready().then_some(at);
        }
        let caught_up = self.since.is_some_and(|since| at.duration_since(since) >= CATCH_UP.min(self.longest));
        let ahead = self.ahead.filter(|(since, _)| at.duration_since(*since) < self.longest);
        let longest = self.longest + ahead.map_or(Duration::ZERO, |(_, by)| by);
        caught_up.then_some(Silence { longest, now })
    }

    /// Since the last look.
    fn was_kept_from_it(&mut self, at: Instant, now: UnixMs) -> bool {
        let gap = (2 * self.every()).max(SHORTEST_GAP);
        let (looked, shown) = self.looked.replace((at, now)).unwrap_or((at, now));
        let passed = Duration::from_millis(now.saturating_sub(shown).try_into().unwrap_or(0));
        let slept = passed > gap;
        let by = passed.saturating_sub(at.duration_since(looked));
        if by > gap {
            let before = self.ahead.map_or(Duration::ZERO, |(_, before)| before);
            self.ahead = Some((at, before.saturating_add(by)));
        }
        let failed = self.failures.has_changed().unwrap_or(false);
        self.failures.mark_unchanged();
        slept || failed || self.link.has_changed().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_once_the_producer_has_listened_for_a_while() {
        let (set, _failures, mut hearing) = hearing();
        let start = Instant::now();
        let mut is_heard = |seconds| is_heard_at(&mut hearing, start, seconds, seconds);
        assert!(!is_heard(0));
        set.send_replace(Link::Ready);
        assert_eq!([1, 60, 61].map(&mut is_heard), [false, false, true]);
        // Gone and back between two looks.
        set.send_replace(Link::Down("cut".to_owned()));
        set.send_replace(Link::Ready);
        assert_eq!([100, 159, 160].map(&mut is_heard), [false, false, true]);
        set.send_replace(Link::Down("cut".to_owned()));
        assert_eq!([200, 300, 400].map(&mut is_heard), [false, false, false]);
    }

    #[test]
    fn it_counts_anew_after_the_machine_slept_or_the_store_failed() {
        let (set, failures, mut hearing) = hearing();
        let start = Instant::now();
        let mut is_heard = |seconds, wall| is_heard_at(&mut hearing, start, seconds, wall);
        set.send_replace(Link::Ready);
        assert_eq!([0, 60, 120, 240].map(|seconds| is_heard(seconds, seconds)), [false, true, true, true]);
        // The machine's own clock stands still meanwhile.
        assert_eq!([(250, 2000), (309, 2059), (310, 2060)].map(|(at, wall)| is_heard(at, wall)), [false, false, true]);
        failures.send_replace(());
        assert_eq!([(320, 2070), (379, 2129), (380, 2130)].map(|(at, wall)| is_heard(at, wall)), [false, false, true]);
        assert!(is_heard(390, 100), "a wall clock that was set back kept nobody from hearing");
    }

    #[test]
    fn a_wall_clock_that_is_set_ahead_makes_nobody_silent_for_longer() {
        let (set, _failures, mut hearing) = hearing();
        let start = Instant::now();
        set.send_replace(Link::Ready);
        let mut longest = |seconds: u64, wall: i64| {
            let silence = hearing.too_long(start + Duration::from_secs(seconds), wall * 1_000);
            silence.map(|silence| silence.longest.as_secs())
        };
        assert_eq!([longest(0, 0), longest(60, 60), longest(120, 3_720)], [None, Some(3_600), None]);
        for seconds in (180..3_720).step_by(60) {
            assert_eq!(longest(seconds, seconds.cast_signed() + 3_600), Some(7_200), "{seconds}");
        }
        assert_eq!(longest(3_720, 7_320), Some(3_600), "what was heard before is silent for so long by now");
    }

    fn hearing() -> (watch::Sender<Link>, watch::Sender<()>, Hearing) {
        let ((set, link), (fail, failures)) = (watch::channel(Link::Connecting), watch::channel(()));
        (set, fail, Hearing::new(link, failures, Duration::from_hours(1)))
    }

    fn is_heard_at(hearing: &mut Hearing, start: Instant, seconds: u32, wall: u32) -> bool {
        hearing.too_long(start + Duration::from_secs(seconds.into()), i64::from(wall) * 1_000).is_some()
    }
}
