//! `POST /v1/tasks/{id}/retry` and `POST /v1/dead-letters/{id}/replay`: one more attempt for a task that has ended.

use actix_web::http::StatusCode;
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;

use super::Api;
use super::body::read_if_any;
use super::dead_letters;
use super::fields::edit;
use super::openapi::answers::{BadBody, NoLetter, NoStore, NoTask, PROBLEM};
use super::openapi::parameters::EditQuery;
use super::openapi::schemas::{Edited, TaskId};
use super::problem::Problem;
use super::query::Parameters;
use super::submit::{refuse_arguments, refuse_due_beyond_cap};
use super::view::TaskView;
use crate::keyring::Caller;
use crate::store::{Edit, Replay, Replayed, Route, TaskRow};

/// Retry a task
///
/// One that is FAILURE or REVOKED goes on at its next attempt, with its id, its queue and what is left of its retries. An
/// expiry that has passed is lifted. With `?edit=true` the body says what it is called with from now on; the attempts
/// show what it was called with before.
#[utoipa::path(post, path = "/v1/tasks/{id}/retry", tag = "tasks",
    params(("id" = inline(TaskId), Path, description = "Its id"), EditQuery),
    request_body(content = inline(Option<Edited>), content_type = "application/json"),
    responses(
        (status = 200, description = "It was replayed before and goes on since then: as it stands", body = TaskView),
        (status = 202, description = "It goes on: as it stands", body = TaskView),
        (status = 400, description = "The query is wrong, or the body is not JSON, or did not come whole", body = Problem,
            content_type = PROBLEM),
        (status = 409, description = "It has not ended, has succeeded, or was never accepted", body = Problem, content_type = PROBLEM),
        (status = 422, description = "Arguments are changed without `edit=true`, or cannot be these: `errors` names each",
            body = Problem, content_type = PROBLEM),
        NoTask,
        BadBody,
        NoStore,
    ))]
pub async fn retry(
    api: web::Data<Api>,
    caller: Caller,
    request: HttpRequest,
    id: web::Path<String>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    again(&api, &caller, &request, (id.into_inner(), Route::Task), payload).await
}

/// Replay a dead letter
///
/// Its task goes on as by a retry, and it is no dead letter any more. Two replays of one letter make one attempt.
#[utoipa::path(post, path = "/v1/dead-letters/{id}/replay", tag = "dead letters",
    params(("id" = inline(TaskId), Path, description = "Its task's id"), EditQuery),
    request_body(content = inline(Option<Edited>), content_type = "application/json"),
    responses(
        (status = 200, description = "It was replayed before and goes on since then: as it stands", body = TaskView),
        (status = 202, description = "It goes on: as it stands", body = TaskView),
        (status = 400, description = "The query is wrong, or the body is not JSON, or did not come whole", body = Problem,
            content_type = PROBLEM),
        (status = 409, description = "It was replayed before and goes on, without this edit", body = Problem,
            content_type = PROBLEM),
        (status = 422, description = "Arguments are changed without `edit=true`, or cannot be these: `errors` names each",
            body = Problem, content_type = PROBLEM),
        NoLetter,
        BadBody,
        NoStore,
    ))]
pub async fn replay(
    api: web::Data<Api>,
    caller: Caller,
    request: HttpRequest,
    id: web::Path<String>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    again(&api, &caller, &request, (id.into_inner(), Route::Letter), payload).await
}

async fn again(
    api: &Api,
    caller: &Caller,
    request: &HttpRequest,
    (id, route): (String, Route),
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::read(request.query_string())?;
    let is_edit = query.flag("edit");
    query.end()?;
    let edit = edit(&read_if_any(request, payload).await?, is_edit)?;
    let unknown = || if route == Route::Letter { dead_letters::unknown() } else { Problem::unknown_task() };
    let whose = caller.whose();
    let row = api.store.task(&id, &whose).await?.ok_or_else(unknown)?;
    if let Some(edit) = &edit {
        refuse_edit(api, row, edit)?;
    }
    refuse_due_beyond_cap(api, 1)?;
    let status =
        match api.store.replay(Replay { id: id.clone(), route, whose: whose.clone(), edit, now: now_ms() }).await? {
            Replayed::Done => StatusCode::ACCEPTED,
            Replayed::Already => StatusCode::OK,
            Replayed::Unknown => return Err(unknown()),
            Replayed::Beyond(excess) => return Err(excess.into()),
            Replayed::Open => return Err(conflict("task-open", "the task has not ended, and goes on as it is")),
            Replayed::Succeeded => {
                return Err(conflict("task-succeeded", "the task has succeeded; to run it again, submit another"));
            }
            Replayed::NeverAccepted => {
                return Err(conflict(
                    "never-accepted",
                    "its parent submitted what cannot be run; nothing of it can be replayed",
                ));
            }
        };
    if status == StatusCode::ACCEPTED {
        metrics::counter!("errand_replayed_total").increment(1);
    }
    let row = api.store.task(&id, &whose).await?.ok_or_else(unknown)?;
    Ok(HttpResponse::build(status).json(api.view(&row)))
}

fn conflict(kind: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::CONFLICT, kind, detail)
}

/// What no living worker would take.
fn refuse_edit(api: &Api, row: TaskRow, edit: &Edit) -> Result<(), Problem> {
    let Edit { args, kwargs } = edit.clone();
    let mut task = row.accepted;
    task.args = args.unwrap_or(task.args);
    task.kwargs = kwargs.unwrap_or(task.kwargs);
    refuse_arguments(api, &task)
}
