//! `POST /v1/tasks/{id}/revoke`.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use protocol::timestamp::now_ms;

use super::Api;
use super::problem::Problem;
use crate::store::Revocation;

/// 200 with the task, REVOKED, when it was never handed to the relay and so never starts. 202 with the task when it may be
/// at the broker or run: workers drop it or end it. 409 when it has ended.
pub async fn revoke(api: web::Data<Api>, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let status = match api.store.revoke(&id, now_ms()).await? {
        Revocation::Never => StatusCode::OK,
        Revocation::Told => StatusCode::ACCEPTED,
        Revocation::Unknown => return Err(Problem::unknown_task()),
        Revocation::Ended => {
            let detail = "the task has ended, and what has ended does not change";
            return Err(Problem::new(StatusCode::CONFLICT, "task-ended", detail));
        }
    };
    metrics::counter!("errand_revoked_total").increment(1);
    let row = api.store.task(&id).await?.ok_or_else(Problem::unknown_task)?;
    Ok(HttpResponse::build(status).json(api.view(&row)))
}
