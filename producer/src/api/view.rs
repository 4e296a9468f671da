//! The task as the API shows it.

use protocol::retry::RetryPolicy;
use protocol::state::State;
use protocol::timestamp::{from_unix_ms, rfc3339};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::callback::CallbackView;
use super::openapi::schemas::{Any, ErrorView, StateName};
use crate::store::{TaskRow, UnixMs};

/// A task. Times are RFC 3339, UTC.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskView {
    task_id: String,
    task: String,
    #[schema(value_type = StateName)]
    state: State,
    /// Why it is not running.
    reason: Option<String>,
    queue: String,
    priority: u8,
    #[schema(value_type = Vec<Any>)]
    args: Box<RawValue>,
    #[schema(value_type = Object)]
    kwargs: Box<RawValue>,
    /// The attempt, from 0.
    retries: u32,
    max_retries: u32,
    /// `current`, `total` and `message`; or what a worker reports in a state of its own.
    #[schema(value_type = Any)]
    progress: Option<Box<RawValue>>,
    /// What its handler returned.
    #[schema(value_type = Any)]
    result: Option<Box<RawValue>>,
    /// Why it failed, or why the last attempt did.
    #[schema(value_type = Option<ErrorView>)]
    error: Option<Box<RawValue>>,
    worker: Option<String>,
    /// The task that submitted it, null when it came over HTTP.
    parent_id: Option<String>,
    /// The first task of the family: its own id when it has no parent, as in Celery.
    root_id: String,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// In RETRY when the next attempt is due, else what was asked for.
    #[schema(format = DateTime)]
    eta: Option<String>,
    #[schema(format = DateTime)]
    expires: Option<String>,
    #[schema(format = DateTime)]
    started_at: Option<String>,
    #[schema(format = DateTime)]
    finished_at: Option<String>,
    callback: Option<CallbackView>,
    links: Links,
}

#[derive(Debug, Serialize, ToSchema)]
struct Links {
    #[serde(rename = "self")]
    this: String,
    events: String,
    attempts: String,
    revoke: String,
    retry: String,
}

impl Links {
    fn of(id: &str) -> Self {
        let this = path(id);
        let below = |name| format!("{this}/{name}");
        let [events, attempts, revoke, retry] = ["events", "attempts", "revoke", "retry"].map(below);
        Self { this, events, attempts, revoke, retry }
    }
}

impl TaskView {
    /// Shows a row, with why it is not running. `own` is how its type is retried when the caller does not say.
    pub fn new(row: &TaskRow, own: RetryPolicy, reason: Option<String>) -> Self {
        let task = &row.accepted;
        Self {
            links: Links::of(&task.id),
            task_id: task.id.clone(),
            task: task.task.clone(),
            state: row.state,
            reason,
            queue: task.queue.clone(),
            priority: task.priority,
            args: task.args.clone(),
            kwargs: task.kwargs.clone(),
            retries: row.retries,
            max_retries: task.retry.over(own).max_retries,
            progress: row.progress.clone(),
            result: row.result.clone(),
            error: row.error.clone(),
            worker: row.worker.clone(),
            parent_id: task.parent.as_ref().map(|parent| parent.id.clone()),
            root_id: task.parent.as_ref().map_or_else(|| task.id.clone(), |parent| parent.root_id.clone()),
            created_at: time(Some(task.created_at)),
            eta: time(if row.state == State::Retry { row.retry_at } else { task.eta }),
            expires: time(task.expires),
            started_at: time(row.started_at),
            finished_at: time(row.finished_at),
            callback: CallbackView::of(row),
        }
    }
}

/// Where a task is read.
pub fn path(id: &str) -> String {
    format!("/v1/tasks/{id}")
}

/// A time as the API shows it.
pub fn time(at: Option<UnixMs>) -> Option<String> {
    at.and_then(from_unix_ms).map(rfc3339)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NewTask;
    use crate::store::tests::new_task;
    use protocol::retry::RetryOptions;

    #[test]
    fn the_callers_number_of_retries_goes_before_the_types_own() {
        let own = RetryPolicy { max_retries: 5, ..RetryPolicy::default() };
        let chosen = RetryOptions { max_retries: Some(0), ..RetryOptions::default() };
        let shown = |task: NewTask| TaskView::new(&task.into(), own, None).max_retries;
        assert_eq!(shown(new_task("a")), 5);
        assert_eq!(shown(NewTask { retry: chosen, ..new_task("a") }), 0);
    }
}
