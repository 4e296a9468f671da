//! `GET /v1/tasks/{id}`: the task as it stands, in every state.

use actix_web::{HttpResponse, web};

use super::Api;
use super::openapi::answers::{NoStore, NoTask};
use super::openapi::schemas::TaskId;
use super::problem::Problem;
use super::view::TaskView;

/// Look at a task
///
/// 200 in every state. 404 for an id that was never accepted or whose result has expired: unknown is never PENDING.
#[utoipa::path(get, path = "/v1/tasks/{id}", tag = "tasks", params(("id" = inline(TaskId), Path, description = "Its id")),
    responses((status = 200, description = "The task as it stands", body = TaskView), NoTask, NoStore))]
pub async fn task(api: web::Data<Api>, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    match api.store.task(&id).await? {
        Some(row) => Ok(HttpResponse::Ok().json(api.view(&row))),
        None => Err(Problem::unknown_task()),
    }
}
