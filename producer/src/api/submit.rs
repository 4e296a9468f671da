//! `POST /v1/tasks`: validates, stores, answers 202. It waits for the disk and for nothing else.

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;

use super::Api;
use super::body::read_json;
use super::fields::parse;
use super::prefer::Wait;
use super::problem::Problem;
use super::shown::Shown;
use super::view::path;
use super::wait::wait_accepted;
use crate::store::{NewTask, TaskRow};

/// 202 with `Location` and the task as it stands; 200 when it ended within `Prefer: wait=N`.
pub async fn submit(api: web::Data<Api>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, Problem> {
    let body = read_json(&request, payload).await?;
    let task = parse(&body, &api.limits, now_ms())?;
    refuse_beyond_cap(api.outbox_cap, &task, api.store.outstanding())?;
    api.store.insert(task.clone()).await?;
    // Nothing of it is kept while its client waits.
    drop(body);
    metrics::counter!("errand_accepted_total").increment(1);
    accepted(&api, &TaskRow::from(task), Wait::of(&request)).await
}

async fn accepted(api: &Api, row: &TaskRow, limit: Option<Wait>) -> Result<HttpResponse, Problem> {
    let waited = match limit {
        Some(limit) => wait_accepted(api, &row.accepted.id, limit).await,
        None => None,
    };
    let row = waited.as_deref().unwrap_or(row);
    let mut answer = HttpResponse::Accepted();
    if let Some(limit) = limit.filter(|_| row.state.is_terminal()) {
        answer.status(StatusCode::OK).insert_header(limit.applied());
    }
    answer.insert_header((LOCATION, path(&row.accepted.id)));
    Ok(Shown::new(api, row)?.answer(answer))
}

/// Tasks that are not due yet do not count, or a calendar of reminders would stop everything else.
fn refuse_beyond_cap(outbox_cap: u64, task: &NewTask, outstanding: u64) -> Result<(), Problem> {
    if task.is_scheduled() || outstanding < outbox_cap {
        return Ok(());
    }
    let detail = format!("{outstanding} tasks are unfinished, as many as this producer keeps; nothing was accepted");
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "outbox-full", detail))
}
