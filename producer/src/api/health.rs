//! `GET /livez`, `/readyz`, `/metrics`.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::openapi::answers::NoRoom;

/// What `/livez` says.
#[derive(Debug, Serialize, ToSchema)]
pub struct Live {
    status: &'static str,
}

/// What `/readyz` says.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ready {
    /// `ready`, or why not.
    status: String,
    /// How it stands with the broker.
    broker: String,
    /// Due and unfinished tasks.
    outstanding: u64,
}

/// Whether the process answers
#[utoipa::path(get, path = "/livez", tag = "service", responses((status = 200, description = "It does", body = Live)))]
pub async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(Live { status: "ok" })
}

/// Whether tasks are accepted
///
/// They are when the store can be written and the outbox is under its cap. A broker that is away is said in the body
/// only, since tasks are accepted and answered without it.
#[utoipa::path(get, path = "/readyz", tag = "service", responses(
    (status = 200, description = "They are", body = Ready),
    (status = 503, description = "They are not, and `status` says why", body = Ready),
))]
pub async fn readyz(api: web::Data<Api>) -> HttpResponse {
    let outstanding = api.store.outstanding();
    let store = api.store.is_writable().await;
    let not_ready = if api.stopping.is_cancelled() {
        Some("stopping".to_owned())
    } else if let Err(error) = &store {
        Some(error.to_string())
    } else if outstanding >= api.outbox_cap {
        Some(format!("the outbox is full: {outstanding} tasks"))
    } else {
        None
    };
    let status = if not_ready.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let broker = api.link.borrow().to_string();
    let said = not_ready.unwrap_or_else(|| "ready".to_owned());
    HttpResponse::build(status).json(Ready { status: said, broker, outstanding })
}

/// Figures in Prometheus' text format
#[utoipa::path(get, path = "/metrics", tag = "service", responses(
    (status = 200, description = "One figure a line", body = String, content_type = "text/plain"),
    NoRoom,
))]
pub async fn metrics(api: web::Data<Api>) -> HttpResponse {
    metrics::gauge!("errand_outstanding").set(u32::try_from(api.store.outstanding()).unwrap_or(u32::MAX));
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(api.metrics.render())
}
