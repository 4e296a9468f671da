//! `hold_slot(seconds)`: a fault task that holds a thread of its own, deaf to every cancellation.

use schemars::JsonSchema;
use serde::Deserialize;

use super::seconds::Seconds;
use crate::context::Context;
use crate::handler::{Handler, TaskError};
use crate::options::TaskOptions;

pub(crate) struct HoldSlot;

/// Holds a thread for blocking tasks, whatever its time limit says.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// For how long.
    seconds: Seconds,
}

impl Handler for HoldSlot {
    const NAME: &'static str = "hold_slot";
    const OPTIONS: TaskOptions = TaskOptions::new().blocking();
    type Args = Args;
    type Output = f64;

    async fn run(&self, Args { seconds: Seconds(time) }: Args, _: Context) -> Result<f64, TaskError> {
        std::thread::sleep(time);
        Ok(time.as_secs_f64())
    }
}
