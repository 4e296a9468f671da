//! `cpu_bound(n)`: counts the primes up to `n` by trial division, on a thread of its own. It is there to keep a CPU
//! busy, so it is no sieve.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::{Cancelled, Context};
use crate::handler::{Handler, TaskError};
use crate::options::TaskOptions;

/// Candidates between two looks at the context: some ten milliseconds at the upper end.
const STRIDE: u32 = 20_000;

pub(crate) struct CpuBound;

/// Counts the primes up to a number, the slow way, and tells its progress.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// The last number that is looked at, at most 100 million. It takes about a second for 7 million, and some forty
    /// for 100 million.
    n: Limit,
}

#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
struct Limit(u32);

impl TryFrom<u64> for Limit {
    type Error = &'static str;

    fn try_from(n: u64) -> Result<Self, Self::Error> {
        u32::try_from(n).ok().filter(|n| *n <= 100_000_000).map(Self).ok_or("above 100000000")
    }
}

impl Handler for CpuBound {
    const NAME: &'static str = "cpu_bound";
    const OPTIONS: TaskOptions = TaskOptions::new().blocking();
    type Args = Args;
    type Output = u32;

    async fn run(&self, Args { n: Limit(n) }: Args, ctx: Context) -> Result<u32, TaskError> {
        let mut primes = 0;
        let mut next = 0;
        while next <= n {
            // A shutdown leaves a grace period, which this uses.
            if let Some(reason) = ctx.is_cancelled().filter(|reason| *reason != Cancelled::Shutdown) {
                return Err(reason.into());
            }
            ctx.progress(next.into(), u64::from(n));
            let end = next.saturating_add(STRIDE).min(n + 1);
            primes += (next..end).map(|candidate| u32::from(is_prime(candidate))).sum::<u32>();
            next = end;
        }
        ctx.progress(n.into(), u64::from(n));
        Ok(primes)
    }
}

fn is_prime(candidate: u32) -> bool {
    if candidate.is_multiple_of(2) {
        return candidate == 2;
    }
    let divisors = (3..).step_by(2).take_while(|divisor: &u32| u64::from(*divisor).pow(2) <= candidate.into());
    candidate > 1 && !divisors.into_iter().any(|divisor| candidate.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;
    use std::time::Instant;

    #[tokio::test]
    async fn the_count_is_right() {
        for (n, primes) in [(0, 0), (1, 0), (2, 1), (3, 2), (10, 4), (100, 25), (100_000, 9592)] {
            let run = TestRun::new();
            assert_eq!(run.run(&CpuBound, Args { n: Limit(n) }).await.unwrap(), primes, "up to {n}");
            let progress: Vec<u64> = run.progress().iter().map(|progress| progress.current).collect();
            assert!(progress.is_sorted() && progress.last() == Some(&u64::from(n)), "{progress:?}");
        }
    }

    #[tokio::test]
    async fn a_cancellation_ends_it_between_two_strides() {
        let run = TestRun::new();
        let (cancelled, context) = (Instant::now(), run.context());
        run.cancel(Cancelled::Revoked);
        let error = CpuBound.run(Args { n: Limit(100_000_000) }, context).await.unwrap_err();
        assert!(matches!(error, TaskError::Fail { error } if error.kind == "TaskRevoked"));
        assert!(cancelled.elapsed().as_secs() < 10);
    }

    #[test]
    fn n_is_bounded() {
        for n in ["100000001", "-1", "1.5", "\"1\""] {
            assert!(serde_json::from_str::<Limit>(n).is_err(), "{n}");
        }
    }
}
