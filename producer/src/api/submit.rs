//! `POST /v1/tasks`: validates, stores, answers 202. It waits for the disk and for nothing else.

use std::pin::pin;

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;

use super::body::read_json;
use super::fields::parse;
use super::openapi::answers::{BadBody, NoStore, PROBLEM};
use super::openapi::parameters::{Key, Patience};
use super::openapi::schemas::Submission;
use super::prefer::Wait;
use super::problem::Problem;
use super::shown::Shown;
use super::view::{TaskView, path};
use super::wait::wait_accepted;
use super::{Api, idempotency};
use crate::keyring::Caller;
use crate::store::{NewTask, TaskRow};

/// Submit a task
///
/// 202 says that it is on disk. It then reaches SUCCESS, FAILURE or REVOKED, whatever goes away meanwhile. 200 when it
/// ended within `Prefer: wait=N`.
#[utoipa::path(post, path = "/v1/tasks", tag = "tasks", params(Key, Patience), request_body = Submission, responses(
    (status = 200, description = "The task, which has ended within the wait", body = TaskView, headers(
        ("Location" = String, description = "Where it is read"),
        ("Cache-Control" = String, description = "`no-cache`"),
        ("Preference-Applied" = String, description = "`wait=N`"),
        ("Idempotency-Replayed" = String, description = "`true` when it had been accepted before"),
    )),
    (status = 202, description = "The task as it stands", body = TaskView, headers(
        ("Location" = String, description = "Where it is read"),
        ("Cache-Control" = String, description = "`no-cache`"),
        ("Retry-After" = u32, description = "Seconds after which a look is worth it; absent once it has ended"),
        ("Idempotency-Replayed" = String, description = "`true` when it had been accepted before"),
    )),
    (status = 400, description = "The body is not JSON, or did not come whole, or `Idempotency-Key` cannot be one",
        body = Problem, content_type = PROBLEM),
    (status = 409, description = "`task_id` is taken", body = Problem, content_type = PROBLEM),
    (status = 410, description = "The task of this `Idempotency-Key` is kept no more", body = Problem,
        content_type = PROBLEM),
    (status = 422, description = "Fields are wrong: `errors` names each by its JSON pointer; or something else was \
        submitted under this `Idempotency-Key`", body = Problem, content_type = PROBLEM),
    BadBody,
    NoStore,
))]
pub async fn submit(
    api: web::Data<Api>,
    caller: Caller,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let body = read_json(&request, payload).await?;
    let owner = caller.owner().map(str::to_owned);
    let task = NewTask { owner, ..parse(&body, &api.limits, now_ms())? };
    let key = idempotency::key(&request, &caller, &body)?;
    // Nothing of it is kept while its client waits.
    drop(body);
    let (row, is_replay) = match key {
        Some(key) => idempotency::accept(&api, &caller, task, key).await?,
        None => (accept(&api, task).await?, false),
    };
    Ok(accepted(&api, &caller, &row, is_replay, Wait::of(&request)).await)
}

async fn accept(api: &Api, task: NewTask) -> Result<TaskRow, Problem> {
    refuse_arguments(api, &task)?;
    refuse_beyond_cap(api, std::slice::from_ref(&task))?;
    api.store.insert(task.clone()).await?;
    metrics::counter!("errand_accepted_total").increment(1);
    Ok(TaskRow::from(task))
}

async fn accepted(api: &Api, caller: &Caller, row: &TaskRow, is_replay: bool, limit: Option<Wait>) -> HttpResponse {
    let waited = match limit {
        Some(limit) => {
            let ended = pin!(wait_accepted(api, &row.accepted.id, caller.whose(), limit));
            caller.while_good(ended).await.flatten()
        }
        None => None,
    };
    let row = waited.as_deref().unwrap_or(row);
    let mut answer = HttpResponse::Accepted();
    if let Some(limit) = limit.filter(|_| row.state.is_terminal()) {
        answer.status(StatusCode::OK).insert_header(limit.applied());
    }
    if is_replay {
        answer.insert_header((idempotency::REPLAYED, "true"));
    }
    answer.insert_header((LOCATION, path(&row.accepted.id)));
    Shown::new(api, row).answer(answer)
}

/// What no living worker would take.
pub fn refuse_arguments(api: &Api, task: &NewTask) -> Result<(), Problem> {
    let faults = api.argument_faults(task);
    if faults.is_empty() { Ok(()) } else { Err(Problem::fields(faults)) }
}

/// Tasks that are not due yet do not count, or a calendar of reminders would stop everything else.
pub fn refuse_beyond_cap(api: &Api, tasks: &[NewTask]) -> Result<(), Problem> {
    refuse_due_beyond_cap(api, tasks.iter().filter(|task| !task.is_scheduled()).count() as u64)
}

/// So many rows that are due.
pub fn refuse_due_beyond_cap(api: &Api, due: u64) -> Result<(), Problem> {
    let has_room = due == 0 || api.store.outstanding().saturating_add(due) <= api.outbox_cap;
    if has_room { Ok(()) } else { Err(beyond_cap(api)) }
}

/// 503, since there is no room.
pub fn beyond_cap(api: &Api) -> Problem {
    let (outstanding, cap) = (api.store.outstanding(), api.outbox_cap);
    let detail = format!("{outstanding} tasks are unfinished and {cap} may be; nothing was accepted");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "outbox-full", detail)
}
