//! `block_thread(seconds)`: a fault task that holds a thread of the runtime, deaf to every cancellation.

use schemars::JsonSchema;
use serde::Deserialize;

use super::seconds::Seconds;
use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct BlockThread;

/// Holds a thread that other tasks need, whatever its time limit says.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    seconds: Seconds,
}

impl Handler for BlockThread {
    const NAME: &'static str = "block_thread";
    type Args = Args;
    type Output = f64;

    async fn run(&self, Args { seconds: Seconds(time) }: Args, _: Context) -> Result<f64, TaskError> {
        std::thread::sleep(time);
        Ok(time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;
    use futures_util::FutureExt;
    use std::time::Duration;

    #[test]
    fn it_never_yields() {
        let args = Args { seconds: Seconds(Duration::from_millis(10)) };
        let result = BlockThread.run(args, TestRun::new().context()).now_or_never();
        assert!(result.expect("ready at the first poll").is_ok());
    }
}
