//! `long_running_task(data, seconds=10)`: works for that long, tells its progress each second, and returns `data`
//! doubled: twice a number, a string repeated.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::add::sum;
use super::seconds::{WholeSeconds, wait_until};
use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct LongRunningTask;

/// Works for some seconds, tells its progress each second, and returns `data` doubled.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// A number, or a string, which is repeated.
    data: Value,
    /// For how long.
    #[serde(default = "ten_seconds")]
    seconds: WholeSeconds,
}

fn ten_seconds() -> WholeSeconds {
    WholeSeconds(10)
}

impl Handler for LongRunningTask {
    const NAME: &'static str = "long_running_task";
    type Args = Args;
    type Output = Value;

    async fn run(&self, Args { data, seconds: WholeSeconds(total) }: Args, ctx: Context) -> Result<Value, TaskError> {
        // Before the work, so that data which cannot be doubled does not cost its time.
        let doubled = doubled(data)?;
        let started = Instant::now();
        ctx.progress(0, total);
        for second in 1..=total {
            wait_until(started + Duration::from_secs(second), &ctx).await?;
            ctx.progress(second, total);
        }
        Ok(doubled)
    }
}

fn doubled(data: Value) -> Result<Value, TaskError> {
    match data {
        Value::Number(number) => sum(&number, &number).map(Value::Number),
        Value::String(text) => Ok(Value::String(text.repeat(2))),
        _ => Err(TaskError::fail("InvalidArguments", "argument `data`: neither a number nor a string")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Cancelled;
    use crate::testing::TestRun;
    use protocol::reply::Progress;
    use serde_json::json;

    fn args(data: Value, seconds: u64) -> Args {
        Args { data, seconds: WholeSeconds(seconds) }
    }

    #[tokio::test]
    async fn data_is_doubled() {
        for (data, doubled) in [(json!(21), json!(42)), (json!(1.5), json!(3.0)), (json!("ab"), json!("abab"))] {
            let result = LongRunningTask.run(args(data, 0), TestRun::new().context()).await;
            assert_eq!(result.unwrap(), doubled);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_doubled_fails_before_the_work() {
        for data in [json!(null), json!([1]), json!({}), json!(true)] {
            let error = LongRunningTask.run(args(data, 3600), TestRun::new().context()).await.unwrap_err();
            assert!(matches!(error, TaskError::Fail { error } if error.kind == "InvalidArguments"));
        }
    }

    #[tokio::test]
    async fn progress_starts_at_zero_and_ends_at_the_total() {
        let run = TestRun::new();
        let at = |current| Progress { current, total: Some(1), message: None };
        assert_eq!(run.run(&LongRunningTask, args(json!(1), 1)).await.unwrap(), json!(2));
        assert_eq!(run.progress(), [at(0), at(1)]);
    }

    #[tokio::test]
    async fn the_soft_time_limit_ends_it() {
        let run = TestRun::new();
        run.cancel(Cancelled::SoftTimeLimit);
        let error = LongRunningTask.run(args(json!(1), 3600), run.context()).await.unwrap_err();
        assert!(matches!(error, TaskError::Fail { error } if error.kind == "SoftTimeLimitExceeded"));
    }
}
