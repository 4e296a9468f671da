//! When a callback is tried again, and when it is given up. Pure, but for the jitter.

use std::time::Duration;

use crate::store::{CallbackStanding, UnixMs};

/// The waits after the first attempt, the second and so on, s: at first for a receiver that restarts, then for one that
/// somebody has to look after. Together a day, as Standard Webhooks advises; after the last attempt it is given up.
const WAITS_S: [u32; 11] = [5, 15, 60, 300, 900, 1_800, 3_600, 7_200, 14_400, 21_600, 36_000];
/// By how much a wait is longer at random, so that what failed together does not come back together.
const JITTER: f64 = 0.1;
/// The longest that a receiver may put its next attempt off.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver has it.
    Delivered,
    /// The receiver wants no more of it.
    Unwanted(String),
    /// It may go better another time.
    Failed {
        /// Why.
        error: String,
        /// What the receiver asked for.
        retry_after: Option<Duration>,
    },
}

/// How a callback stands after an attempt, before which there were so many.
pub(super) fn after(outcome: Outcome, attempts: u32, now: UnixMs) -> CallbackStanding {
    let wait = WAITS_S.get(attempts as usize).map(|seconds| Duration::from_secs((*seconds).into()));
    let attempts = attempts.saturating_add(1);
    let (error, next_at) = match outcome {
        Outcome::Delivered => (None, None),
        Outcome::Unwanted(error) => (Some(error), None),
        Outcome::Failed { error, retry_after } => {
            let asked = retry_after.unwrap_or_default().min(LONGEST_ASKED);
            (Some(error), wait.map(|wait| now.saturating_add(jittered(wait.max(asked)))))
        }
    };
    CallbackStanding { attempts, error, next_at }
}

fn jittered(wait: Duration) -> UnixMs {
    let wait = wait.mul_f64(1.0 + JITTER * fastrand::f64());
    UnixMs::try_from(wait.as_millis()).unwrap_or(UnixMs::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = 1_800_000_000_000;

    fn failed(attempts: u32, retry_after: Option<u64>) -> Option<UnixMs> {
        let retry_after = retry_after.map(Duration::from_secs);
        after(Outcome::Failed { error: "x".to_owned(), retry_after }, attempts, NOW).next_at.map(|at| at - NOW)
    }

    #[test]
    fn it_is_tried_for_a_day_and_then_given_up() {
        let waits: Vec<UnixMs> = (0..).map_while(|attempts| failed(attempts, None)).collect();
        assert_eq!(waits.len(), WAITS_S.len());
        assert!((5_000..=5_500).contains(&waits[0]) && waits.is_sorted(), "{waits:?}");
        let day = 24 * 3_600 * 1_000;
        let total: UnixMs = waits.iter().sum();
        assert!((day - day / 100..=day + day / 8).contains(&total), "{total} ms");
    }

    #[test]
    fn a_receiver_may_put_it_off_but_not_for_long_nor_hurry_it() {
        assert!((60_000..=66_000).contains(&failed(0, Some(60)).unwrap()));
        assert!((5_000..=5_500).contains(&failed(0, Some(0)).unwrap()));
        assert!((3_600_000..=3_960_000).contains(&failed(0, Some(u64::MAX / 1_000)).unwrap()));
        assert_eq!(failed(11, Some(60)), None);
    }

    #[test]
    fn what_is_delivered_or_unwanted_is_over() {
        let standing =
            |error: Option<&str>| CallbackStanding { attempts: 3, error: error.map(str::to_owned), next_at: None };
        assert_eq!(after(Outcome::Delivered, 2, NOW), standing(None));
        assert_eq!(after(Outcome::Unwanted("gone".to_owned()), 2, NOW), standing(Some("gone")));
    }
}
