//! Why an open task is not running, in one sentence. Pure.

use protocol::amqp::Link;
use protocol::state::State;
use protocol::timestamp::{from_unix_ms, rfc3339};

use crate::store::{Stage, TaskRow, UnixMs};
use crate::workers::Service;

/// The reason, `None` for a task that runs or has ended.
#[must_use]
pub fn reason(row: &TaskRow, link: &Link, service: Service) -> Option<String> {
    if row.state.is_terminal() || (row.state == State::Started && row.stage == Stage::Queued) {
        return None;
    }
    match row.stage {
        Stage::Scheduled if row.lost > 0 => {
            Some(format!("the broker gave it back as lost; it is published again at {}", time(row.due_at)))
        }
        Stage::Scheduled => Some(format!("not due until {}", time(row.due_at))),
        _ if !link.is_ready() => Some(format!("waiting for the broker: {link}")),
        Stage::Retrying => Some(match row.retry_at {
            Some(at) => format!("attempt {} failed; the next is due at {}", row.retries, time(at)),
            None => format!("attempt {} failed; the next will follow", row.retries),
        }),
        _ if service == Service::Unserved => Some("no worker consumes this queue".to_owned()),
        _ if service == Service::Unknown => Some("no worker that consumes this queue knows this task".to_owned()),
        Stage::Waiting => Some("waiting for its turn to be published".to_owned()),
        _ => Some("in the queue at the broker".to_owned()),
    }
}

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

    fn why(row: &TaskRow, link: &Link, service: Service) -> String {
        reason(row, link, service).unwrap_or_default()
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
    fn what_runs_or_has_ended_needs_no_reason() {
        let running = TaskRow { state: State::Started, ..row(Stage::Queued) };
        let ended = TaskRow { state: State::Success, ..row(Stage::Done) };
        assert_eq!(reason(&running, &Link::Ready, Service::Served), None);
        assert_eq!(reason(&ended, &Link::Ready, Service::Served), None);
    }
}
