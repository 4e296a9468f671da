//! `POST /v1/tasks`: validates, stores, answers 202. It waits for the disk and for nothing else.

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;

use super::Api;
use super::body::read_json;
use super::fields::parse;
use super::openapi::answers::{BadBody, NoStore, PROBLEM};
use super::openapi::schemas::Submission;
use super::problem::Problem;
use super::view::{TaskView, path};
use crate::store::{NewTask, TaskRow};

/// Submit a task
///
/// 202 says that it is on disk. It then reaches SUCCESS, FAILURE or REVOKED, whatever goes away meanwhile.
#[utoipa::path(post, path = "/v1/tasks", tag = "tasks", request_body = Submission, responses(
    (status = 202, description = "The task as it stands", body = TaskView,
        headers(("Location" = String, description = "Where it is read"))),
    (status = 409, description = "`task_id` is taken", body = Problem, content_type = PROBLEM),
    BadBody,
    NoStore,
))]
pub async fn submit(api: web::Data<Api>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, Problem> {
    let body = read_json(&request, payload).await?;
    let task = parse(&body, &api.limits, now_ms())?;
    let faults = api.argument_faults(&task);
    if !faults.is_empty() {
        return Err(Problem::fields(faults));
    }
    refuse_beyond_cap(api.outbox_cap, &task, api.store.outstanding())?;
    api.store.insert(task.clone()).await?;
    metrics::counter!("errand_accepted_total").increment(1);
    let row = TaskRow::from(task);
    Ok(HttpResponse::Accepted().insert_header((LOCATION, path(&row.accepted.id))).json(api.view(&row)))
}

/// Tasks that are not due yet do not count, or a calendar of reminders would stop everything else.
fn refuse_beyond_cap(outbox_cap: u64, task: &NewTask, outstanding: u64) -> Result<(), Problem> {
    if task.is_scheduled() || outstanding < outbox_cap {
        return Ok(());
    }
    let detail = format!("{outstanding} tasks are unfinished, as many as this producer keeps; nothing was accepted");
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "outbox-full", detail))
}
