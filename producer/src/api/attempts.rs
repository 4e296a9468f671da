//! `GET /v1/tasks/{id}/attempts`: what each attempt of a task came to.

use actix_web::{HttpResponse, web};
use protocol::state::State;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Api;
use super::openapi::answers::{NoStore, NoTask};
use super::openapi::schemas::{Any, ErrorView, TaskId};
use super::problem::Problem;
use super::view::time;
use crate::keyring::Caller;
use crate::store::{Attempt, Provenance, Route};

/// The attempts of a task.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttemptList {
    /// The latest 50, oldest first; the last one may be running.
    attempts: Vec<AttemptView>,
}

/// One attempt. Times are RFC 3339, UTC.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttemptView {
    /// From 0. One that the broker lost comes again under its number.
    attempt: u32,
    worker: Option<String>,
    #[schema(format = DateTime)]
    started_at: Option<String>,
    /// Null while it runs.
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    state: AttemptState,
    #[schema(value_type = Option<ErrorView>)]
    error: Option<Box<RawValue>>,
    /// When the next attempt was due.
    #[schema(format = DateTime)]
    retry_at: Option<String>,
    /// The replay that asked for it, null when it followed by itself.
    replay: Option<ReplayView>,
}

/// Where an attempt of a task that had ended comes from.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayView {
    #[schema(format = DateTime)]
    at: Option<String>,
    route: ReplayRoute,
    /// Whether the arguments are others since then.
    edited: bool,
    /// The arguments before, null when they were not edited.
    before: Option<ArgumentsView>,
}

/// What a task was called with.
#[derive(Debug, Serialize, ToSchema)]
pub struct ArgumentsView {
    #[schema(value_type = Vec<Any>)]
    args: Box<RawValue>,
    #[schema(value_type = Object)]
    kwargs: Box<RawValue>,
}

/// By which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayRoute {
    /// `POST /v1/tasks/{id}/retry`
    Task,
    /// `POST /v1/dead-letters/{id}/replay`
    DeadLetter,
    /// `POST /v1/dead-letters/replay`
    DeadLetters,
}

/// How an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum AttemptState {
    /// A replay asked for it, and no worker has said that it runs.
    Pending,
    /// It runs.
    Started,
    /// It failed and another one follows.
    Retry,
    /// It ended the task.
    Success,
    /// It ended the task.
    Failure,
    /// It was revoked, with its task.
    Revoked,
    /// The broker gave its message back, and nobody knows how far it came.
    Lost,
}

/// The attempts of a task
///
/// None of a task that was never started, unless a replay asked for one.
#[utoipa::path(get, path = "/v1/tasks/{id}/attempts", tag = "tasks",
    params(("id" = inline(TaskId), Path, description = "Its id")),
    responses((status = 200, description = "The attempts", body = AttemptList), NoTask, NoStore))]
pub async fn attempts(api: web::Data<Api>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let attempts = api.store.attempts(&id, &caller.whose()).await?.ok_or_else(Problem::unknown_task)?;
    let attempts = attempts.into_iter().map(view).collect();
    Ok(HttpResponse::Ok().json(AttemptList { attempts }))
}

fn view(attempt: Attempt) -> AttemptView {
    AttemptView {
        attempt: attempt.number,
        worker: attempt.worker,
        started_at: time(attempt.started_at),
        ended_at: time(attempt.ended_at),
        state: match attempt.state {
            Some(State::Pending) => AttemptState::Pending,
            Some(State::Started) => AttemptState::Started,
            Some(State::Retry) => AttemptState::Retry,
            Some(State::Success) => AttemptState::Success,
            Some(State::Failure) => AttemptState::Failure,
            Some(State::Revoked) => AttemptState::Revoked,
            None => AttemptState::Lost,
        },
        error: attempt.error,
        retry_at: time(attempt.retry_at),
        replay: attempt.provenance.map(replay),
    }
}

fn replay(provenance: Provenance) -> ReplayView {
    ReplayView {
        at: time(Some(provenance.at)),
        route: match provenance.route {
            Route::Task => ReplayRoute::Task,
            Route::Letter => ReplayRoute::DeadLetter,
            Route::Letters => ReplayRoute::DeadLetters,
        },
        edited: provenance.before.is_some(),
        before: provenance.before.map(|(args, kwargs)| ArgumentsView { args, kwargs }),
    }
}
