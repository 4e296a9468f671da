//! `GET /v1/tasks/{id}/events`: the life of a task as server-sent events (HTML, section 9.2).
//!
//! First the task as it stands, then one `state` event for each state, with the whole task, and one `progress` event for
//! each progress, with that alone; the one of a terminal state is the last. Neither is called `error`, which an
//! `EventSource` keeps for itself.

mod frame;

use std::pin::pin;
use std::time::Duration;

use actix_web::http::Method;
use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::{Stream, stream};
use tokio::time::timeout;

use self::frame::{Position, frame};
use super::Api;
use super::openapi::answers::{NoTask, NoWatch};
use super::openapi::parameters::LastEvent;
use super::openapi::schemas::TaskId;
use super::problem::Problem;
use super::server::{PIECE, place};
use crate::keyring::Caller;
use crate::store::{StoreError, TaskRow, Watch};

/// Less than proxies wait for.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Follow a task
///
/// Server-sent events: first the task as it stands, then a `state` event with the whole task for each state, and a
/// `progress` event for each progress. The one of a terminal state is the last. A `Last-Event-ID` that this task never had
/// is ignored. The stream ends early where a large event finds too many others being read: listen again.
#[utoipa::path(get, path = "/v1/tasks/{id}/events", tag = "tasks",
    params(("id" = inline(TaskId), Path, description = "Its id"), LastEvent),
    responses(
        (status = 200, description = "The events that follow `Last-Event-ID`", body = String,
            content_type = "text/event-stream",
            headers(
                ("Cache-Control" = String, description = "`no-cache`"),
                ("X-Accel-Buffering" = String, description = "`no`"),
            )),
        (status = 204, description = "None follows, now or later"),
        NoTask,
        NoWatch,
    ))]
pub async fn events(
    api: web::Data<Api>,
    caller: Caller,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let watch = api.store.watch(&id, caller.whose())?;
    let row = watch.now().await?.ok_or_else(Problem::unknown_task)?;
    let last = last_event_id(&request).filter(|last| *last <= Position::of(&row));
    if row.state.is_terminal() && last == Some(Position::of(&row)) {
        return Ok(HttpResponse::NoContent().finish());
    }
    let mut answer = HttpResponse::Ok();
    answer.content_type("text/event-stream").insert_header((CACHE_CONTROL, "no-cache"));
    // nginx would hold events back to fill its buffer.
    answer.insert_header(("x-accel-buffering", "no"));
    if request.method() == Method::HEAD {
        return Ok(answer.finish());
    }
    let mut listener = Listener { api, caller, watch, last, has_ended: false };
    let mut first = Bytes::from_static(frame::OPENING);
    if let Some(event) = listener.event(&row) {
        first = [first, event].concat().into();
    }
    Ok(answer.streaming(listener.stream(first)))
}

fn last_event_id(request: &HttpRequest) -> Option<Position> {
    request.headers().get("last-event-id")?.to_str().ok()?.parse().ok()
}

/// Who listens, and what was sent last.
struct Listener {
    api: web::Data<Api>,
    caller: Caller,
    watch: Watch,
    last: Option<Position>,
    has_ended: bool,
}

impl Listener {
    /// What is sent: `first`, the events, and comments while there are none.
    fn stream(self, first: Bytes) -> impl Stream<Item = Result<Bytes, StoreError>> {
        // A large event has its place among large answers until the next is asked for, and its listener has read it.
        stream::unfold((self, Some(first), None), async |(mut listener, first, held)| {
            drop(held);
            let next = match first {
                Some(first) => Ok(first),
                None => listener.next().await.transpose()?,
            };
            let bytes = next.as_ref().map_or(0, Bytes::len);
            let held = if bytes > PIECE { Some(place(bytes as u64)?) } else { None };
            Some((next, (listener, None, held)))
        })
    }

    /// The next bytes; `None` after the last event, when the task is gone, the key revoked, and when
    /// the producer ends.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while !self.has_ended {
            let change = {
                let change = pin!(timeout(HEARTBEAT, self.watch.changed()));
                self.api.stopping.run_until_cancelled(self.caller.while_good(change)).await.flatten()
            };
            let Some(change) = change else { return Ok(None) };
            let Ok(row) = change else { return Ok(Some(Bytes::from_static(frame::HEARTBEAT))) };
            let Some(row) = row? else { return Ok(None) };
            if let Some(event) = self.event(&row) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The event of a row, `None` when it is none, or was sent.
    fn event(&mut self, row: &TaskRow) -> Option<Bytes> {
        self.has_ended |= row.state.is_terminal();
        let position = Position::of(row);
        if self.last.is_some_and(|last| position <= last) {
            return None;
        }
        let before = self.last.replace(position);
        Some(frame(before, position, row, || self.api.view(row)))
    }
}
