//! How an account looks: one table, and what is wrong below it.

use std::fmt;

use super::accounting::{Account, Hits};

/// The table, in Markdown.
pub struct Table<'a>(pub &'a Account);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = self.0;
        line(f, ["", "number", "in flight", "at most", "recovery"])?;
        line(f, ["---", "---:", "---:", "---:", "---:"])?;
        let orders = [("accepted", account.accepted), ("refused", account.refused), ("unknown", account.unknown)];
        for (name, number) in orders {
            line(f, [name, &number.to_string(), "", "", ""])?;
        }
        for (state, number) in &account.ended {
            line(f, [state, &number.to_string(), "", "", ""])?;
        }
        let seen = [
            ("states sampled", account.samples),
            ("orders seen in two states", account.moved),
            ("taken for lost by the producer", account.presumed),
        ];
        for (name, number) in seen {
            line(f, [name, &number.to_string(), "", "", ""])?;
        }
        line(f, ["starts that were doubled", &account.doubled.to_string(), &account.bound.to_string(), "", ""])?;
        for rule in &account.rules {
            line(f, [rule.name, &rule.broken.to_string(), "", "", ""])?;
        }
        let times = account.faults.values().map(|hits| hits.times).sum::<usize>();
        line(f, ["faults", &times.to_string(), "", "", ""])?;
        for (fault, Hits { times, in_flight, most, recovery }) in &account.faults {
            let [times, in_flight, most] = [times, in_flight, most].map(ToString::to_string);
            let recovery = recovery.map_or_else(|| "-".to_owned(), |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
            line(f, [fault.name(), &times, &in_flight, &most, &recovery])?;
        }
        for rule in account.broken() {
            writeln!(f, "\nbroken: {}, {} times", rule.name, rule.broken)?;
            for example in &rule.examples {
                writeln!(f, "  {example}")?;
            }
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, [what, number, in_flight, most, recovery]: [&str; 5]) -> fmt::Result {
    writeln!(f, "| {what:36} | {number:>8} | {in_flight:>9} | {most:>7} | {recovery:>8} |")
}
