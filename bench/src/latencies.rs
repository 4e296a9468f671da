//! Owns a sample of latencies and its percentiles.

use std::time::Duration;

/// Latencies in µs, in no order.
#[derive(Debug, Clone, Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    /// One more. More than an hour counts as an hour or so.
    pub fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// p50, p99 and p99.9 in ms; `None` of nothing.
    #[must_use]
    pub fn percentiles(mut self) -> Option<[f64; 3]> {
        self.0.sort_unstable();
        let last = self.0.len().checked_sub(1)?;
        // The nearest rank: the smallest that so many per thousand do not exceed.
        Some([500, 990, 999].map(|per_mille| {
            let rank = (self.0.len() * per_mille).div_ceil(1000);
            f64::from(self.0[(rank - 1).min(last)]) / 1000.0
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percentiles(micros: impl Iterator<Item = u64>) -> Option<[f64; 3]> {
        let mut sample = Latencies::default();
        micros.map(Duration::from_micros).for_each(|latency| sample.add(latency));
        sample.percentiles()
    }

    #[test]
    fn a_percentile_is_the_nearest_rank_whatever_the_order() {
        assert_eq!(percentiles((1..=1000).rev()), Some([0.5, 0.99, 0.999]));
        assert_eq!(percentiles(1..=2), Some([0.001, 0.002, 0.002]));
        assert_eq!(percentiles(7_000..=7_000), Some([7.0; 3]));
        assert_eq!(percentiles(0..0), None);
    }
}
