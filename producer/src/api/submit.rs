//! `POST /v1/tasks`: validates, stores, answers 202. It waits for the disk and for nothing else.

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;

use super::body::read_json;
use super::fields::parse;
use super::problem::Problem;
use super::view::path;
use super::{Api, idempotency};
use crate::store::{NewTask, TaskRow};

/// 202 with `Location` and the task as it stands; of a submit that is repeated under its `Idempotency-Key` the task that
/// was accepted first.
pub async fn submit(api: web::Data<Api>, request: HttpRequest, payload: Payload) -> Result<HttpResponse, Problem> {
    let body = read_json(&request, payload).await?;
    let task = parse(&body, &api.limits, now_ms())?;
    let key = idempotency::key(&request, &body)?;
    let (row, is_replay) = match key {
        Some(key) => idempotency::accept(&api, task, key).await?,
        None => (accept(&api, task).await?, false),
    };
    let mut answer = HttpResponse::Accepted();
    answer.insert_header((LOCATION, path(&row.accepted.id)));
    if is_replay {
        answer.insert_header((idempotency::REPLAYED, "true"));
    }
    Ok(answer.json(api.view(&row)))
}

async fn accept(api: &Api, task: NewTask) -> Result<TaskRow, Problem> {
    refuse_beyond_cap(api, std::slice::from_ref(&task))?;
    api.store.insert(task.clone()).await?;
    metrics::counter!("errand_accepted_total").increment(1);
    Ok(TaskRow::from(task))
}

/// Tasks that are not due yet do not count, or a calendar of reminders would stop everything else.
pub fn refuse_beyond_cap(api: &Api, tasks: &[NewTask]) -> Result<(), Problem> {
    let due = tasks.iter().filter(|task| !task.is_scheduled()).count() as u64;
    let outstanding = api.store.outstanding();
    if due == 0 || outstanding.saturating_add(due) <= api.outbox_cap {
        return Ok(());
    }
    let cap = api.outbox_cap;
    let detail = format!("{outstanding} tasks are unfinished and {cap} may be; nothing was accepted");
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "outbox-full", detail))
}
