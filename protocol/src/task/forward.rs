//! What follows a received message: its retry, or the next hop of its wait. Pure; the caller publishes the result and
//! settles the original.
//!
//! Everything that is not named here is kept as received: unknown headers, stamps, the body's bytes, its compression.

use std::time::Duration;

use serde_json::{Value, json};

use crate::message::{DELAY, DELAY_LEFT_MS, Message, is_of_the_broker};
use crate::topology::{DELAY_LEVELS, delay_label};

/// The delay level to wait in first, and what is left after it: the largest level k with 2^k s not above `wait`.
///
/// `None` under a second: whoever receives the message holds it for as long. Parts of a millisecond are rounded up, so
/// that nothing is early.
#[must_use]
pub fn delay_level(wait: Duration) -> Option<(u32, Duration)> {
    let ms = whole_ms(wait);
    let level = (ms / 1000).checked_ilog2()?.min(DELAY_LEVELS - 1);
    Some((level, Duration::from_millis(ms - (1000 << level))))
}

/// The next attempt of the task, due after `wait`. As Celery does it: `eta` is gone, the task is its own parent,
/// `expires` stays absolute.
///
/// With the header `errand-delay` it goes to the delay exchange, under a second it has none and goes to its queue; the
/// routing key is the queue's in either case.
#[must_use]
pub fn retry_of(message: &Message, retries: u32, wait: Duration) -> Message {
    let mut retry = forward_of(message, wait);
    // This attempt came to an end without killing anybody.
    retry.set_returns(0);
    let headers = &mut retry.properties.headers;
    headers.insert("retries".to_owned(), json!(retries));
    // The wait is counted by the broker: a second deadline by some worker's clock could only disagree.
    headers.insert("eta".to_owned(), Value::Null);
    if let Some(id) = headers.get("id").cloned() {
        headers.insert("parent_id".to_owned(), id);
    }
    retry
}

/// The same attempt, which still has to wait for `left`. It is published as [`retry_of`] says.
#[must_use]
pub fn forward_of(message: &Message, left: Duration) -> Message {
    let mut forward = message.clone();
    let properties = &mut forward.properties;
    // An expiration would drop the message in a delay queue, without a word to the producer.
    properties.expiration = None;
    properties.persistent = true;
    properties.headers.retain(|name, _| !is_of_the_broker(name) && name != DELAY && name != DELAY_LEFT_MS);
    let left_ms = match delay_level(left) {
        Some((level, left)) => {
            properties.headers.insert(DELAY.to_owned(), json!(delay_label(level)));
            whole_ms(left)
        }
        None => whole_ms(left),
    };
    if left_ms > 0 {
        properties.headers.insert(DELAY_LEFT_MS.to_owned(), json!(left_ms));
    }
    forward
}

/// At most 2^62, which an AMQP integer holds.
fn whole_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).min(1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Headers, Properties};
    use crate::task::Task;
    use proptest::prelude::*;

    fn received() -> Message {
        let headers = json!({
            "id": "i", "task": "t", "retries": 1, "eta": "2030-01-01T00:00:00+00:00", "parent_id": null,
            "expires": "2031-01-01T00:00:00+00:00", "stamps": {"tenant": "a"}, "x-mine": 7,
            "compression": "application/x-gzip", "errand-publish": 2, "errand-packs": 1,
            "x-death": [{"count": 1}], "x-first-death-queue": "q", "x-last-death-reason": "expired",
            "x-delivery-count": 3, "x-acquired-count": 4, DELAY: "64s", DELAY_LEFT_MS: 12,
        });
        let properties = Properties {
            headers: headers.as_object().cloned().unwrap(),
            expiration: Some("60000".to_owned()),
            priority: Some(7),
            reply_to: Some("r".to_owned()),
            correlation_id: Some("c".to_owned()),
            ..Properties::default()
        };
        Message { properties, body: vec![0x78, 0x9c, 1] }
    }

    fn without(headers: &Headers, names: &[&str]) -> Headers {
        headers
            .iter()
            .filter(|(name, _)| !names.contains(&name.as_str()))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect()
    }

    const BROKERS: [&str; 5] =
        ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "x-acquired-count"];

    #[test]
    fn levels_are_the_largest_that_fits() {
        for (ms, expected) in [
            (0, None),
            (999, None),
            (1000, Some((0, 0))),
            (1999, Some((0, 999))),
            (2000, Some((1, 0))),
            (7500, Some((2, 3500))),
            (600_000, Some((9, 88_000))),
            (524_288_000, Some((19, 0))),
            (1_048_576_001, Some((19, 524_288_001))),
        ] {
            let level = delay_level(Duration::from_millis(ms));
            assert_eq!(level, expected.map(|(level, left)| (level, Duration::from_millis(left))), "{ms} ms");
        }
        assert!(delay_level(Duration::MAX).is_some());
    }

    #[test]
    fn a_retry_changes_what_celery_changes_and_nothing_else() {
        let before = received();
        let retry = retry_of(&before, 2, Duration::from_millis(5300));
        let headers = &retry.properties.headers;
        assert_eq!(
            (&headers["retries"], &headers["eta"], &headers["parent_id"]),
            (&json!(2), &Value::Null, &json!("i"))
        );
        assert_eq!((&headers[DELAY], &headers[DELAY_LEFT_MS]), (&json!("4s"), &json!(1300)));
        let changed = ["retries", "eta", "parent_id", DELAY, DELAY_LEFT_MS];
        let kept = without(&before.properties.headers, &[&BROKERS[..], &changed].concat());
        assert_eq!(without(headers, &changed), kept);
        let expected = Properties { expiration: None, persistent: true, headers: headers.clone(), ..before.properties };
        assert_eq!((retry.properties, retry.body), (expected, before.body));
    }

    #[test]
    fn a_forward_keeps_the_attempt_and_loses_the_brokers_headers() {
        let before = received();
        let forward = forward_of(&before, Duration::from_secs(1));
        let kept = without(&before.properties.headers, &[&BROKERS[..], &[DELAY, DELAY_LEFT_MS]].concat());
        assert_eq!(without(&forward.properties.headers, &[DELAY]), kept);
        assert_eq!(forward.properties.headers[DELAY], "1s");
        assert_eq!(forward.properties.expiration, None);
    }

    #[test]
    fn returns_are_counted_on_while_it_waits_and_not_in_its_next_attempt() {
        let mut before = received();
        before.set_returns(1);
        assert_eq!(before.returns(), 4, "one that is carried, three that the broker counts");
        let mut forward = forward_of(&before, Duration::from_secs(1));
        assert_eq!(forward.returns(), 1, "the broker counts a new message from nought");
        forward.set_returns(before.returns());
        assert_eq!((forward.returns(), retry_of(&forward, 2, Duration::ZERO).returns()), (4, 0));
        for (returns, suspected) in [(0, false), (1, false), (2, true), (20, true)] {
            forward.set_returns(returns);
            assert_eq!(forward.is_suspect(), suspected, "{returns}");
        }
    }

    #[test]
    fn under_a_second_no_delay_queue_is_named() {
        let retry = retry_of(&received(), 2, Duration::from_micros(299_001));
        assert_eq!(retry.properties.headers.get(DELAY), None);
        assert_eq!(retry.properties.headers[DELAY_LEFT_MS], 300);
        let at_once = retry_of(&received(), 2, Duration::ZERO);
        assert_eq!(at_once.properties.headers.get(DELAY_LEFT_MS), None);
    }

    proptest! {
        #[test]
        fn hop_by_hop_the_waits_sum_to_the_whole(
            seconds in prop_oneof![0..100_u64, 0..2_000_000_u64, 0..100_000_000_u64], nanos in 0..1_000_000_000_u32,
        ) {
            let whole = Duration::new(seconds, nanos);
            let (mut waited, mut hops, mut left) = (Duration::ZERO, 0, whole);
            while let Some((level, rest)) = delay_level(left) {
                (waited, hops, left) = (waited + Duration::from_secs(1 << level), hops + 1, rest);
            }
            prop_assert!(left < Duration::from_secs(1));
            prop_assert!(waited + left >= whole && waited + left < whole + Duration::from_millis(1));
            prop_assert!(hops <= 20 + (seconds >> 19));
        }

        #[test]
        fn a_hop_carries_what_is_left(ms in 0..2_000_000_000_u64) {
            let emitted = Message { body: b"[[],{},{}]".to_vec(), ..received() };
            let mut forward = forward_of(&emitted, Duration::from_millis(ms));
            forward.properties.headers.remove("compression");
            forward.properties.content_type = Some("application/json".to_owned());
            let task = Task::decode(&forward).unwrap();
            let left = delay_level(Duration::from_millis(ms)).map_or(Duration::from_millis(ms), |(_, left)| left);
            prop_assert_eq!(task.delay_left.unwrap_or_default(), left);
        }
    }
}
