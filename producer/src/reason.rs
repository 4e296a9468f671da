//! Why an open task is not running, in one sentence. Pure.

use protocol::amqp::Link;
use protocol::state::State;
use protocol::timestamp::{from_unix_ms, rfc3339};

use crate::store::{MAX_AHEAD, Stage, TaskRow, UnixMs};
use crate::workers::Service;

/// What is known of a task's queue.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Its workers.
    pub service: Service,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether Celery's workers consume it. They hear neither of a pause nor of a revocation, and nobody here hears of
    /// them before they report.
    pub foreign: bool,
}

/// The reason, `None` for a task that runs or has ended.
#[must_use]
pub fn reason(row: &TaskRow, link: &Link, at: Line, now: UnixMs) -> Option<String> {
    if row.state.is_terminal() {
        return None;
    }
    let Line { service, paused, foreign } = at;
    let runs = row.state == State::Started && row.stage == Stage::Queued;
    if row.revoked_at.is_some() {
        let why = match (foreign, runs) {
            (true, _) => REVOKED_FOREIGN,
            (false, true) => REVOKED_RUNNING,
            (false, false) => REVOKED_QUEUED,
        };
        return Some(why.to_owned());
    }
    match row.stage {
        _ if runs => None,
        Stage::Waiting if paused => Some("the queue is paused".to_owned()),
        Stage::Queued | Stage::Retrying if paused && !foreign => Some("the queue is paused".to_owned()),
        Stage::Scheduled if row.lost > 0 => {
            Some(format!("the broker gave it back as lost; it is published again at {}", time(row.due_at)))
        }
        Stage::Scheduled => Some(format!("not due until {}", time(row.due_at))),
        _ if !link.is_ready() => Some(format!("waiting for the broker: {link}")),
        Stage::Retrying if row.retry_at.is_none_or(|at| at > now) => Some(match row.retry_at {
            Some(at) => format!("attempt {} failed; the next is due at {}", row.retries, time(at)),
            None => format!("attempt {} failed; the next will follow", row.retries),
        }),
        Stage::Queued | Stage::Retrying if foreign => {
            Some("in the queue at the broker, for Celery's workers".to_owned())
        }
        _ if foreign => Some(format!("waiting for its turn to be published{}", ahead(row.ahead, "ahead of it"))),
        _ if service == Service::Unserved => Some("no worker consumes this queue".to_owned()),
        _ if service == Service::Unknown => Some("no worker that consumes this queue knows this task".to_owned()),
        Stage::Waiting => Some(format!("waiting for its turn to be published{}", ahead(row.ahead, "ahead of it"))),
        _ => Some(format!("in the queue at the broker{}", ahead(row.ahead, "that run or are ahead of it"))),
    }
}

/// Its place in the line, where it is known.
fn ahead(count: Option<u32>, which: &str) -> String {
    match count {
        None => String::new(),
        Some(count) if count > MAX_AHEAD => format!(", with more than {MAX_AHEAD} {which}"),
        Some(count) => format!(", with {count} {which}"),
    }
}

const REVOKED_RUNNING: &str = "revoked: its worker asks it to end, and ends it by force after 10 s";
const REVOKED_QUEUED: &str = "revoked: it is not run, and has ended when a worker meets its message at the broker";
const REVOKED_FOREIGN: &str = "revoked: Celery's workers are not told of it, and one that has it may still run it";

fn time(at: UnixMs) -> String {
    from_unix_ms(at).map(rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::new_task;

    fn row(stage: Stage) -> TaskRow {
        TaskRow { stage, ..TaskRow::from(new_task("a")) }
    }

    const NOW: UnixMs = 1_000_000;

    fn line(service: Service, paused: bool) -> Line {
        Line { service, paused, foreign: false }
    }

    fn why(row: &TaskRow, link: &Link, service: Service) -> String {
        reason(row, link, line(service, false), NOW).unwrap_or_default()
    }

    #[test]
    fn each_stage_has_its_own_reason() {
        let down = Link::Down("connection refused".into());
        let cases = [
            (Stage::Scheduled, &Link::Ready, Service::Unserved, "not due until"),
            (Stage::Waiting, &down, Service::Unserved, "waiting for the broker: connection refused"),
            (Stage::Waiting, &Link::Ready, Service::Unserved, "no worker consumes this queue"),
            (Stage::Queued, &Link::Ready, Service::Unserved, "no worker consumes this queue"),
            (Stage::Queued, &Link::Ready, Service::Unknown, "knows this task"),
            (Stage::Waiting, &Link::Ready, Service::Served, "its turn"),
            (Stage::Queued, &Link::Ready, Service::Served, "in the queue at the broker"),
            (Stage::Retrying, &Link::Ready, Service::Served, "attempt 0 failed"),
        ];
        for (stage, link, service, expected) in cases {
            let why = why(&row(stage), link, service);
            assert!(why.contains(expected), "{stage:?}: {why}");
        }
    }

    #[test]
    fn a_pause_goes_before_the_broker_and_a_revocation_before_all() {
        let down = Link::Down("connection refused".into());
        let why = |row: &TaskRow| reason(row, &down, line(Service::Unserved, true), NOW).unwrap_or_default();
        for stage in [Stage::Waiting, Stage::Queued, Stage::Retrying] {
            assert!(why(&row(stage)).contains("paused"));
            let revoked = TaskRow { revoked_at: Some(1), ..row(stage) };
            assert!(why(&revoked).contains("revoked: it is not run"));
            let running = TaskRow { state: State::Started, ..revoked };
            assert_eq!(why(&running).contains("by force"), stage == Stage::Queued);
        }
        assert!(why(&row(Stage::Scheduled)).contains("not due until"));
    }

    #[test]
    fn the_place_in_the_line_is_said_where_it_is_known() {
        for (stage, ahead, expected) in [
            (Stage::Waiting, Some(0), "waiting for its turn to be published, with 0 ahead of it"),
            (Stage::Waiting, Some(MAX_AHEAD), "waiting for its turn to be published, with 10000 ahead of it"),
            (
                Stage::Waiting,
                Some(MAX_AHEAD + 1),
                "waiting for its turn to be published, with more than 10000 ahead of it",
            ),
            (Stage::Queued, Some(7), "in the queue at the broker, with 7 that run or are ahead of it"),
            (Stage::Queued, None, "in the queue at the broker"),
        ] {
            let row = TaskRow { ahead, ..row(stage) };
            assert_eq!(why(&row, &Link::Ready, Service::Served), expected);
        }
        let row = TaskRow { ahead: Some(7), ..row(Stage::Waiting) };
        assert_eq!(why(&row, &Link::Ready, Service::Unserved), "no worker consumes this queue", "the cause goes first");
    }

    #[test]
    fn what_runs_or_has_ended_needs_no_reason() {
        let running = TaskRow { state: State::Started, ..row(Stage::Queued) };
        let ended = TaskRow { state: State::Success, ..row(Stage::Done) };
        assert_eq!(reason(&running, &Link::Ready, line(Service::Served, true), NOW), None);
        assert_eq!(reason(&ended, &Link::Ready, line(Service::Served, true), NOW), None);
    }

    #[test]
    fn a_retry_that_is_due_waits_for_what_any_task_waits_for() {
        let retrying = |retry_at| TaskRow { state: State::Retry, retry_at, ..row(Stage::Retrying) };
        assert!(why(&retrying(Some(NOW + 1)), &Link::Ready, Service::Unserved).contains("the next is due at"));
        let due = why(&retrying(Some(NOW - 1)), &Link::Ready, Service::Unserved);
        assert_eq!(due, "no worker consumes this queue");
    }

    #[test]
    fn of_celerys_workers_nothing_is_said_that_is_not_known() {
        let why = |row: &TaskRow, paused| {
            let line = Line { service: Service::Unserved, paused, foreign: true };
            reason(row, &Link::Ready, line, NOW).unwrap_or_default()
        };
        assert!(why(&row(Stage::Queued), true).contains("for Celery's workers"));
        assert!(why(&row(Stage::Waiting), true).contains("paused"));
        assert!(why(&row(Stage::Waiting), false).contains("its turn"));
        let revoked = TaskRow { revoked_at: Some(1), ..row(Stage::Queued) };
        assert!(why(&revoked, false).contains("may still run it"));
    }
}
