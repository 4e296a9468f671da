//! `POST /v1/tasks/batch`: many tasks in one commit, as a JSON array or one a line. All are accepted or none, or with
//! `?partial=true` those that can be.

mod tasks;

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::Payload;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use utoipa::ToSchema;

pub use self::tasks::MAX_TASKS;
use self::tasks::{Checked, Format};
use super::Api;
use super::body::{Body, Bounds, media_type, read_body};
use super::idempotency::refuse_key;
use super::openapi::answers::{BadBody, NoBatch, PROBLEM};
use super::openapi::parameters::BatchQuery;
use super::openapi::schemas::{Lines, Submissions};
use super::problem::{FieldError, Problem};
use super::query::Parameters;
use super::submit::refuse_beyond_cap;
use super::view::TaskView;
use crate::keyring::Caller;
use crate::store::{Atomicity, Excess, Placed, TaskRow};

const NDJSON: &str = "application/x-ndjson";
const BOUNDS: Bounds = Bounds {
    types: &["application/json", NDJSON],
    bytes: 8 * 1024 * 1024,
    time: Duration::from_secs(30),
    room: Some(&BODIES),
};
/// Pieces of bodies of batches in memory: 128 MiB.
static BODIES: Semaphore = Semaphore::const_new(2048);
/// Batches that are being checked and stored at once, each with its tasks and its answer.
static ROOM: Semaphore = Semaphore::const_new(16);
const ROOM_DEADLINE: Duration = Duration::from_secs(10);

/// The answer when all were accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchAccepted {
    /// In the order in which they were sent.
    tasks: Vec<TaskView>,
}

/// The answer to `?partial=true`.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchPartial {
    accepted: Vec<AcceptedTask>,
    rejected: Vec<RejectedTask>,
}

/// A task of the batch that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcceptedTask {
    /// Its place in the batch, from 0.
    index: usize,
    task: TaskView,
}

/// A task of the batch that was not accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct RejectedTask {
    /// Its place in the batch, from 0.
    index: usize,
    /// Their pointers begin with the place.
    errors: Vec<FieldError>,
}

/// The answer, by whether `?partial=true` was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BatchAnswer {
    /// Without it.
    All(BatchAccepted),
    /// With it.
    Partial(BatchPartial),
}

/// Submit many tasks
///
/// Up to 1000 in one commit: all or none, or with `?partial=true` those that can be accepted. 202 says that they are on
/// disk. A batch takes no `Idempotency-Key`: give its tasks a `task_id` each, and it can be repeated.
#[utoipa::path(post, path = "/v1/tasks/batch", tag = "tasks", params(BatchQuery),
    request_body(content((inline(Submissions) = "application/json"), (inline(Lines) = "application/x-ndjson"))),
    responses(
        (status = 202, description = "The tasks as they stand", body = BatchAnswer),
        (status = 400, description = "The body is not JSON, or did not come whole, or the query is wrong, or there is an \
            `Idempotency-Key`", body = Problem, content_type = PROBLEM),
        (status = 422, description = "Nothing was stored: there are no tasks or too many, or some are wrong or taken, and \
            `errors` names each by its place and field", body = Problem, content_type = PROBLEM),
        BadBody,
        NoBatch,
    ))]
pub async fn batch(
    api: web::Data<Api>,
    caller: Caller,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let atomicity = atomicity(request.query_string())?;
    refuse_key(&request)?;
    let body = read_body(&request, payload, &BOUNDS).await?;
    let _room = room().await?;
    let format = if media_type(&request).eq_ignore_ascii_case(NDJSON) { Format::Lines } else { Format::Array };
    let mut checked = check(api.clone(), body, format).await?;
    caller.owe((checked.tasks.len() + checked.rejected.len()).saturating_sub(1));
    for task in &mut checked.tasks {
        task.owner = caller.owner().map(str::to_owned);
    }
    if atomicity == Atomicity::All {
        checked.refuse_any()?;
    }
    refuse_beyond_cap(&api, &checked.tasks)?;
    let placed = api.store.insert_batch(checked.tasks.clone(), atomicity).await?;
    if atomicity == Atomicity::All
        && let Some(excess) = beyond(&placed)
    {
        return Err(excess.into());
    }
    checked.reject(&placed);
    if atomicity == Atomicity::All {
        checked.refuse_any()?;
    }
    metrics::counter!("errand_accepted_total").increment(checked.tasks.len() as u64);
    let views = checked.tasks.into_iter().map(|task| api.view(&TaskRow::from(task)));
    let answer = if atomicity == Atomicity::All {
        BatchAnswer::All(BatchAccepted { tasks: views.collect() })
    } else {
        let accepted = views.zip(checked.places).map(|(task, index)| AcceptedTask { index, task }).collect();
        let rejected = checked.rejected.into_iter().map(|(index, errors)| RejectedTask { index, errors }).collect();
        BatchAnswer::Partial(BatchPartial { accepted, rejected })
    };
    Ok(HttpResponse::Accepted().json(answer))
}

fn atomicity(query: &str) -> Result<Atomicity, Problem> {
    let mut query = Parameters::read(query)?;
    let is_partial = query.flag("partial");
    query.end()?;
    Ok(if is_partial { Atomicity::Each } else { Atomicity::All })
}

/// The limit that the batch as a whole is beyond, unless something else is wrong with it.
fn beyond(placed: &[Placed]) -> Option<Excess> {
    let is_taken = placed.contains(&Placed::Taken);
    placed.iter().filter(|_| !is_taken).find_map(|placed| match placed {
        Placed::Beyond(excess) => Some(*excess),
        _ => None,
    })
}

/// Of whole bodies only, so that no client who sends slowly holds up the others.
async fn room() -> Result<SemaphorePermit<'static>, Problem> {
    if let Ok(Ok(room)) = timeout(ROOM_DEADLINE, ROOM.acquire()).await {
        return Ok(room);
    }
    let detail = "too many batches are being taken in; nothing was accepted";
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "batches-busy", detail))
}

/// On a thread of its own: a thousand tasks would hold up every other request of this one.
async fn check(api: web::Data<Api>, body: Body, format: Format) -> Result<Checked, Problem> {
    let checked = web::block(move || {
        let mut checked = tasks::check(&body.bytes, format, &api.limits, now_ms())?;
        checked.reject_arguments(|task| api.argument_faults(task));
        Ok(checked)
    });
    let checked = checked.await;
    checked.unwrap_or_else(|_| {
        let detail = "the batch could not be checked; nothing was accepted";
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "batches-busy", detail))
    })
}

impl Checked {
    /// # Errors
    /// 422 with every bad task when there is one.
    fn refuse_any(&self) -> Result<(), Problem> {
        if self.rejected.is_empty() {
            return Ok(());
        }
        let detail = format!("{} of the tasks cannot be accepted; nothing was stored", self.rejected.len());
        let errors = self.rejected.values().flatten().cloned().collect();
        Err(Problem::batch(errors, detail))
    }
}

/// A batch of another size than can be taken.
fn wrong_count(count: usize) -> Problem {
    let detail = format!("must be 1 to {MAX_TASKS} tasks, not {count}");
    Problem::batch(vec![FieldError { pointer: String::new(), detail: detail.clone() }], detail)
}
