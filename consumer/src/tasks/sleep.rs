//! `sleep(seconds)`: waits, fractions included, and returns the seconds.

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::seconds::{Seconds, wait_until};
use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct Sleep;

/// Waits, and returns for how long.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// Fractions included.
    seconds: Seconds,
}

impl Handler for Sleep {
    const NAME: &'static str = "sleep";
    type Args = Args;
    type Output = f64;

    async fn run(&self, Args { seconds: Seconds(time) }: Args, ctx: Context) -> Result<f64, TaskError> {
        wait_until(Instant::now() + time, &ctx).await?;
        Ok(time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Cancelled;
    use crate::testing::TestRun;
    use std::time::Duration;

    #[tokio::test]
    async fn it_returns_after_the_time() {
        let before = Instant::now();
        let args = Args { seconds: Seconds(Duration::from_millis(20)) };
        let slept = Sleep.run(args, TestRun::new().context()).await.unwrap();
        assert!(before.elapsed() >= Duration::from_millis(20));
        assert_eq!(slept.to_string(), "0.02");
    }

    #[tokio::test]
    async fn a_revoked_one_ends_at_once() {
        let run = TestRun::new();
        run.cancel(Cancelled::Revoked);
        let error = Sleep.run(Args { seconds: Seconds(Duration::from_hours(1)) }, run.context()).await.unwrap_err();
        assert!(matches!(error, TaskError::Fail { error } if error.kind == "TaskRevoked"));
    }
}
