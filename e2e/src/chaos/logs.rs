//! What a run leaves behind, as plain data: who was told what, which handler ran when, what was seen, what was broken.
//!
//! Times are milliseconds of Unix time, of one machine's clock.

mod services;

use std::fmt;

use serde_json::Value;

pub use self::services::{Death, Presumed};
use super::fault::Fault;
use super::workload::Order;

/// Milliseconds of Unix time.
pub type Ms = u64;

/// Everything.
#[derive(Debug, Default)]
pub struct Logs {
    /// What clients ordered, each order once.
    pub submits: Vec<Submit>,
    /// What handlers wrote.
    pub ledger: Vec<Entry>,
    /// What was seen of open tasks, in the order in which it was asked for.
    pub samples: Vec<Sample>,
    /// How many had ended, in the order in which it was asked for.
    pub pulses: Vec<Pulse>,
    /// What the producer was asked for while it was up and did not show.
    pub unshown: Vec<String>,
    /// What was open when patience with it had ended.
    pub undrained: Option<String>,
    /// Every task that the producer has at the end.
    pub rows: Vec<Row>,
    /// What was to be broken.
    pub asked: Vec<Fault>,
    /// What was broken.
    pub strikes: Vec<Strike>,
    /// Every process that has ended.
    pub deaths: Vec<Death>,
    /// What the producer took for lost.
    pub presumed: Vec<Presumed>,
    /// Messages that are left at the end, by queue; without the dead letters.
    pub left: Vec<(String, u32)>,
    /// How many workers there are.
    pub workers: usize,
    /// How many tasks each of them can run at once.
    pub places: usize,
}

/// What a client knows of its order.
#[derive(Debug, Clone)]
pub struct Submit {
    /// The order.
    pub order: Order,
    /// What it was told.
    pub outcome: Outcome,
    /// The ids that it was told, each once.
    pub ids: Vec<String>,
    /// The status of the answer that refused it, if one did.
    pub refusal: Option<u16>,
    /// How the same request was answered once more after it was accepted, if it was.
    pub repeat: Option<u16>,
    /// How a revocation was answered, if it was.
    pub revocation: Option<u16>,
}

/// What a client was told of its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx to one of its requests.
    Accepted,
    /// 4xx or 503 to the first, and to any other.
    Refused,
    /// None of these: there was no answer.
    Unknown,
}

/// What a handler did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It started.
    Start,
    /// It did what it is for.
    Effect,
    /// It returned.
    End,
    /// It kills its process.
    Crash,
}

/// A line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// The order's number.
    pub n: u64,
    /// The task's id.
    pub id: String,
    /// The attempt, from 0.
    pub attempt: u32,
    /// The process.
    pub pid: u32,
    /// When.
    pub at: Ms,
}

impl Entry {
    /// From its line; `None` if it is none.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let event = match words.next()? {
            "start" => Event::Start,
            "effect" => Event::Effect,
            "end" => Event::End,
            "crash" => Event::Crash,
            _ => return None,
        };
        let n = words.next()?.parse().ok()?;
        let (id, attempt) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let (pid, at) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        words.next().is_none().then_some(Self { event, n, id, attempt, pid, at })
    }
}

/// A task as it was seen once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The order's number.
    pub n: u64,
    /// Its standing.
    pub standing: Standing,
}

/// How far a task has come: a later one is never less, and one that has ended never another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// The attempt, from 0.
    pub retries: u32,
    /// PENDING 0, STARTED 1, RETRY 2, then what has ended.
    pub rank: u8,
}

impl Standing {
    /// Of a state by its name.
    #[must_use]
    pub fn of(state: &str, retries: u32) -> Self {
        let names = ["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED"];
        let rank = names.iter().position(|name| *name == state).and_then(|rank| u8::try_from(rank).ok());
        Self { retries, rank: rank.unwrap_or(u8::MAX) }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self.rank > 2
    }

    /// Whether this may be seen after `earlier`. A revocation, or a verdict on a lost worker, ends any attempt.
    #[must_use]
    pub fn may_follow(self, earlier: Self) -> bool {
        if earlier.is_terminal() { self == earlier } else { self.is_terminal() || self >= earlier }
    }
}

/// A look at the producer's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// When.
    pub at: Ms,
    /// Tasks that had ended.
    pub ended: u64,
    /// Tasks that were at the broker or a worker.
    pub at_broker: u64,
}

/// A task at the end.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// The order's number.
    pub n: u64,
    /// Celery's name of its state.
    pub state: String,
    /// The attempt, from 0.
    pub retries: u32,
    /// What its handler returned.
    pub result: Value,
    /// Its error's type; empty without one.
    pub error: String,
    /// Whether it says that it was started.
    pub started: bool,
    /// From when on it might run.
    pub due: Ms,
    /// When it ended, if it has.
    pub finished: Option<Ms>,
}

impl Row {
    /// Whether it has ended.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        Standing::of(&self.state, self.retries).is_terminal()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut result = self.result.to_string();
        result.truncate(result.floor_char_boundary(40));
        write!(f, "{} {} at attempt {} with {result} {}", self.id, self.state, self.retries, self.error)
    }
}

/// A fault that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// Which.
    pub fault: Fault,
    /// When it began.
    pub from: Ms,
    /// When it was undone, or was over by itself.
    pub to: Ms,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_ledger_is_read_whole_or_not_at_all() {
        let entry = Entry { event: Event::End, n: 5, id: "some-id".to_owned(), attempt: 2, pid: 77, at: 1_234 };
        assert_eq!(Entry::parse("end 5 some-id 2 77 1234"), Some(entry));
        for line in
            ["", "end 5 some-id 2 77", "end 5 some-id 2 77 1234 9", "ended 5 some-id 2 77 1234", "end x i 2 7 1"]
        {
            assert_eq!(Entry::parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_task_goes_forward_and_ends_once() {
        let follows = |later: (&str, u32), earlier: (&str, u32)| {
            Standing::of(later.0, later.1).may_follow(Standing::of(earlier.0, earlier.1))
        };
        assert!(follows(("STARTED", 0), ("PENDING", 0)) && follows(("STARTED", 1), ("RETRY", 0)));
        assert!(follows(("REVOKED", 0), ("RETRY", 1)) && follows(("SUCCESS", 1), ("SUCCESS", 1)));
        assert!(!follows(("STARTED", 0), ("RETRY", 0)) && !follows(("PENDING", 0), ("STARTED", 0)));
        assert!(!follows(("STARTED", 1), ("SUCCESS", 0)) && !follows(("FAILURE", 0), ("SUCCESS", 0)));
    }
}
