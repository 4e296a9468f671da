//! Jittered exponential backoff for whatever is tried again after a fault.

use std::time::Duration;

/// Waits between attempts: doubling from a quarter of a second, jittered so that a fleet does not come back in step.
#[derive(Debug, Default)]
pub struct Backoff {
    attempt: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);

    /// The next wait, at most `longest`.
    pub fn next_delay(&mut self, longest: Duration) -> Duration {
        let ceiling = Self::FIRST.saturating_mul(1 << self.attempt.min(10)).min(longest);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts over, after success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_start_over() {
        let longest = Duration::from_secs(30);
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next_delay(longest)).collect();
        assert!(waits[0] <= Backoff::FIRST);
        assert!(waits.iter().all(|wait| *wait <= longest));
        assert!(waits[19] >= longest / 2);
        backoff.reset();
        assert!(backoff.next_delay(longest) <= Backoff::FIRST);
    }
}
