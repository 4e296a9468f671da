//! Celery's events as they are told: one JSON object each, with a place in Lamport's order.
//!
//! None names the offset of its clock to UTC: receivers would shift the time by it, which is UTC already (celery-wire
//! C.1).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use protocol::message::Message;
use protocol::python_repr::{MAX_CHARS, python_repr};
use protocol::reply::{ErrorInfo, Report};
use protocol::task::Task;
use protocol::timestamp::rfc3339;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::mpsc;

/// Events that wait to be published.
const WAITING: usize = 10_000;

/// An event.
pub(super) type Event = Map<String, Value>;

/// Where events come out.
pub(in crate::worker) type Told = mpsc::Receiver<Event>;

/// Where events of tasks go in.
pub(super) struct Events {
    worker: String,
    /// Whether anybody wants events of tasks; those of the worker itself are always sent.
    of_tasks: AtomicBool,
    clock: AtomicU64,
    told: mpsc::Sender<Event>,
}

impl Events {
    pub(super) fn new(worker: &str, of_tasks: bool) -> (Self, Told) {
        let (told, receiver) = mpsc::channel(WAITING);
        let (worker, of_tasks) = (worker.to_owned(), of_tasks.into());
        (Self { worker, of_tasks, clock: AtomicU64::new(0), told }, receiver)
    }

    /// Tells an event of a task if anybody wants it and there is room.
    pub(super) fn tell(&self, kind: &str, fields: impl FnOnce() -> Value) {
        if self.of_tasks.load(Ordering::Relaxed) && self.told.try_send(self.event(kind, fields())).is_err() {
            metrics::counter!("errand_celery_events_dropped_total").increment(1);
        }
    }

    /// An event of that kind, now.
    pub(super) fn event(&self, kind: &str, fields: Value) -> Event {
        let mut event = match fields {
            Value::Object(fields) => fields,
            _ => Event::new(),
        };
        event.insert("type".to_owned(), kind.into());
        event.insert("hostname".to_owned(), self.worker.as_str().into());
        event.insert("pid".to_owned(), std::process::id().into());
        event.insert("clock".to_owned(), self.tick().into());
        event.insert("timestamp".to_owned(), epoch(OffsetDateTime::now_utc()).into());
        event
    }

    /// Switches events of tasks on or off; whether they were on.
    pub(super) fn switch(&self, on: bool) -> bool {
        self.of_tasks.swap(on, Ordering::Relaxed)
    }

    /// The next time of the clock.
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Another's time was seen: ours is later from now on. One that is out of all bounds is not.
    pub(super) fn see(&self, time: u64) {
        if time < 1 << 53 {
            self.clock.fetch_max(time, Ordering::Relaxed);
        }
        self.tick();
    }
}

/// Seconds since 1970, as Celery writes times.
#[expect(clippy::cast_precision_loss, reason = "microseconds are enough")]
pub(super) fn epoch(at: OffsetDateTime) -> f64 {
    (at.unix_timestamp_nanos() / 1000) as f64 / 1e6
}

/// What a header says of a task's arguments; nothing of what nobody says may be shown.
pub(super) fn shown(message: &Message, header: &str) -> String {
    message.properties.headers.get(header).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The fields of an event that tells only which task it is of.
pub(super) fn of(task: &Task) -> Value {
    json!({"uuid": task.id})
}

/// The fields of a task that was received; its message's headers are redacted.
pub(super) fn received(task: &Task, message: &Message) -> Value {
    json!({
        "uuid": task.id,
        "name": task.task,
        "args": shown(message, "argsrepr"),
        "kwargs": shown(message, "kwargsrepr"),
        "root_id": task.root_id.as_ref().unwrap_or(&task.id),
        "parent_id": task.parent_id,
        "retries": task.retries,
        "eta": task.eta.map(rfc3339),
        "expires": task.expires.map(rfc3339),
    })
}

/// The kind of event that tells of a report; `None` when none does.
pub(super) fn kind(report: &Report) -> Option<&'static str> {
    match report {
        Report::Started | Report::Progress(_) | Report::Custom { .. } => None,
        Report::Retry { .. } => Some("task-retried"),
        Report::Success(_) => Some("task-succeeded"),
        Report::Failure(_) => Some("task-failed"),
        Report::Revoked { .. } => Some("task-revoked"),
    }
}

/// How long it ran, in seconds; `None` when it did not.
pub(super) fn runtime(started_at: Option<OffsetDateTime>, now: OffsetDateTime) -> Option<f64> {
    started_at.map(|at| (now - at).as_seconds_f64().max(0.0))
}

/// The fields of what ended a task or an attempt of it.
pub(super) fn report(task: &Task, report: &Report, runtime: Option<f64>) -> Value {
    let id = &task.id;
    match report {
        Report::Success(result) => {
            json!({"uuid": id, "result": python_repr(result, MAX_CHARS), "runtime": runtime.unwrap_or_default()})
        }
        Report::Failure(error) | Report::Retry { error, .. } => {
            json!({"uuid": id, "exception": exception(error), "traceback": error.traceback})
        }
        Report::Revoked { reason } => {
            let expired = reason == "expired";
            json!({"uuid": id, "terminated": runtime.is_some(), "signum": null, "expired": expired})
        }
        Report::Started | Report::Progress(_) | Report::Custom { .. } => of(task),
    }
}

/// As Python would show it.
fn exception(error: &ErrorInfo) -> String {
    let message = to_raw_value(&error.message).unwrap_or_else(|_| RawValue::NULL.to_owned());
    format!("{}({})", error.kind, python_repr(&message, MAX_CHARS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_that_nobody_wants_and_nothing_waits_for_room() {
        let (events, mut told) = Events::new("w", false);
        events.tell("task-started", || unreachable!("nobody asked"));
        events.switch(true);
        for _ in 0..WAITING + 10 {
            events.tell("task-started", || json!({"uuid": "a"}));
        }
        assert_eq!(told.len(), WAITING);
        let first = told.try_recv().unwrap();
        assert_eq!((&first["uuid"], &first["hostname"], &first["clock"]), (&json!("a"), &json!("w"), &json!(1)));
        assert!(!first.contains_key("utcoffset"));
    }

    #[test]
    fn the_clock_is_later_than_every_one_it_saw() {
        let (events, _told) = Events::new("w", false);
        events.see(41);
        events.see(u64::MAX);
        assert_eq!(events.tick(), 44);
    }

    #[test]
    fn an_error_is_shown_as_an_exception() {
        let task = Task { id: "a".to_owned(), ..Task::default() };
        let error = ErrorInfo::new("Flaky", "it's not so");
        let fields = report(&task, &Report::Failure(error), None);
        assert_eq!(fields["exception"], r#"Flaky("it's not so")"#);
    }
}
