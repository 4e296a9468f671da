//! Owns what is compared with what: the pair with the floor below it, and a full store with an empty one.

use std::fmt::{self, Display};

use crate::figures::Figures;
use crate::row::Row;

/// One figure of a run.
#[derive(Debug, Clone, Copy)]
enum Figure {
    /// Accepted a second.
    Accepted,
    /// Stored as ended a second.
    Stored,
    /// The median of a submit in ms.
    Submit,
    /// The median from submit to result in ms.
    Result,
    /// µs of CPU a task of what talks to the broker: producer and consumer, or client and worker.
    Pair,
    /// µs of CPU a task of the broker.
    Broker,
}

use Figure::{Accepted, Broker, Pair, Result, Stored, Submit};

/// A scenario's figure, and the part of the floor with that of its own.
const TO_FLOOR: [(&str, Figure, &str); 10] = [
    ("single", Submit, "bare 202 after a commit, one outstanding"),
    ("single", Result, "round trip, one outstanding"),
    ("flood-256", Accepted, "bare 202, 256 connections"),
    ("flood-256", Stored, "round trip, 256 in flight"),
    ("flood-256", Stored, "round trip, 256 in flight, results packed"),
    ("flood-256", Pair, "round trip, 256 in flight"),
    ("flood-256", Broker, "round trip, 256 in flight"),
    ("drain-100k: drain", Stored, "backlog, drained"),
    ("drain-100k: drain", Stored, "backlog, results packed, drained"),
    ("drain-100k: drain", Broker, "backlog, drained"),
];

/// The same with a full store and an empty one.
const TO_EMPTY: [(&str, Figure, &str); 5] = [
    ("million: flood-256", Stored, "flood-256"),
    ("million: flood-256", Pair, "flood-256"),
    ("million: submit", Pair, "drain-100k: submit"),
    ("million: drain", Stored, "drain-100k: drain"),
    ("million: drain", Pair, "drain-100k: drain"),
];

/// All ratios that the runs allow, as a markdown table.
#[derive(Debug)]
pub struct Ratios<'a> {
    /// What the pair came to.
    pub rows: &'a [Row],
    /// What the floor came to.
    pub floor: &'a [Figures],
}

impl Ratios<'_> {
    fn lines(&self) -> Vec<String> {
        let row = |name: &str| self.rows.iter().find(|row| row.figures.name == name);
        let to_floor = TO_FLOOR.iter().filter_map(|(name, figure, below)| {
            let floor = self.floor.iter().find(|floor| floor.name == *below)?;
            line(name, *figure, figure.of_row(row(name)?)?, below, figure.of_floor(floor)?)
        });
        let to_empty = TO_EMPTY.iter().filter_map(|(name, figure, empty)| {
            line(name, *figure, figure.of_row(row(name)?)?, empty, figure.of_row(row(empty)?)?)
        });
        to_floor.chain(to_empty).collect()
    }
}

impl Display for Ratios<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        if lines.is_empty() {
            return Ok(());
        }
        writeln!(f, "| figure | of | is | below it | is | ratio |\n| --- | --- | --- | --- | --- | --- |")?;
        lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn line(name: &str, figure: Figure, value: f64, other: &str, base: f64) -> Option<String> {
    let ratio = (base > 0.0).then_some(value / base)?;
    Some(format!("| {figure} | {name} | {value:.1} | {other} | {base:.1} | {ratio:.2} |"))
}

impl Figure {
    fn of_row(self, row: &Row) -> Option<f64> {
        match self {
            Accepted => row.accepted,
            Stored => row.stored,
            Submit => row.submit.map(|[p50, ..]| p50),
            Result | Pair | Broker => self.of_figures(&row.figures),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn of_floor(self, floor: &Figures) -> Option<f64> {
        match self {
            Accepted | Stored => Some(floor.tasks as f64 / floor.seconds),
            Submit | Result | Pair | Broker => self.of_figures(floor),
        }
    }

    fn of_figures(self, figures: &Figures) -> Option<f64> {
        let names: &[&str] = match self {
            Submit | Result => return figures.latency.map(|[p50, ..]| p50),
            Broker => &["broker"],
            _ => &["producer", "consumer", "client", "worker"],
        };
        let used = figures.cpu.iter().filter(|(name, _)| names.contains(&&**name)).map(|(_, micros)| micros);
        used.copied().reduce(|sum, micros| sum + micros)
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accepted => "accepted/s",
            Stored => "stored/s",
            Submit => "submit p50 ms",
            Result => "result p50 ms",
            Pair => "µs of both sides",
            Broker => "µs of the broker",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(name: &str, cpu: &[(&str, f64)], latency: f64) -> Figures {
        let cpu = cpu.iter().map(|(name, micros)| ((*name).to_owned(), *micros)).collect();
        Figures { name: name.to_owned(), tasks: 100, seconds: 0.5, cpu, latency: Some([latency; 3]) }
    }

    fn row(name: &str, stored: f64) -> Row {
        let figures = figures(name, &[("producer", 20.0), ("consumer", 10.0), ("broker", 50.0), ("driver", 9.0)], 3.0);
        Row { figures, accepted: Some(400.0), stored: Some(stored), submit: Some([2.0; 3]), peak_rss: [1.0; 2] }
    }

    #[test]
    fn what_was_run_is_compared_and_nothing_else() {
        let rows = [row("flood-256", 150.0), row("million: flood-256", 75.0)];
        let floor = [figures("round trip, 256 in flight", &[("client", 8.0), ("worker", 4.0), ("broker", 40.0)], 1.0)];
        let lines = Ratios { rows: &rows, floor: &floor }.lines();
        assert_eq!(
            lines,
            [
                "| stored/s | flood-256 | 150.0 | round trip, 256 in flight | 200.0 | 0.75 |",
                "| µs of both sides | flood-256 | 30.0 | round trip, 256 in flight | 12.0 | 2.50 |",
                "| µs of the broker | flood-256 | 50.0 | round trip, 256 in flight | 40.0 | 1.25 |",
                "| stored/s | million: flood-256 | 75.0 | flood-256 | 150.0 | 0.50 |",
                "| µs of both sides | million: flood-256 | 30.0 | flood-256 | 30.0 | 1.00 |",
            ]
        );
        assert_eq!(Ratios { rows: &rows[..1], floor: &[] }.to_string(), "");
    }

    #[test]
    fn a_latency_is_compared_by_its_median() {
        let floor = [figures("bare 202 after a commit, one outstanding", &[], 0.5)];
        let lines = Ratios { rows: &[row("single", 1.0)], floor: &floor }.lines();
        assert_eq!(lines, ["| submit p50 ms | single | 2.0 | bare 202 after a commit, one outstanding | 0.5 | 4.00 |"]);
    }
}
