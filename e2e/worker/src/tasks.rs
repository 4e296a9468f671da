//! Tasks whose results follow from their arguments. Each takes its order's number first.

use std::time::Duration;

use consumer::context::{Cancelled, Context};
use consumer::handler::{Handler, TaskError};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::sleep;

use crate::ledger::Ledger;

/// Between two reports of progress.
const STEP: Duration = Duration::from_millis(100);

/// A task's only argument.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Order {
    /// The order's number.
    n: u64,
}

/// Returns the square of its number.
pub(crate) struct Quick(pub(crate) Ledger);

impl Handler for Quick {
    const NAME: &'static str = "quick";
    type Args = Order;
    type Output = u64;

    async fn run(&self, Order { n }: Order, ctx: Context) -> Result<u64, TaskError> {
        let run = self.0.start(n, &ctx)?;
        run.effect()?;
        run.end()?;
        Ok(n * n)
    }
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct SlowOrder {
    n: u64,
    /// How long it takes.
    millis: u64,
}

/// Takes its time, tells its progress, and ends early when it is revoked.
pub(crate) struct Slow(pub(crate) Ledger);

impl Handler for Slow {
    const NAME: &'static str = "slow";
    type Args = SlowOrder;
    type Output = u64;

    async fn run(&self, SlowOrder { n, millis }: SlowOrder, ctx: Context) -> Result<u64, TaskError> {
        let run = self.0.start(n, &ctx)?;
        let step = u64::try_from(STEP.as_millis()).unwrap_or(u64::MAX);
        for done in 0..millis.div_ceil(step) {
            ctx.progress(done * step, millis);
            tokio::select! {
                () = sleep(STEP) => {}
                reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => {
                    run.end()?;
                    return Err(reason.into());
                }
            }
        }
        run.effect()?;
        run.end()?;
        Ok(n * n)
    }
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct FlakyOrder {
    n: u64,
    /// Attempts that fail.
    failures: u32,
}

/// Fails its first attempts.
pub(crate) struct Flaky(pub(crate) Ledger);

impl Handler for Flaky {
    const NAME: &'static str = "flaky";
    type Args = FlakyOrder;
    type Output = u64;

    async fn run(&self, FlakyOrder { n, failures }: FlakyOrder, ctx: Context) -> Result<u64, TaskError> {
        let run = self.0.start(n, &ctx)?;
        if ctx.attempt() < failures {
            run.end()?;
            return Err(TaskError::retry("Flaky", format!("attempt {} of {n} fails", ctx.attempt())));
        }
        run.effect()?;
        run.end()?;
        Ok(n * n)
    }
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct CrashingOrder {
    n: u64,
    /// Runs that end with the process.
    deaths: u32,
}

/// Kills the process that runs it, the first times.
pub(crate) struct Crashing(pub(crate) Ledger);

impl Handler for Crashing {
    const NAME: &'static str = "crashing";
    type Args = CrashingOrder;
    type Output = u64;

    async fn run(&self, CrashingOrder { n, deaths }: CrashingOrder, ctx: Context) -> Result<u64, TaskError> {
        let run = self.0.start(n, &ctx)?;
        run.crash(deaths)?;
        run.effect()?;
        run.end()?;
        Ok(n * n)
    }
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct LargeOrder {
    n: u64,
    /// What is returned twice over.
    text: String,
}

/// Takes and returns much.
pub(crate) struct Large(pub(crate) Ledger);

impl Handler for Large {
    const NAME: &'static str = "large";
    type Args = LargeOrder;
    type Output = String;

    async fn run(&self, LargeOrder { n, text }: LargeOrder, ctx: Context) -> Result<String, TaskError> {
        let run = self.0.start(n, &ctx)?;
        run.effect()?;
        run.end()?;
        Ok(text.repeat(2))
    }
}

/// Fails each attempt.
pub(crate) struct Failing(pub(crate) Ledger);

impl Handler for Failing {
    const NAME: &'static str = "failing";
    type Args = Order;
    type Output = ();

    async fn run(&self, Order { n }: Order, ctx: Context) -> Result<(), TaskError> {
        self.0.start(n, &ctx)?.end()?;
        Err(TaskError::retry("Hopeless", format!("{n} never succeeds")))
    }
}
