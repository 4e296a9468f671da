//! `GET /livez`, `/readyz`, `/metrics`.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde_json::json;

use super::Api;

/// The process answers.
pub async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// Whether tasks are accepted: the store can be written and the outbox is under its cap. A broker that is away is said
/// in the body only, since tasks are accepted and answered without it.
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
    HttpResponse::build(status).json(json!({
        "status": not_ready.as_deref().unwrap_or("ready"),
        "broker": broker,
        "outstanding": outstanding,
    }))
}

/// Prometheus' text format.
pub async fn metrics(api: web::Data<Api>) -> HttpResponse {
    metrics::gauge!("errand_outstanding").set(u32::try_from(api.store.outstanding()).unwrap_or(u32::MAX));
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(api.metrics.render())
}
