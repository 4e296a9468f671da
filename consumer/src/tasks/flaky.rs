//! `flaky(failures)`: fails that many attempts and returns the number of the one that succeeds, counted from 0.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct Flaky;

/// Fails some attempts and returns the number of the one that succeeds, from 0.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// Attempts that fail.
    failures: u32,
}

impl Handler for Flaky {
    const NAME: &'static str = "flaky";
    type Args = Args;
    type Output = u32;

    async fn run(&self, Args { failures }: Args, ctx: Context) -> Result<u32, TaskError> {
        let attempt = ctx.attempt();
        if attempt < failures {
            return Err(TaskError::retry("Flaky", format!("attempt {attempt} fails, as do all before {failures}")));
        }
        Ok(attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;

    #[tokio::test]
    async fn it_fails_as_often_as_asked() {
        for attempt in 0..4 {
            let result = Flaky.run(Args { failures: 2 }, TestRun::attempt(attempt).context()).await;
            match result {
                Ok(succeeded) => assert!(attempt >= 2 && succeeded == attempt),
                Err(error) => assert!(attempt < 2 && matches!(error, TaskError::Retry { .. })),
            }
        }
    }
}
