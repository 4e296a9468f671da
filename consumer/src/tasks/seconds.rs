//! The arguments that say how long a task takes, and waiting for that long.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use crate::context::{Cancelled, Context};
use crate::handler::TaskError;

const MAX: f64 = 86_400.0;

/// A time of at most a day.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(try_from = "f64")]
pub(crate) struct Seconds(pub(crate) Duration);

impl TryFrom<f64> for Seconds {
    type Error = &'static str;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        if (0.0..=MAX).contains(&seconds) {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err("not a number of seconds from 0 to 86400")
        }
    }
}

/// A time in whole seconds, of at most a day. `10.0` is whole, as many languages write no other number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "f64")]
pub(crate) struct WholeSeconds(pub(crate) u64);

impl TryFrom<f64> for WholeSeconds {
    type Error = &'static str;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        match Seconds::try_from(seconds) {
            Ok(Seconds(time)) if seconds.fract() == 0.0 => Ok(Self(time.as_secs())),
            _ => Err("not a whole number of seconds from 0 to 86400"),
        }
    }
}

/// Waits, unless the run is cancelled. A shutdown does not count: these tasks use the grace period it leaves them.
pub(crate) async fn wait_until(time: Instant, ctx: &Context) -> Result<(), TaskError> {
    tokio::select! {
        () = tokio::time::sleep_until(time) => Ok(()),
        reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => Err(reason.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;

    #[test]
    fn whole_seconds_may_be_written_as_floats() {
        for (json, seconds) in [("0", Some(0)), ("10.0", Some(10)), ("86400", Some(86_400)), ("-0.0", Some(0))] {
            assert_eq!(serde_json::from_str(json).ok().map(|WholeSeconds(seconds)| seconds), seconds);
        }
        for json in ["0.5", "-1", "86401", "1e300", "\"1\"", "null"] {
            assert!(serde_json::from_str::<WholeSeconds>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(serde_json::from_str::<Seconds>("0.25").unwrap().0, Duration::from_millis(250));
        for json in ["-0.1", "86400.5", "1e300"] {
            assert!(serde_json::from_str::<Seconds>(json).is_err(), "{json}");
        }
    }

    #[tokio::test]
    async fn a_shutdown_lets_the_wait_go_on() {
        let run = TestRun::new();
        run.cancel(Cancelled::Shutdown);
        wait_until(Instant::now() + Duration::from_millis(10), &run.context()).await.unwrap();
    }
}
