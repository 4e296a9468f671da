//! How an event is written. Pure.

use std::str::FromStr;

use actix_web::web::Bytes;
use protocol::state::State;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::view::TaskView;
use crate::store::TaskRow;

/// A comment, with what proxies are held open.
pub const HEARTBEAT: &[u8] = b":\n\n";
/// In how many milliseconds a cut stream is asked for again.
pub const OPENING: &[u8] = b"retry: 1000\n\n";

/// How far a task has come, in the order in which reports count; the `id` of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    retries: u32,
    rank: u8,
    seq: u32,
}

impl Position {
    /// Where a row stands.
    pub fn of(row: &TaskRow) -> Self {
        Self { retries: row.retries, rank: row.state.rank(), seq: row.report_seq }
    }

    /// Whether only the progress is another.
    fn continues(self, before: Self) -> bool {
        self.rank == State::Started.rank() && (self.retries, self.rank) == (before.retries, before.rank)
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.retries, self.rank, self.seq)
    }
}

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(NotAPosition);
        let (retries, rank, seq) = (next()?, next()?, next()?);
        let position = Self { retries: number(retries)?, rank: number(rank)?, seq: number(seq)? };
        if position.to_string() == text { Ok(position) } else { Err(NotAPosition) }
    }
}

/// No id of an event of ours.
#[derive(Debug)]
pub struct NotAPosition;

fn number<T: FromStr>(text: &str) -> Result<T, NotAPosition> {
    text.parse().map_err(|_| NotAPosition)
}

/// What a `progress` event says.
#[derive(Serialize)]
struct ProgressEvent<'a> {
    task_id: &'a str,
    state: State,
    retries: u32,
    worker: Option<&'a str>,
    progress: Option<&'a RawValue>,
}

/// The event that takes a listener from `before` to `position`.
pub fn frame(before: Option<Position>, position: Position, row: &TaskRow, view: impl FnOnce() -> TaskView) -> Bytes {
    let (name, data) = if before.is_some_and(|before| position.continues(before)) {
        let event = ProgressEvent {
            task_id: &row.accepted.id,
            state: row.state,
            retries: row.retries,
            worker: row.worker.as_deref(),
            progress: row.progress.as_deref(),
        };
        ("progress", serde_json::to_string(&event))
    } else {
        ("state", serde_json::to_string(&view()))
    };
    write(name, position, &data.unwrap_or_default())
}

/// JSON stands in a task as it came, over several lines perhaps, and every line of the data needs its name.
fn write(name: &str, id: Position, data: &str) -> Bytes {
    let mut event = format!("id: {id}\nevent: {name}\n");
    for line in data.split(['\n', '\r']) {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::new_task;
    use protocol::retry::RetryPolicy;

    fn event(before: Option<&str>, row: &TaskRow) -> String {
        let before = before.map(|before| before.parse().unwrap());
        let bytes = frame(before, Position::of(row), row, || TaskView::new(row, RetryPolicy::default(), None));
        String::from_utf8(bytes.into()).unwrap()
    }

    #[test]
    fn only_progress_that_follows_its_state_is_sent_alone() {
        let progress = Some(RawValue::from_string(r#"{"current":2}"#.to_owned()).unwrap());
        let row = TaskRow { state: State::Started, report_seq: 2, progress, ..TaskRow::from(new_task("a")) };
        for (before, name) in [(None, "state"), (Some("0-0-0"), "state"), (Some("0-1-1"), "progress")] {
            let event = event(before, &row);
            assert!(event.starts_with(&format!("id: 0-1-2\nevent: {name}\ndata: {{")), "{event}");
            assert!(event.ends_with("}\n\n") && event.contains(r#""progress":{"current":2}"#), "{event}");
            assert_eq!(event.contains("kwargs"), name == "state", "{event}");
        }
        let retried = TaskRow { retries: 1, ..row };
        assert!(event(Some("0-1-2"), &retried).contains("event: state"));
    }

    #[test]
    fn every_line_of_the_data_is_named() {
        let written = write("state", "0-0-0".parse().unwrap(), "{\"a\":\r\n1}");
        assert_eq!(written, "id: 0-0-0\nevent: state\ndata: {\"a\":\ndata: \ndata: 1}\n\n");
    }

    #[test]
    fn what_was_never_an_id_of_ours_is_none() {
        for text in ["", "0", "0-0", "0-0-0-0", "a-0-0", "00-0-0", "+1-0-0", "0-0-4294967296", "0-256-0", " 0-0-0"] {
            assert!(text.parse::<Position>().is_err(), "{text:?}");
        }
        let order = ["0-0-0", "0-1-0", "0-1-7", "0-2-8", "1-1-0", "1-3-0"].map(|id| id.parse::<Position>().unwrap());
        assert!(order.is_sorted());
    }
}
