//! `POST /v1/queues/{queue}/pause`, `/resume`, `/purge`.

use actix_web::{HttpResponse, web};
use protocol::timestamp::{from_unix_ms, now_ms, rfc3339};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::openapi::answers::{NoQueue, NoStore};
use super::openapi::schemas::QueueName;
use super::problem::Problem;
use crate::store::UnixMs;

/// Whether a queue is paused.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueState {
    queue: String,
    paused: bool,
    /// RFC 3339, UTC; null when it is not paused.
    #[schema(format = DateTime)]
    paused_at: Option<String>,
}

/// What a purge did.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueuePurged {
    queue: String,
    /// Tasks that are REVOKED now, or will be.
    purged: u64,
    /// Those of them that end when a worker takes their message from the broker. Celery's workers do not know and run it.
    at_broker: u64,
}

/// Pause a queue
///
/// Its tasks are accepted and not published any more, and workers, those of Celery excepted, do not consume it.
#[utoipa::path(post, path = "/v1/queues/{queue}/pause", tag = "queues",
    params(("queue" = inline(QueueName), Path, description = "Its name")),
    responses((status = 200, description = "It is paused", body = QueueState), NoQueue, NoStore))]
pub async fn pause(api: web::Data<Api>, queue: web::Path<String>) -> Result<HttpResponse, Problem> {
    change(&api, &queue, Some(now_ms())).await
}

/// Resume a queue
#[utoipa::path(post, path = "/v1/queues/{queue}/resume", tag = "queues",
    params(("queue" = inline(QueueName), Path, description = "Its name")),
    responses((status = 200, description = "It is not paused", body = QueueState), NoQueue, NoStore))]
pub async fn resume(api: web::Data<Api>, queue: web::Path<String>) -> Result<HttpResponse, Problem> {
    change(&api, &queue, None).await
}

/// Purge a queue
///
/// Revokes what waits here, at the broker, or for its next attempt. Neither what runs nor what is not due, and no message
/// of anybody else.
#[utoipa::path(post, path = "/v1/queues/{queue}/purge", tag = "queues",
    params(("queue" = inline(QueueName), Path, description = "Its name")),
    responses((status = 200, description = "How many were revoked", body = QueuePurged), NoQueue, NoStore))]
pub async fn purge(api: web::Data<Api>, queue: web::Path<String>) -> Result<HttpResponse, Problem> {
    let queue = &api.known_queue(&queue)?.queue;
    let purged = api.store.purge(queue, now_ms()).await?;
    let (queue, purged, at_broker) = (queue.clone(), purged.purged, purged.at_broker);
    Ok(HttpResponse::Ok().json(QueuePurged { queue, purged, at_broker }))
}

async fn change(api: &Api, queue: &str, at: Option<UnixMs>) -> Result<HttpResponse, Problem> {
    let queue = api.known_queue(queue)?.queue.clone();
    api.store.pause(&queue, at).await?;
    let at = api.store.paused_at(&queue);
    let paused_at = at.and_then(from_unix_ms).map(rfc3339);
    Ok(HttpResponse::Ok().json(QueueState { queue, paused: at.is_some(), paused_at }))
}
