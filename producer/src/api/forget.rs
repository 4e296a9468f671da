//! `DELETE /v1/tasks/{id}`: forgets a task that has ended.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use super::Api;
use super::openapi::answers::{NoStore, NoTask, PROBLEM};
use super::openapi::schemas::TaskId;
use super::problem::Problem;
use crate::keyring::Caller;
use crate::store::Forgotten;

/// Forget a task
///
/// Only one that has ended. Nothing of it is kept: a callback that was not delivered yet never is.
#[utoipa::path(delete, path = "/v1/tasks/{id}", tag = "tasks",
    params(("id" = inline(TaskId), Path, description = "Its id")),
    responses(
        (status = 204, description = "It is forgotten"),
        (status = 409, description = "It has not ended, or was revoked while a message of it may have been at the broker", body = Problem, content_type = PROBLEM),
        NoTask,
        NoStore,
    ))]
pub async fn forget(api: web::Data<Api>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    match api.store.forget(&id, &caller.whose()).await? {
        Forgotten::Done => Ok(HttpResponse::NoContent().finish()),
        Forgotten::Open => {
            let detail = "the task has not ended; only one that has can be deleted";
            Err(Problem::new(StatusCode::CONFLICT, "task-open", detail))
        }
        Forgotten::InDoubt => {
            let detail = "the task was revoked while a message of it may have been at the broker; it is kept as long as a \
                result is, so that workers which start then do not run it";
            Err(Problem::new(StatusCode::CONFLICT, "task-in-doubt", detail))
        }
        Forgotten::Unknown => Err(Problem::unknown_task()),
    }
}
