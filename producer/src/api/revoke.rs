//! `POST /v1/tasks/{id}/revoke`.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use protocol::timestamp::now_ms;

use super::Api;
use super::openapi::answers::{NoStore, NoTask, PROBLEM};
use super::openapi::schemas::TaskId;
use super::problem::Problem;
use super::view::TaskView;
use crate::keyring::Caller;
use crate::store::Revocation;

/// Revoke a task
///
/// 200 when it was never handed to the relay and so never starts. 202 when it may be at the broker or run: workers drop it
/// or end it.
#[utoipa::path(post, path = "/v1/tasks/{id}/revoke", tag = "tasks",
    params(("id" = inline(TaskId), Path, description = "Its id")),
    responses(
        (status = 200, description = "The task, REVOKED", body = TaskView),
        (status = 202, description = "The task as it stands; it will be REVOKED unless it ends before", body = TaskView),
        (status = 409, description = "It has ended", body = Problem, content_type = PROBLEM),
        NoTask,
        NoStore,
    ))]
pub async fn revoke(api: web::Data<Api>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let whose = caller.whose();
    let status = match api.store.revoke(&id, &whose, now_ms()).await? {
        Revocation::Never => StatusCode::OK,
        Revocation::Told => StatusCode::ACCEPTED,
        Revocation::Unknown => return Err(Problem::unknown_task()),
        Revocation::Ended => {
            let detail = "the task has ended, and what has ended does not change";
            return Err(Problem::new(StatusCode::CONFLICT, "task-ended", detail));
        }
    };
    metrics::counter!("errand_revoked_total").increment(1);
    let row = api.store.task(&id, &whose).await?.ok_or_else(Problem::unknown_task)?;
    Ok(HttpResponse::build(status).json(api.view(&row)))
}
