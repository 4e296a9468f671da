//! `GET /v1/queues` and `GET /v1/queues/{queue}`: how many tasks are where.

use actix_web::{HttpResponse, web};
use protocol::timestamp::now_ms;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::openapi::answers::{NoQueue, NoStore};
use super::openapi::schemas::QueueName;
use super::problem::Problem;
use crate::relay::Route;

/// The answer of `/v1/queues`.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueuesView {
    queues: Vec<QueueView>,
}

/// A queue and its open tasks.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueView {
    queue: String,
    /// Whether stock Celery workers consume it.
    foreign: bool,
    /// Whether nothing of it is published or started.
    paused: bool,
    /// Tasks that are not due.
    scheduled: u64,
    /// Tasks that are due and wait to be published.
    waiting: u64,
    /// Tasks at the broker that are not known to run.
    queued: u64,
    /// Tasks that run, as far as their workers have said: those quicker than 50 ms are never announced.
    running: u64,
    /// Tasks that wait for their next attempt.
    retrying: u64,
    /// Living workers that serve it, those of Celery not counted.
    consumers: usize,
    /// For how many seconds the first in line has been due, null when none waits.
    oldest_waiting: Option<f64>,
}

/// All queues
///
/// Those that tasks are accepted for, and those that open tasks of an earlier configuration are in.
#[utoipa::path(get, path = "/v1/queues", tag = "queues", responses(
    (status = 200, description = "The queues", body = QueuesView), NoStore,
))]
pub async fn queues(api: web::Data<Api>) -> Result<HttpResponse, Problem> {
    let mut queues = Vec::with_capacity(api.queues.len());
    for route in &api.queues {
        queues.push(view(&api, route).await?);
    }
    Ok(HttpResponse::Ok().json(QueuesView { queues }))
}

/// One queue
#[utoipa::path(get, path = "/v1/queues/{queue}", tag = "queues",
    params(("queue" = inline(QueueName), Path, description = "Its name")),
    responses((status = 200, description = "The queue", body = QueueView), NoQueue, NoStore))]
pub async fn queue(api: web::Data<Api>, queue: web::Path<String>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(view(&api, api.known_queue(&queue)?).await?))
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of centuries fit")]
async fn view(api: &Api, route: &Route) -> Result<QueueView, Problem> {
    let depth = api.store.depth(&route.queue).await?;
    let now = now_ms();
    Ok(QueueView {
        queue: route.queue.clone(),
        foreign: route.foreign,
        paused: api.store.paused_at(&route.queue).is_some(),
        scheduled: depth.scheduled,
        waiting: depth.waiting,
        queued: depth.queued,
        running: depth.running,
        retrying: depth.retrying,
        consumers: api.workers.consumers(&route.queue),
        oldest_waiting: depth.oldest.map(|at| now.saturating_sub(at).max(0) as f64 / 1000.0),
    })
}
