//! What follows from the tracers of one queue: when to send, which round has been through, and which tasks were missed for
//! long enough. Pure: it knows neither clock, store nor broker.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::trace::PRIORITIES;

use crate::store::UnixMs;

/// Rounds without an answer that are sent at the usual pace: they may lie in a long queue.
const UNANSWERED: usize = 100;
/// And those at the pace for workers that have room.
const MANY: usize = 1_000;
/// The pace after that.
const SLOW: Duration = Duration::from_mins(10);

/// Where a queue's tracers are, and what was missed so far.
pub(super) struct Trail {
    /// Between two rounds; twice as long when the one before is not back.
    every: Duration,
    /// For how long a task must be missed.
    after: Duration,
    /// Rounds from before are not concluded from.
    since: Option<Instant>,
    next: u64,
    sent_at: Option<Instant>,
    open: VecDeque<Round>,
    /// The round that has been through, and when its answer was here.
    through: Option<(Round, Instant)>,
    suspects: HashMap<i64, Suspect>,
}

/// A pair of tracers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    number: u64,
    sent: Instant,
    /// The same by the store's clock.
    pub(super) sent_at: UnixMs,
    /// Which of the pair are back.
    back: [bool; PRIORITIES.len()],
}

/// A row that nobody had in every round since.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    since: Instant,
    /// It was missed for long enough, and the next round decides: it brings what had been on its way in this one.
    ripe: bool,
}

impl Trail {
    pub(super) fn new(every: Duration, after: Duration) -> Self {
        Self {
            every,
            after,
            since: None,
            next: 0,
            sent_at: None,
            open: VecDeque::new(),
            through: None,
            suspects: HashMap::new(),
        }
    }

    /// Whether it is time for another round. `have_room`: the queue's workers could hold more than they do.
    pub(super) fn is_due(&self, now: Instant, have_room: bool) -> bool {
        let pause = match self.open.len() {
            0 if self.is_deciding() => self.every / 5,
            0 => self.every,
            1..UNANSWERED => self.every * 2,
            // Workers that have room met all that is there: the tracers may be lost.
            UNANSWERED..MANY if have_room => self.every * 5,
            _ => SLOW,
        };
        self.through.is_none() && self.sent_at.is_none_or(|sent| now.duration_since(sent) >= pause)
    }

    /// Whether the next round says of some tasks that they are lost.
    fn is_deciding(&self) -> bool {
        self.suspects.values().any(|suspect| suspect.ripe)
    }

    /// How long there is nothing to do.
    pub(super) fn rest(&self) -> Duration {
        if self.through.is_some() || self.is_deciding() { self.every / 10 } else { self.every }
    }

    /// Starts a round, which has this number.
    pub(super) fn send(&mut self, now: Instant, sent_at: UnixMs) -> u64 {
        let number = self.next;
        self.next += 1;
        self.sent_at = Some(now);
        self.open.push_back(Round { number, sent: now, sent_at, back: Default::default() });
        number
    }

    /// A tracer is back.
    pub(super) fn answer(&mut self, number: u64, priority: u8, now: Instant) {
        let Some(place) = self.open.iter().position(|round| round.number == number) else { return };
        let Some(lane) = PRIORITIES.iter().position(|lane| *lane == priority) else { return };
        self.open[place].back[lane] = true;
        if self.open[place].back.iter().all(|back| *back) {
            // What was sent before it and is not back is lost.
            let round = self.open.drain(..=place).next_back();
            let counts = round.filter(|round| self.since.is_none_or(|since| round.sent > since));
            self.through = self.through.or(counts.map(|round| (round, now)));
        }
    }

    /// The round that has been through, once `have_spoken` holds of the time of its answer.
    pub(super) fn through(&self, have_spoken: impl Fn(Instant) -> bool) -> Option<Round> {
        self.through.filter(|(_, answered)| have_spoken(*answered)).map(|(round, _)| round)
    }

    /// Takes in the rows that were `missing` in the round that has been through; which of them are lost.
    pub(super) fn judge(&mut self, missing: &[i64], now: Instant) -> Vec<i64> {
        let Some((round, _)) = self.through.take() else { return Vec::new() };
        let (mut suspects, mut lost) = (HashMap::new(), Vec::new());
        for seq in missing {
            let before = self.suspects.get(seq).copied();
            let Suspect { since, ripe } = before.unwrap_or(Suspect { since: now, ripe: false });
            if ripe {
                lost.push(*seq);
            } else {
                let ripe = round.sent.saturating_duration_since(since) >= self.after;
                suspects.insert(*seq, Suspect { since, ripe });
            }
        }
        self.suspects = suspects;
        lost
    }

    /// Nothing is missing.
    pub(super) fn clear(&mut self) {
        self.suspects.clear();
    }

    /// Something was not heard or seen: only what is sent from now on counts. Tracers that are under way still do for the
    /// pace.
    pub(super) fn forget(&mut self, now: Instant) {
        self.since = Some(now);
        self.through = None;
        self.suspects.clear();
    }

    /// The same after a gap in which tracers may have been lost.
    pub(super) fn restart(&mut self, now: Instant) {
        self.forget(now);
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVERY: Duration = Duration::from_secs(5);
    const AFTER: Duration = Duration::from_secs(30);

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn trail() -> (Trail, Instant) {
        (Trail::new(EVERY, AFTER), Instant::now())
    }

    impl Trail {
        /// A round that is back at once, and what it says.
        fn round(&mut self, missing: &[i64], now: Instant) -> Vec<i64> {
            assert!(self.is_due(now, false), "{:?}", self.sent_at.map(|sent| now - sent));
            let number = self.send(now, 0);
            self.answer_both(number, now);
            self.judge(missing, now)
        }

        fn answer_both(&mut self, number: u64, now: Instant) {
            for priority in PRIORITIES {
                self.answer(number, priority, now);
            }
        }
    }

    #[test]
    fn tracers_that_may_be_lost_are_not_waited_for() {
        let (mut trail, start) = trail();
        let mut now = start;
        let mut sent = |trail: &mut Trail, have_room| {
            let due = (1..1_000).find(|seconds| trail.is_due(now + self::seconds(*seconds), have_room)).unwrap();
            now += self::seconds(due);
            trail.send(now, 0);
            due
        };
        let first: Vec<u64> = (0..UNANSWERED).map(|_| sent(&mut trail, false)).collect();
        assert!(first.iter().all(|pause| *pause <= 10), "{first:?}");
        assert_eq!([sent(&mut trail, true), sent(&mut trail, false)], [25, 600]);
        trail.restart(start);
        assert_eq!(sent(&mut trail, false), 5);
    }

    #[test]
    fn what_is_missed_in_every_round_for_long_enough_is_lost_a_round_later() {
        let (mut trail, start) = trail();
        let lost_at = (0..20).map(|n| n * 5).find(|at| trail.round(&[1], start + seconds(*at)) == [1]);
        assert_eq!(lost_at, Some(35));
        assert!((0..=30).step_by(5).all(|at| trail.round(&[2], start + seconds(100 + at)).is_empty()));
        assert!(trail.rest() < EVERY && trail.is_due(start + seconds(131), false), "the round that decides is early");
        assert_eq!(trail.round(&[2], start + seconds(131)), [2]);
        assert_eq!(trail.round(&[2], start + seconds(140)), [0; 0], "it begins anew with its next copy");
    }

    #[test]
    fn what_was_seen_once_is_missed_anew() {
        let (mut trail, start) = trail();
        for at in (0..200).step_by(5) {
            let missing: &[i64] = if at % 35 == 30 { &[] } else { &[1] };
            assert_eq!(trail.round(missing, start + seconds(at)), [0; 0], "{at}");
        }
    }

    #[test]
    fn a_round_is_through_once_both_lanes_are_and_everybody_has_spoken() {
        let (mut trail, start) = trail();
        let number = trail.send(start, 7);
        trail.answer(number, 9, start + seconds(1));
        trail.answer(number, 9, start + seconds(1));
        assert!(trail.through.is_none());
        trail.answer(number, 0, start + seconds(2));
        assert!(trail.through(|answered| answered > start + seconds(2)).is_none());
        assert_eq!(trail.through(|answered| answered == start + seconds(2)).unwrap().sent_at, 7);
        assert!(!trail.is_due(start + seconds(100), false), "first it is judged");
        trail.judge(&[], start + seconds(100));
        assert!(trail.is_due(start + seconds(100), false));
    }

    #[test]
    fn a_fault_lets_only_later_rounds_count() {
        let (mut trail, start) = trail();
        for at in (0..=30).step_by(5) {
            trail.round(&[1], start + seconds(at));
        }
        let before = trail.send(start + seconds(35), 0);
        trail.forget(start + seconds(36));
        trail.answer_both(before, start + seconds(37));
        assert!(trail.through.is_none() && trail.open.is_empty());
        let lost_at = (8..40).map(|n| n * 5).find(|at| trail.round(&[1], start + seconds(*at)) == [1]);
        assert_eq!(lost_at, Some(75));
    }

    #[test]
    fn tracers_that_do_not_come_back_are_few() {
        let (mut trail, start) = trail();
        let hour = (0..7200).filter(|at| {
            let now = start + seconds(*at);
            trail.is_due(now, false) && trail.send(now, 0) < u64::MAX
        });
        assert!((100..112).contains(&hour.count()));
        trail.answer_both(50, start);
        assert!(trail.open.len() < 62 && trail.open.front().is_some_and(|round| round.number == 51));
        trail.judge(&[], start);
        trail.answer_both(7, start);
        assert!(trail.through.is_none(), "it was given up");
    }

    proptest! {
        /// Whatever the order of rounds, faults and answers: only what every judgement missed over the whole time is lost.
        #[test]
        fn nothing_is_lost_that_was_seen_lately(steps in prop::collection::vec((0..4_u8, any::<bool>(), 1..20_u64), 1..200)) {
            let (mut trail, mut now) = trail();
            let (mut missed_since, mut judged) = (None, 0);
            for (step, missing, pause) in steps {
                now += seconds(pause);
                match step {
                    0 => {
                        trail.forget(now);
                        (missed_since, judged) = (None, 0);
                    }
                    1 if trail.is_due(now, false) => drop(trail.send(now, 0)),
                    2 => {
                        let numbers: Vec<u64> = trail.open.iter().map(|round| round.number).collect();
                        for number in numbers {
                            trail.answer_both(number, now);
                        }
                    }
                    3 if trail.through(|_| true).is_some() => {
                        let lost = trail.judge(if missing { &[1] } else { &[] }, now);
                        if !missing {
                            (missed_since, judged) = (None, 0);
                        } else if missed_since.is_none() {
                            missed_since = Some(now);
                        }
                        judged += 1;
                        if !lost.is_empty() {
                            prop_assert!(judged >= 3 && missed_since.is_some_and(|since| now - since >= AFTER));
                            (missed_since, judged) = (None, 0);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
