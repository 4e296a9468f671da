//! Owns how the figures of a scenario are shown: a row of a markdown table.

use std::fmt::{self, Display};

use crate::figures::Figures;

/// The head of the table that [`Row`]s are shown in.
pub const HEAD: &str = "\
| scenario | tasks | accepted/s | stored/s | µs producer | consumer | broker | driver \
| submit p50 / p99 / p99.9 ms | result p50 / p99 / p99.9 ms | MB producer, consumer |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

/// What a scenario came to with the pair.
#[derive(Debug, Clone)]
pub struct Row {
    /// Tasks, the time until all were stored as ended, CPU, and the latency from submit to result.
    pub figures: Figures,
    /// Submits that were accepted a second, while there were any.
    pub accepted: Option<f64>,
    /// Tasks that were stored as ended a second.
    pub stored: Option<f64>,
    /// The latency of a submit: p50, p99 and p99.9 in ms.
    pub submit: Option<[f64; 3]>,
    /// The most memory of the producer, and of a worker, in MB.
    pub peak_rss: [f64; 2],
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { name, tasks, cpu, latency, .. } = &self.figures;
        write!(f, "| {name} | {tasks} | {} | {} |", rate(self.accepted), rate(self.stored))?;
        for (_, micros) in cpu {
            write!(f, " {micros:.1} |")?;
        }
        let [producer, consumer] = self.peak_rss;
        write!(f, " {} | {} | {producer:.0}, {consumer:.0} |", millis(self.submit), millis(*latency))
    }
}

fn rate(per_second: Option<f64>) -> String {
    per_second.map(|rate| format!("{rate:.0}")).unwrap_or_default()
}

/// Three percentiles.
#[must_use]
pub fn millis(percentiles: Option<[f64; 3]>) -> String {
    percentiles.map(|[p50, p99, p999]| format!("{p50:.2} / {p99:.2} / {p999:.2}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_its_head() {
        let cpu = ["producer", "consumer", "broker", "driver"].map(|name| (name.to_owned(), 1.25)).into();
        let figures = Figures { name: "flood".to_owned(), tasks: 7, seconds: 1.0, cpu, latency: Some([1.0, 2.0, 3.0]) };
        let row = Row { figures, accepted: Some(7.4), stored: None, submit: None, peak_rss: [10.4, 5.0] };
        let text = row.to_string();
        assert_eq!(text, "| flood | 7 | 7 |  | 1.2 | 1.2 | 1.2 | 1.2 |  | 1.00 / 2.00 / 3.00 | 10, 5 |");
        assert!(HEAD.lines().all(|line| line.matches('|').count() == text.matches('|').count()));
    }
}
