//! The states of a task and which report may follow which.
//!
//! Pure: the producer's store asks it for the order, and its SQL compares what this module computes.

use serde::{Deserialize, Serialize};

/// A task's state, by Celery's names (Celery's `states` module).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Accepted, and no worker has said that it runs.
    Pending,
    /// A worker runs it.
    Started,
    /// An attempt failed and the next one is due later.
    Retry,
    /// Its handler returned a result.
    Success,
    /// It was given up.
    Failure,
    /// It was revoked, or expired before it ran.
    Revoked,
}

impl State {
    /// All states, in the order of a task's life.
    pub const ALL: [Self; 6] = [Self::Pending, Self::Started, Self::Retry, Self::Success, Self::Failure, Self::Revoked];

    /// Celery's name of the state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
        }
    }

    /// The state of that name, `None` for any other word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether a task in this state has ended.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }

    /// Where the state stands within one attempt: a report of a lower rank is older.
    #[must_use]
    pub const fn rank(self) -> u8 {
        match self {
            Self::Pending => 0,
            Self::Started => 1,
            Self::Retry => 2,
            Self::Success | Self::Failure | Self::Revoked => 3,
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How far a task has come, as far as ordering reports needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The state as recorded.
    pub state: State,
    /// The attempt, from 0.
    pub retries: u32,
    /// The order among the reports of one attempt and rank.
    pub seq: u32,
    /// The attempt that its latest replay began with, 0 without one. Reports of earlier attempts are of an earlier life.
    pub replayed_from: u32,
}

/// What a report claims. A stock Celery worker says neither attempt nor order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The state reported.
    pub state: State,
    /// The attempt; `None` counts as the current one, or as the next where that is to be retried.
    pub retries: Option<u32>,
    /// The order among reports of one attempt and rank; `None` counts as the next.
    pub seq: Option<u32>,
    /// Whether the broker may have delivered it before.
    pub redelivered: bool,
}

impl Standing {
    /// Of a task that was just accepted.
    pub const ACCEPTED: Self = Self { state: State::Pending, retries: 0, seq: 0, replayed_from: 0 };

    /// Where the task stands after the claim, `None` when the claim is too late to count.
    ///
    /// The first terminal claim of a life wins whatever its attempt, and no claim follows it. Among open states the order
    /// is (attempt, rank, seq), strictly rising, so a duplicate changes nothing. What was claimed of a life before the
    /// latest replay is too late. One without an attempt that came before may be the very one that told of the retry which
    /// stands: an open one does not count then, so that an attempt may go uncounted and none is counted twice. The store's guard is this rule in SQL.
    #[must_use]
    pub fn after(self, claim: Claim) -> Option<Self> {
        let retries = claim.retries.unwrap_or_else(|| self.attempt());
        let is_doubtful = claim.redelivered && claim.retries.is_none() && self.state == State::Retry;
        if is_doubtful && !claim.state.is_terminal() {
            return None;
        }
        if self.state.is_terminal() || retries < self.replayed_from {
            return None;
        }
        let seq = claim.seq.unwrap_or(self.seq.saturating_add(1));
        let next = Self { state: claim.state, retries, seq, ..self };
        if claim.state.is_terminal() {
            // A late end of an earlier attempt closes the task, and the attempts that were made stay counted.
            return Some(Self { retries: retries.max(self.retries), ..next });
        }
        (next.key() > self.key()).then_some(next)
    }

    /// Where a task stands that was given up or revoked and is to run again, at the next attempt: never back at 0, so
    /// that what is still under way of the life before loses. `None` for a task that goes on or has succeeded.
    #[must_use]
    pub fn replayed(self) -> Option<Self> {
        let retries = self.retries.saturating_add(1);
        let is_over = matches!(self.state, State::Failure | State::Revoked);
        is_over.then_some(Self { state: State::Pending, retries, seq: 0, replayed_from: retries })
    }

    /// The attempt that is under way.
    fn attempt(self) -> u32 {
        self.retries.saturating_add(u32::from(self.state == State::Retry))
    }

    fn key(self) -> (u32, u8, u32) {
        (self.retries, self.state.rank(), self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_claim() -> impl Strategy<Value = Claim> {
        (0..State::ALL.len(), proptest::option::of(0..4_u32), proptest::option::of(0..4_u32), any::<bool>()).prop_map(
            |(state, retries, seq, redelivered)| Claim { state: State::ALL[state], retries, seq, redelivered },
        )
    }

    fn fold(claims: &[Claim]) -> Standing {
        claims.iter().fold(Standing::ACCEPTED, |at, claim| at.after(*claim).unwrap_or(at))
    }

    /// A full life: `failures` attempts that are retried, then a terminal state, with three reports of progress each.
    fn life(failures: u32, end: State) -> Vec<Claim> {
        let mut claims = Vec::new();
        for retries in 0..=failures {
            let of = |state, seq| Claim { state, retries: Some(retries), seq: Some(seq), redelivered: false };
            claims.extend((0..3).map(|seq| of(State::Started, seq)));
            claims.push(of(if retries == failures { end } else { State::Retry }, 0));
        }
        claims
    }

    /// A claim as a worker of ours makes it.
    fn any_of_ours() -> impl Strategy<Value = Claim> {
        any_claim().prop_map(|claim| Claim { retries: claim.retries.or(Some(0)), seq: claim.seq.or(Some(0)), ..claim })
    }

    /// The order of that number among the `n!` of the claims.
    fn in_order(mut number: usize, claims: &[Claim]) -> Vec<Claim> {
        let mut left = claims.to_vec();
        let mut take = |among: usize| {
            let place = number % among;
            number /= among;
            left.remove(place)
        };
        (1..=claims.len()).rev().map(&mut take).collect()
    }

    /// The rule in other words: the first end, else the furthest; and the latest attempt that was heard of until then.
    fn ruled(claims: &[Claim]) -> (State, u32) {
        let end = claims.iter().position(|claim| claim.state.is_terminal());
        let heard = &claims[..end.map_or(claims.len(), |end| end + 1)];
        let latest = heard.iter().filter_map(|claim| claim.retries).max().unwrap_or(0);
        let of_latest = heard.iter().filter(|claim| claim.retries == Some(latest)).map(|claim| claim.state);
        let furthest = of_latest.max_by_key(|state| state.rank()).unwrap_or(State::Pending);
        (end.map_or(furthest, |end| claims[end].state), latest)
    }

    proptest! {
        #[test]
        fn every_order_of_the_same_claims_ends_as_the_rule_says(
            mut claims in prop::collection::vec(any_of_ours(), 1..5), again: prop::sample::Index,
        ) {
            claims.push(claims[again.index(claims.len())]);
            let mut open = None;
            for number in 0..(1..=claims.len()).product() {
                let said = in_order(number, &claims);
                let end = fold(&said);
                prop_assert_eq!((end.state, end.retries), ruled(&said), "{:?}", said);
                if !end.state.is_terminal() {
                    prop_assert_eq!(*open.get_or_insert(end), end, "{:?}", said);
                }
            }
        }

        #[test]
        fn nothing_follows_a_terminal_state(claims in prop::collection::vec(any_claim(), 0..20), late in any_claim()) {
            let standing = fold(&claims);
            prop_assert_eq!(standing.state.is_terminal() && standing.after(late).is_some(), false);
        }

        #[test]
        fn the_first_terminal_claim_wins(claims in prop::collection::vec(any_claim(), 0..20)) {
            let first = claims.iter().find(|claim| claim.state.is_terminal());
            let end = fold(&claims);
            match first {
                Some(first) => prop_assert_eq!(end.state, first.state),
                None => prop_assert!(!end.state.is_terminal()),
            }
        }

        #[test]
        fn an_open_standing_never_goes_back(claims in prop::collection::vec(any_claim(), 0..20)) {
            let mut at = Standing::ACCEPTED;
            for claim in claims {
                if let Some(next) = at.after(claim) {
                    prop_assert!(next.state.is_terminal() || next.key() > at.key());
                    prop_assert!(next.retries >= at.retries);
                    at = next;
                }
            }
        }

        #[test]
        fn order_and_duplication_do_not_change_the_end(
            failures in 0..3_u32, end in 3..6_usize,
            shuffled in Just(()).prop_perturb(|(), mut rng| rng.random::<u64>()),
        ) {
            let mut claims = life(failures, State::ALL[end]);
            claims.extend(claims.clone());
            let mut order: Vec<usize> = (0..claims.len()).collect();
            order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(shuffled | 1).rotate_left(17));
            let mixed: Vec<Claim> = order.into_iter().map(|i| claims[i]).collect();
            let standing = fold(&mixed);
            prop_assert_eq!(standing.state, State::ALL[end]);
            prop_assert_eq!(standing.retries, failures);
        }

        #[test]
        fn without_the_end_the_latest_open_report_stands(failures in 1..4_u32, swap in 0..100_usize) {
            let mut claims = life(failures, State::Success);
            claims.pop();
            let n = claims.len();
            claims.swap(swap % n, (swap * 7 + 3) % n);
            let standing = fold(&claims);
            let expected = Standing { state: State::Started, retries: failures, seq: 2, replayed_from: 0 };
            prop_assert_eq!(standing, expected);
        }

        #[test]
        fn nothing_of_an_earlier_life_reaches_a_replayed_task(
            claims in prop::collection::vec(any_claim(), 0..20), late in any_claim(),
        ) {
            let before = fold(&claims);
            let Some(replayed) = before.replayed() else {
                prop_assert!(!before.state.is_terminal() || before.state == State::Success);
                return Ok(());
            };
            prop_assert!(replayed.key() > before.key(), "an event of it follows every event before");
            let is_old = late.retries.is_some_and(|retries| retries <= before.retries);
            if is_old {
                prop_assert_eq!(replayed.after(late), None);
            }
            let end =
                Claim { state: State::Success, retries: Some(replayed.retries), seq: Some(0), redelivered: false };
            prop_assert_eq!(replayed.after(end).map(|at| at.state), Some(State::Success));
        }
    }

    #[test]
    fn names_go_both_ways() {
        for state in State::ALL {
            assert_eq!(State::from_name(state.name()), Some(state));
        }
        assert_eq!(State::from_name("success"), None);
    }
}
