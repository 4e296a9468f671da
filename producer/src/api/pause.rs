//! `POST /v1/queues/{queue}/pause`, `/resume`, `/purge`.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use protocol::timestamp::{from_unix_ms, now_ms, rfc3339};
use serde::Serialize;

use super::Api;
use super::problem::Problem;
use crate::store::UnixMs;

/// Whether a queue is paused.
#[derive(Debug, Serialize)]
pub struct QueueState {
    queue: String,
    paused: bool,
    /// RFC 3339, UTC.
    paused_at: Option<String>,
}

/// What a purge did.
#[derive(Debug, Serialize)]
pub struct QueuePurged {
    queue: String,
    /// Tasks that are REVOKED now, or will be.
    purged: u64,
    /// Those of them that end when a worker takes their message from the broker.
    at_broker: u64,
}

/// 200 with the queue's state. Its tasks are not published any more, and workers of ours do not consume it.
pub async fn pause(api: web::Data<Api>, queue: web::Path<String>) -> Result<HttpResponse, Problem> {
    change(&api, queue.into_inner(), Some(now_ms())).await
}

/// 200 with the queue's state.
pub async fn resume(api: web::Data<Api>, queue: web::Path<String>) -> Result<HttpResponse, Problem> {
    change(&api, queue.into_inner(), None).await
}

/// 200 with how many tasks it revoked: those that waited here, at the broker, or for their next attempt. Neither what
/// runs nor what is not due, and no message of anybody else.
pub async fn purge(api: web::Data<Api>, queue: web::Path<String>) -> Result<HttpResponse, Problem> {
    let queue = known(&api, queue.into_inner())?;
    let purged = api.store.purge(&queue, now_ms()).await?;
    metrics::counter!("errand_purged_total").increment(purged.purged);
    Ok(HttpResponse::Ok().json(QueuePurged { queue, purged: purged.purged, at_broker: purged.at_broker }))
}

async fn change(api: &Api, queue: String, at: Option<UnixMs>) -> Result<HttpResponse, Problem> {
    let queue = known(api, queue)?;
    api.store.pause(&queue, at).await?;
    let at = api.store.paused_at(&queue);
    let paused_at = at.and_then(from_unix_ms).map(rfc3339);
    Ok(HttpResponse::Ok().json(QueueState { queue, paused: at.is_some(), paused_at }))
}

fn known(api: &Api, queue: String) -> Result<String, Problem> {
    if api.limits.queues.contains(&queue) {
        return Ok(queue);
    }
    let detail = format!("the queues of this producer are {}", api.limits.queues.join(", "));
    Err(Problem::new(StatusCode::NOT_FOUND, "unknown-queue", detail))
}
