//! Whether anything may be concluded: only while this process has heard and looked without a gap.

use std::time::{Duration, Instant};

use protocol::amqp::Link;
use tokio::sync::watch;

use crate::store::UnixMs;

/// A look that is later than this found the process asleep.
const LATE: Duration = Duration::from_secs(10);
/// By how much the store's clock and time may part between two looks before it counts as set.
const SET_MS: i64 = 2_000;

/// What a look shows of the time since the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sight {
    /// There was no gap.
    pub(super) holds: bool,
    /// By how much the store's clock was set, in ms; forward too when the machine was suspended.
    pub(super) step: UnixMs,
}

/// The connections that tell of tasks, and the clocks.
pub(super) struct Steady {
    links: Vec<watch::Receiver<Link>>,
    looked: Option<(Instant, UnixMs)>,
}

impl Steady {
    pub(super) fn new(mut links: Vec<watch::Receiver<Link>>) -> Self {
        links.iter_mut().for_each(watch::Receiver::mark_changed);
        Self { links, looked: None }
    }

    /// Looks; this look was `planned` for then.
    pub(super) fn look(&mut self, planned: Instant, now: Instant, at: UnixMs) -> Sight {
        let changed: Vec<bool> = self.links.iter().map(|link| link.has_changed().unwrap_or(true)).collect();
        let ready = self.links.iter_mut().all(|link| link.borrow_and_update().is_ready());
        let awake = now.saturating_duration_since(planned) < LATE;
        let passed = |before: Instant| i64::try_from(now.duration_since(before).as_millis()).unwrap_or(i64::MAX);
        let step = self.looked.replace((now, at)).map(|(before, then)| at - then - passed(before));
        let holds = ready && awake && step.is_some_and(|step| step.abs() <= SET_MS) && !changed.contains(&true);
        Sight { holds, step: step.filter(|step| step.abs() > SET_MS).unwrap_or(0) }
    }

    /// The next look is the first again: nothing is at the broker meanwhile.
    pub(super) fn rest(&mut self) {
        self.looked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_hearing_looking_or_time_shows() {
        let (set, link) = watch::channel(Link::Connecting);
        let (_other, ready) = watch::channel(Link::Ready);
        let mut steady = Steady::new(vec![link, ready]);
        let start = Instant::now();
        let mut look = |seconds: u64, late: u64, at: i64| {
            let planned = start + Duration::from_secs(seconds);
            steady.look(planned, planned + Duration::from_secs(late), at * 1_000).holds
        };
        assert!(!look(0, 0, 100));
        set.send_replace(Link::Ready);
        assert_eq!((look(5, 0, 105), look(10, 0, 110)), (false, true), "it was just connected");
        set.send_replace(Link::Blocked);
        assert!(!look(15, 0, 115));
        // Gone and back between two looks.
        set.send_replace(Link::Ready);
        assert_eq!((look(20, 0, 120), look(25, 0, 125)), (false, true));
        assert_eq!((look(30, 60, 190), look(95, 0, 195)), (false, true), "it slept");
        assert_eq!((look(100, 0, 500), look(105, 0, 505)), (false, true), "the clock was set");
        assert_eq!((look(110, 0, 400), look(115, 2, 407)), (false, true));
        let mut step = |seconds: u64, at: i64| {
            let now = start + Duration::from_secs(seconds);
            steady.look(now, now, at * 1_000).step
        };
        assert_eq!([step(127, 417), step(132, 4_022), step(137, 427), step(142, 433)], [0, 3_600_000, -3_600_000, 0]);
        steady.rest();
        assert_eq!(steady.look(start, start, 0), Sight { holds: false, step: 0 });
    }
}
