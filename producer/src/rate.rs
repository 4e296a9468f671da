//! A token bucket: how many requests of a key may still come. Pure but for its lock; the caller has the clock.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Holds a second's requests, full at first.
#[derive(Debug)]
pub struct Bucket {
    rate: u32,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    /// Below nothing after a batch: what it took beyond is waited for.
    tokens: f64,
    at: Instant,
}

/// What is left after a request, or why there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// So many more may come at once, and how long until it is full again.
    Some(u32, Duration),
    /// None may come before that long.
    Nothing(Duration),
}

impl Bucket {
    /// One that lets `rate` requests a second through, 1 at least.
    #[must_use]
    pub fn new(rate: u32, now: Instant) -> Self {
        let rate = rate.max(1);
        Self { rate, level: Mutex::new(Level { tokens: f64::from(rate), at: now }) }
    }

    /// Takes one request out.
    pub fn take(&self, now: Instant) -> Left {
        self.change(now, |level, rate| {
            if level.tokens < 1.0 {
                return Left::Nothing(Duration::from_secs_f64((1.0 - level.tokens) / rate));
            }
            level.tokens -= 1.0;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 up to the rate")]
            Left::Some(level.tokens as u32, Duration::from_secs_f64((rate - level.tokens) / rate))
        })
    }

    /// Takes out what a request that was let through turned out to hold besides itself.
    pub fn owe(&self, more: u32, now: Instant) {
        self.change(now, |level, _| level.tokens -= f64::from(more));
    }

    fn change<T>(&self, now: Instant, change: impl FnOnce(&mut Level, f64) -> T) -> T {
        let rate = f64::from(self.rate);
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = now.saturating_duration_since(level.at).as_secs_f64() * rate;
        level.tokens = (level.tokens + gained).min(rate);
        level.at = level.at.max(now);
        change(&mut level, rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(duration: Duration) -> u128 {
        duration.as_millis()
    }

    #[test]
    fn a_second_holds_its_requests_and_no_more() {
        let start = Instant::now();
        let bucket = Bucket::new(4, start);
        let left = [3, 2, 1, 0].map(|left| Left::Some(left, Duration::from_millis(u64::from(4 - left) * 250)));
        assert_eq!([(); 4].map(|()| bucket.take(start)), left);
        let Left::Nothing(wait) = bucket.take(start) else { panic!("a fifth") };
        assert_eq!(ms(wait), 250);
        assert!(matches!(bucket.take(start + Duration::from_millis(240)), Left::Nothing(_)));
        assert!(matches!(bucket.take(start + Duration::from_millis(260)), Left::Some(0, _)));
        let later = start + Duration::from_mins(1);
        assert!(matches!(bucket.take(later), Left::Some(3, _)), "it holds a second's, not a minute's");
    }

    #[test]
    fn a_batch_is_paid_for_afterwards() {
        let start = Instant::now();
        let bucket = Bucket::new(10, start);
        assert!(matches!(bucket.take(start), Left::Some(9, _)));
        bucket.owe(99, start);
        let Left::Nothing(wait) = bucket.take(start) else { panic!("let through") };
        assert_eq!(ms(wait), 9_100);
        assert!(matches!(bucket.take(start + Duration::from_millis(9_101)), Left::Some(0, _)));
    }
}
