//! `GET /v1/tasks/{id}`: the task as it stands, in every state.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};

use super::Api;
use super::prefer::Wait;
use super::problem::Problem;
use super::shown::{Seen, Shown};
use super::wait::wait;

/// 200 with the task, 304 when the client has it; 404 for an id that was never accepted or whose result has expired:
/// unknown is never PENDING.
///
/// `Prefer: wait=N` waits until the task has ended; with `If-None-Match` until it is another than the client has, which
/// a new `reason` alone does not make it before the time is up.
pub async fn task(api: web::Data<Api>, request: HttpRequest, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let (seen, limit) = (Seen::of(&request), Wait::of(&request));
    let row = if let Some(limit) = limit {
        let is_news = |row: &_| match &seen {
            Some(seen) => !Shown::new(&api, row).is_ok_and(|shown| seen.has(&shown)),
            None => false,
        };
        let mut watch = api.store.watch(&id)?;
        wait(&mut watch, limit.duration(), &api.stopping, |row| row.state.is_terminal() || is_news(row)).await?
    } else {
        api.store.task(&id).await?.map(Into::into)
    };
    let row = row.ok_or_else(unknown)?;
    Ok(Shown::new(&api, &row)?.read(seen.as_ref(), limit))
}

/// 404.
pub fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown-task", "no task with this id is kept")
}
