//! When the next attempt of a failed task is due. Pure: whoever decides brings the randomness.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

/// No delay is longer: 2^31 s, about 68 years. It keeps milliseconds within an integer whatever the policy says.
pub const MAX_DELAY: Duration = Duration::from_secs(1 << 31);

/// How a task is retried (DESIGN section 5). A field left out takes its default, an unknown field is refused.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Attempts after the first one.
    pub max_retries: u32,
    /// Seconds before the first retry; each further one waits twice as long.
    pub backoff: f64,
    /// The most seconds that a retry waits, before jitter.
    pub backoff_max: f64,
    /// Whether up to a quarter of the delay is added at random, so that tasks which failed together do not return
    /// together.
    pub jitter: bool,
}

/// The fields of a [`RetryPolicy`] that the caller of a task chose; the others are the task's own, which only its worker
/// knows. A null is no choice and is refused: to Celery's users no bound means to retry for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryOptions {
    /// Attempts after the first one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "chosen")]
    pub max_retries: Option<u32>,
    /// Seconds before the first retry.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "chosen")]
    pub backoff: Option<f64>,
    /// The most seconds that a retry waits.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "chosen")]
    pub backoff_max: Option<f64>,
    /// Whether a random part is added.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "chosen")]
    pub jitter: Option<bool>,
}

impl RetryOptions {
    /// The whole policy: what was chosen, and the rest from `own`.
    #[must_use]
    pub fn over(&self, own: RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            max_retries: self.max_retries.unwrap_or(own.max_retries),
            backoff: self.backoff.unwrap_or(own.backoff),
            backoff_max: self.backoff_max.unwrap_or(own.backoff_max),
            jitter: self.jitter.unwrap_or(own.jitter),
        }
    }

    /// What was chosen as header table, `None` when nothing was. What JSON cannot hold becomes a number with the same
    /// effect on [`RetryPolicy::delay`].
    #[must_use]
    pub fn header(&self) -> Option<Value> {
        let seconds = |seconds: f64| json!(non_negative(seconds).min(f64::MAX));
        let fields = [
            ("max_retries", self.max_retries.map(Value::from)),
            ("backoff", self.backoff.map(seconds)),
            ("backoff_max", self.backoff_max.map(seconds)),
            ("jitter", self.jitter.map(Value::from)),
        ];
        let chosen: Map<String, Value> =
            fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        (!chosen.is_empty()).then_some(chosen.into())
    }
}

impl From<RetryPolicy> for RetryOptions {
    /// Every field is chosen.
    fn from(policy: RetryPolicy) -> Self {
        let RetryPolicy { max_retries, backoff, backoff_max, jitter } = policy;
        Self {
            max_retries: Some(max_retries),
            backoff: Some(backoff),
            backoff_max: Some(backoff_max),
            jitter: Some(jitter),
        }
    }
}

fn chosen<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_retries: 3, backoff: 1.0, backoff_max: 600.0, jitter: true }
    }
}

impl RetryPolicy {
    /// How long to wait after attempt `retries` (from 0): min(backoff · 2^retries, `backoff_max`) seconds, and with
    /// jitter up to a quarter more. `random` is in 0..1.
    ///
    /// Defined for every input: what is negative or not a number counts as 0, and [`MAX_DELAY`] bounds the result.
    #[must_use]
    pub fn delay(&self, retries: u32, random: f64) -> Duration {
        // 2^1023 is the largest power that is finite: an infinite one would make 0 · 2^retries not a number.
        let factor = 2_f64.powi(i32::try_from(retries).unwrap_or(i32::MAX).min(1023));
        let wait = (non_negative(self.backoff) * factor).min(non_negative(self.backoff_max));
        let jitter = if self.jitter { non_negative(random).min(1.0) / 4.0 } else { 0.0 };
        Duration::try_from_secs_f64(wait * (1.0 + jitter)).map_or(MAX_DELAY, |delay| delay.min(MAX_DELAY))
    }
}

/// `f64::max` answers its other argument for what is not a number.
fn non_negative(number: f64) -> f64 {
    number.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_policy() -> impl Strategy<Value = RetryPolicy> {
        (any::<u32>(), prop::num::f64::ANY, prop::num::f64::ANY, any::<bool>()).prop_map(
            |(max_retries, backoff, backoff_max, jitter)| RetryPolicy { max_retries, backoff, backoff_max, jitter },
        )
    }

    #[test]
    fn the_default_doubles_from_one_second_to_ten_minutes() {
        let policy = RetryPolicy { jitter: false, ..RetryPolicy::default() };
        let seconds: Vec<u64> = (0..12).map(|retries| policy.delay(retries, 0.9).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
    }

    #[test]
    fn jitter_adds_up_to_a_quarter() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.delay(2, 0.0), Duration::from_secs(4));
        assert_eq!(policy.delay(2, 0.5), Duration::from_millis(4500));
        assert_eq!(policy.delay(99, 1.0), Duration::from_secs(750));
    }

    #[test]
    fn fields_left_out_are_the_tasks_own_and_unknown_ones_are_refused() {
        let own = RetryPolicy { max_retries: 5, backoff: 9.0, backoff_max: 10.0, jitter: false };
        let options = |json: &str| serde_json::from_str::<RetryOptions>(json);
        let chosen = options(r#"{"max_retries": 7}"#).unwrap();
        assert_eq!(chosen.over(own), RetryPolicy { max_retries: 7, ..own });
        assert_eq!(options("{}").unwrap().over(own), own);
        for bad in [r#"{"max_retry": 7}"#, r#"{"max_retries": -1}"#, r#"{"max_retries": null}"#, r#"{"jitter": 1}"#] {
            assert!(options(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_header_holds_what_was_chosen() {
        let chosen = RetryOptions { backoff: Some(2.0), ..RetryOptions::default() };
        assert_eq!(chosen.header(), Some(json!({"backoff": 2.0})));
        assert_eq!(RetryOptions::default().header(), None);
    }

    proptest! {
        #[test]
        fn every_policy_has_a_bounded_delay(policy in any_policy(), retries: u32, random in prop::num::f64::ANY) {
            prop_assert!(policy.delay(retries, random) <= MAX_DELAY);
        }

        #[test]
        fn a_delay_lies_between_the_plain_one_and_a_quarter_more(
            backoff in 0.0..1000.0_f64, backoff_max in 0.0..100_000.0_f64, retries in 0..40_u32, random in 0.0..1.0_f64,
        ) {
            let plain = RetryPolicy { max_retries: 3, backoff, backoff_max, jitter: false };
            let with_jitter = RetryPolicy { jitter: true, ..plain };
            let (least, delay) = (plain.delay(retries, random), with_jitter.delay(retries, random));
            prop_assert!(least.as_secs_f64() <= backoff_max + 1e-6);
            prop_assert!(least <= delay && delay <= least.mul_f64(1.25) + Duration::from_micros(1));
        }

        #[test]
        fn without_backoff_no_attempt_waits(retries: u32, random in 0.0..1.0_f64) {
            let policy = RetryPolicy { backoff: 0.0, ..RetryPolicy::default() };
            prop_assert_eq!(policy.delay(retries, random), Duration::ZERO);
        }

        #[test]
        fn later_attempts_never_wait_less(policy in any_policy(), retries in 0..2000_u32) {
            prop_assert!(policy.delay(retries, 0.3) <= policy.delay(retries + 1, 0.3));
        }

        #[test]
        fn the_header_has_the_same_effect(policy in any_policy(), retries in 0..2000_u32) {
            let header = RetryOptions::from(policy).header().unwrap();
            let read: RetryOptions = serde_json::from_value(header).unwrap();
            prop_assert_eq!(read.over(RetryPolicy::default()).delay(retries, 0.3), policy.delay(retries, 0.3));
        }
    }
}
