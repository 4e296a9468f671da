//! `GET /v1/tasks/{id}`: the task as it stands, in every state.

use std::pin::pin;

use actix_web::{HttpRequest, HttpResponse, web};

use super::Api;
use super::openapi::answers::{NoTask, NoWatch};
use super::openapi::parameters::{Patience, SeenTag};
use super::openapi::schemas::TaskId;
use super::prefer::Wait;
use super::problem::Problem;
use super::shown::{Seen, Shown};
use super::view::TaskView;
use super::wait::wait;
use crate::keyring::Caller;
use crate::store::TaskRow;

/// Look at a task
///
/// 200 in every state. 404 for an id that was never accepted or whose result has expired: unknown is never PENDING.
/// `Prefer: wait=N` waits until the task has ended; with `If-None-Match` until it is another than the client has, which
/// a new `reason` alone does not make it before the time is up.
#[utoipa::path(get, path = "/v1/tasks/{id}", tag = "tasks",
    params(("id" = inline(TaskId), Path, description = "Its id"), Patience, SeenTag),
    responses(
        (status = 200, description = "The task as it stands", body = TaskView, headers(
            ("ETag" = String, description = "For `If-None-Match`: another for another body"),
            ("Vary" = String, description = "`prefer`"),
            ("Cache-Control" = String, description = "`no-cache`"),
            ("Retry-After" = u32, description = "Seconds after which a look is worth it; absent once it has ended"),
            ("Preference-Applied" = String, description = "`wait=N` where that was heeded"),
        )),
        (status = 304, description = "The client has it", headers(
            ("ETag" = String, description = "The one that the client has"),
            ("Vary" = String, description = "`prefer`"),
            ("Cache-Control" = String, description = "`no-cache`"),
            ("Retry-After" = u32, description = "Seconds after which a look is worth it; absent once it has ended"),
            ("Preference-Applied" = String, description = "`wait=N` where that was heeded"),
        )),
        NoTask,
        NoWatch,
    ))]
pub async fn task(
    api: web::Data<Api>,
    caller: Caller,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let (seen, limit) = (Seen::of(&request), Wait::of(&request));
    let row = if let Some(limit) = limit {
        let is_news = |row: &_| match &seen {
            Some(seen) => !seen.has(&Shown::new(&api, row)),
            None => false,
        };
        let mut watch = api.store.watch(&id, caller.whose())?;
        let is_wanted = |row: &TaskRow| row.state.is_terminal() || is_news(row);
        let waited = pin!(wait(&mut watch, limit.duration(), &api.stopping, is_wanted));
        caller.while_good(waited).await.ok_or_else(Problem::revoked_key)??
    } else {
        api.store.task(&id, &caller.whose()).await?.map(Into::into)
    };
    let row = row.ok_or_else(Problem::unknown_task)?;
    Ok(Shown::new(&api, &row).read(seen.as_ref(), limit))
}
