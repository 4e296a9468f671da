//! `GET /v1/tasks/{id}`: the task as it stands, in every state.

use actix_web::{HttpResponse, web};

use super::Api;
use super::problem::Problem;

/// 200 with the task; 404 for an id that was never accepted or whose result has expired: unknown is never PENDING.
pub async fn task(api: web::Data<Api>, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    match api.store.task(&id).await? {
        Some(row) => Ok(HttpResponse::Ok().json(api.view(&row))),
        None => Err(Problem::unknown_task()),
    }
}
