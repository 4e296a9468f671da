//! `DELETE /v1/tasks/{id}`: forgets a task that has ended.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use super::Api;
use super::problem::Problem;
use crate::store::Forgotten;

/// 204; 409 for a task that has not ended, 404 for one that is not kept.
pub async fn forget(api: web::Data<Api>, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    match api.store.forget(&id).await? {
        Forgotten::Done => Ok(HttpResponse::NoContent().finish()),
        Forgotten::Open => {
            let detail = "the task has not ended; only one that has can be deleted";
            Err(Problem::new(StatusCode::CONFLICT, "task-open", detail))
        }
        Forgotten::Unknown => Err(Problem::unknown_task()),
    }
}
