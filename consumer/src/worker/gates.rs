//! Who may start now: the limits of each task on this worker, and of the pools that tasks run in.
//!
//! A task that may not goes back to the broker for a while, so that it holds no place in the prefetch. How long is a
//! guess at when its turn comes: each one that is sent back gets the next turn after the last. A few wait here instead,
//! or a limit would not be used up while tasks travel.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::options::{Execution, RateLimit, TaskOptions};

/// The shortest delay queue: a wait below it is made here.
const SHORTEST: Duration = Duration::from_secs(1);
/// A guess is not trusted beyond this: other workers come, and runs get shorter.
const LONGEST: Duration = Duration::from_secs(64);
/// How long one waits here for others to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a run is taken to last before one has ended: too little costs a journey, too much leaves places empty.
const UNKNOWN: Duration = Duration::from_millis(100);
/// This part of the worker's places may be held by tasks that wait here for one limit,
const LINE: usize = 16;
/// and this part by those that wait for any.
const LINES: usize = 4;

/// Where a run takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the handlers' runtime.
    Among,
    /// On a thread of its own.
    Thread,
    /// In a process of its own.
    Apart,
}

impl Place {
    /// Of a task with these options; a suspect runs apart whatever it says.
    pub(super) const fn of(options: TaskOptions, suspect: bool) -> Self {
        match options.execution {
            _ if suspect => Self::Apart,
            Execution::Async => Self::Among,
            Execution::Blocking => Self::Thread,
            Execution::Isolated(_) => Self::Apart,
        }
    }
}

/// May a task start?
pub(super) enum Entry {
    /// Now, while this is held.
    Now(Pass),
    /// Not before about that, which is in whole seconds.
    Later(Duration),
}

/// The permission to run. It is given back when the run has really ended, not when its time is over.
#[derive(Default)]
pub(super) struct Pass {
    _within: Vec<Entered>,
}

/// One limit that a run is within.
struct Entered {
    gate: Arc<Gate>,
    since: Instant,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.gate.lock().observe(self.since.elapsed());
    }
}

/// All limits of this worker.
pub(super) struct Gates {
    tasks: HashMap<&'static str, Arc<Gate>>,
    threads: Arc<Gate>,
    children: Arc<Gate>,
    lines: Semaphore,
    patience: Duration,
}

struct Gate {
    places: Option<(Arc<Semaphore>, u32)>,
    line: Semaphore,
    state: Mutex<State>,
}

struct State {
    rate: Option<Rate>,
    /// How long a run takes, smoothed.
    usual: Option<Duration>,
    /// When the next one that is sent back should return.
    turn: Option<Instant>,
}

/// The latest starts, never more than the limit within any period.
struct Rate {
    limit: RateLimit,
    starts: VecDeque<Instant>,
}

impl Gates {
    pub(super) fn new(
        tasks: impl Iterator<Item = (&'static str, TaskOptions)>,
        threads: u16,
        children: u16,
        concurrency: u16,
    ) -> Self {
        let line = (usize::from(concurrency) / LINE).max(1);
        let limited = tasks.filter(|(_, options)| options.concurrency_limit.is_some() || options.rate_limit.is_some());
        let gate =
            |(name, options): (_, TaskOptions)| (name, Gate::new(options.concurrency_limit, options.rate_limit, line));
        Self {
            tasks: limited.map(gate).collect(),
            threads: Gate::new(NonZeroU32::new(threads.into()), None, line),
            children: Gate::new(NonZeroU32::new(children.into()), None, line),
            lines: Semaphore::new((usize::from(concurrency) / LINES).max(1)),
            patience: PATIENCE,
        }
    }

    /// Whether this task may start in that place. Cancel safe.
    pub(super) async fn enter(&self, task: &str, place: Place) -> Entry {
        let pool = match place {
            Place::Among => None,
            Place::Thread => Some(&self.threads),
            Place::Apart => Some(&self.children),
        };
        let own = self.tasks.get(task);
        if own.is_none() && pool.is_none() {
            return Entry::Now(Pass::default());
        }
        let deadline = Instant::now() + self.patience;
        // The task's own place first: one that waits for its own limit holds nothing that others need.
        let Some(own_place) = self.place(own).await else { return later(own, Duration::ZERO) };
        loop {
            let Some(pool_place) = self.place(pool).await else { return later(pool, Duration::ZERO) };
            // The rate last: a start that was counted cannot be taken back.
            let Some(wait) = own.and_then(|gate| gate.start()) else {
                return Entry::Now(Pass::within([(own, own_place), (pool, pool_place)]));
            };
            drop(pool_place);
            let too_long = wait >= SHORTEST || Instant::now() + wait > deadline;
            if too_long || self.wait(own, sleep(wait)).await.is_none() {
                return later(own, wait);
            }
        }
    }

    /// A place behind a gate, `None` when there is none.
    async fn place(&self, gate: Option<&Arc<Gate>>) -> Option<Option<OwnedSemaphorePermit>> {
        let Some((places, _)) = gate.and_then(|gate| gate.places.as_ref()) else { return Some(None) };
        if let Ok(permit) = places.clone().try_acquire_owned() {
            return Some(Some(permit));
        }
        self.wait(gate, places.clone().acquire_owned()).await?.ok().map(Some)
    }

    /// Waits here, if there is room for one more and if it does not take too long.
    async fn wait<T>(&self, gate: Option<&Arc<Gate>>, ready: impl Future<Output = T>) -> Option<T> {
        let _line = gate?.line.try_acquire().ok()?;
        let _lines = self.lines.try_acquire().ok()?;
        timeout(self.patience, ready).await.ok()
    }
}

fn later(gate: Option<&Arc<Gate>>, wait: Duration) -> Entry {
    Entry::Later(gate.map_or(SHORTEST, |gate| gate.later(wait)))
}

impl Pass {
    fn within(entered: [(Option<&Arc<Gate>>, Option<OwnedSemaphorePermit>); 2]) -> Self {
        let since = Instant::now();
        let entered = entered.into_iter().filter_map(|(gate, place)| {
            let gate = gate?.clone();
            Some(Entered { gate, since, _place: place })
        });
        Self { _within: entered.collect() }
    }
}

impl Gate {
    fn new(places: Option<NonZeroU32>, rate: Option<RateLimit>, line: usize) -> Arc<Self> {
        let places = places.map(|limit| (Arc::new(Semaphore::new(limit.get() as usize)), limit.get()));
        let rate = rate.map(|limit| Rate { limit, starts: VecDeque::new() });
        let state = Mutex::new(State { rate, usual: None, turn: None });
        Arc::new(Self { places, line: Semaphore::new(line), state })
    }

    fn start(&self) -> Option<Duration> {
        self.lock().start(Instant::now())
    }

    /// How long to stay away, at least `wait`.
    fn later(&self, wait: Duration) -> Duration {
        let among = self.places.as_ref().map_or(1, |(_, limit)| *limit);
        self.lock().later(Instant::now(), wait, among, fastrand::f64())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn observe(&mut self, run: Duration) {
        self.usual = Some(self.usual.map_or(run, |usual| usual * 7 / 8 + run / 8));
    }

    /// Counts a start, or says how long there can be none.
    fn start(&mut self, now: Instant) -> Option<Duration> {
        let rate = self.rate.as_mut()?;
        while rate.starts.front().is_some_and(|oldest| now.duration_since(*oldest) >= rate.limit.per) {
            rate.starts.pop_front();
        }
        if rate.starts.len() < rate.limit.starts.get() as usize {
            rate.starts.push_back(now);
            return None;
        }
        rate.starts.front().map(|oldest| (*oldest + rate.limit.per).saturating_duration_since(now))
    }

    /// `random` is 0 to 1: those beyond the longest guess do not all return at once.
    fn later(&mut self, now: Instant, wait: Duration, among: u32, random: f64) -> Duration {
        let by_rate = self.rate.as_ref().map(|rate| rate.limit.per / rate.limit.starts.get());
        let each = by_rate.unwrap_or_default().max(self.usual.unwrap_or(UNKNOWN) / among);
        let turn = self.turn.unwrap_or(now).max(now + wait.max(SHORTEST));
        let away = turn - now;
        if away > LONGEST {
            return whole_seconds(LONGEST.mul_f64(0.5 + random / 2.0));
        }
        self.turn = Some(turn + each);
        whole_seconds(away)
    }
}

/// Rounded up: a remainder would be waited out here.
fn whole_seconds(wait: Duration) -> Duration {
    Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gates(options: TaskOptions) -> Gates {
        let gates = Gates::new([("limited", options), ("free", TaskOptions::new())].into_iter(), 1, 1, 8);
        Gates { patience: Duration::from_millis(200), ..gates }
    }

    async fn now(gates: &Gates, task: &str) -> Option<Pass> {
        match gates.enter(task, Place::Among).await {
            Entry::Now(pass) => Some(pass),
            Entry::Later(wait) => {
                assert!(wait >= SHORTEST && wait <= LONGEST && wait.subsec_nanos() == 0, "{wait:?}");
                None
            }
        }
    }

    #[tokio::test]
    async fn a_task_over_its_concurrency_is_sent_back_and_others_are_not() {
        let gates = gates(TaskOptions::new().concurrency_limit(2));
        let first = now(&gates, "limited").await;
        let second = now(&gates, "limited").await;
        assert!(first.is_some() && second.is_some() && now(&gates, "free").await.is_some());
        assert!(now(&gates, "limited").await.is_none(), "it waited its patience out");
        drop(first);
        assert!(now(&gates, "limited").await.is_some());
    }

    #[tokio::test]
    async fn one_in_line_starts_when_another_ends() {
        let gates = Gates { patience: Duration::from_mins(1), ..gates(TaskOptions::new().concurrency_limit(1)) };
        let first = now(&gates, "limited").await.unwrap();
        let mut in_line = std::pin::pin!(now(&gates, "limited"));
        assert!(futures_util::poll!(&mut in_line).is_pending());
        assert!(now(&gates, "limited").await.is_none(), "the line has room for one");
        drop(first);
        assert!(in_line.await.is_some());
    }

    #[tokio::test]
    async fn a_pool_is_shared_by_its_tasks() {
        let gates = gates(TaskOptions::new());
        let held = gates.enter("limited", Place::Apart).await;
        assert!(matches!(held, Entry::Now(_)));
        assert!(matches!(gates.enter("free", Place::Apart).await, Entry::Later(_)));
        assert!(matches!(gates.enter("free", Place::Thread).await, Entry::Now(_)));
    }

    #[tokio::test]
    async fn one_that_waits_for_its_own_limit_holds_no_place_of_the_pool() {
        let gates = Gates { patience: Duration::from_mins(1), ..gates(TaskOptions::new().concurrency_limit(1)) };
        let running = gates.enter("limited", Place::Among).await;
        assert!(matches!(running, Entry::Now(_)));
        let mut waiting = std::pin::pin!(gates.enter("limited", Place::Thread));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert!(matches!(gates.enter("free", Place::Thread).await, Entry::Now(_)), "the only thread is free");
    }

    #[test]
    fn a_suspect_runs_apart_whatever_it_says() {
        assert_eq!(Place::of(TaskOptions::new(), false), Place::Among);
        assert_eq!(Place::of(TaskOptions::new().blocking(), false), Place::Thread);
        assert_eq!(Place::of(TaskOptions::new().blocking(), true), Place::Apart);
    }

    proptest! {
        #[test]
        fn no_period_has_more_starts_than_the_rate(limit in 1..20_u32, steps in prop::collection::vec(0..400_u64, 1..200)) {
            let gate = Gate::new(None, Some(RateLimit::per_second(limit)), 1);
            let (mut state, mut at, mut starts) = (gate.lock(), Instant::now(), Vec::new());
            for step in steps {
                at += Duration::from_millis(step);
                if let Some(wait) = state.start(at) {
                    at += wait;
                    prop_assert!(state.start(at).is_none());
                }
                starts.push(at);
            }
            for window in starts.windows(limit as usize + 1) {
                prop_assert!(window[limit as usize] - window[0] >= Duration::from_secs(1));
            }
        }

        #[test]
        fn those_sent_back_take_turns(count in 1..500_u32, starts in 1..50_u32, random in 0.0..1.0_f64) {
            let gate = Gate::new(None, Some(RateLimit::per_second(starts)), 1);
            let (mut state, now) = (gate.lock(), Instant::now());
            let mut turns = vec![0_u32; 66];
            for _ in 0..count {
                let wait = state.later(now, Duration::ZERO, 1, random);
                prop_assert!(wait >= SHORTEST && wait <= LONGEST);
                turns[usize::try_from(wait.as_secs()).unwrap()] += 1;
            }
            // No second gets many more than the rate lets start, as long as the guess is trusted.
            let trusted = usize::try_from(LONGEST.as_secs() / 2).unwrap();
            prop_assert!(turns[..trusted].iter().all(|&count| count <= starts + 2), "{turns:?}");
        }
    }
}
