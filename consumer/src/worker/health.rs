//! `GET /livez`, `/readyz`, `/metrics`.

use std::net::SocketAddr;

use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::{App, HttpResponse, HttpServer, web};
use metrics_exporter_prometheus::PrometheusHandle;
use protocol::amqp::Link;
use serde_json::json;
use tokio::sync::watch;

/// What health is told from.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) publishing: watch::Receiver<Link>,
    pub(super) consuming: watch::Receiver<Link>,
    pub(super) metrics: PrometheusHandle,
}

/// An HTTP server on that address; it runs when spawned.
pub(super) fn server(health: Health, listen: SocketAddr) -> std::io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(health.clone()))
            .route("/livez", web::get().to(livez))
            .route("/readyz", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics))
    });
    Ok(server.workers(1).disable_signals().bind(listen)?.run())
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// Ready when it consumes and publishes.
async fn readyz(health: web::Data<Health>) -> HttpResponse {
    let (publishing, consuming) = (health.publishing.borrow().clone(), health.consuming.borrow().clone());
    let ready = publishing.is_ready() && consuming.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status).json(json!({
        "status": if ready { "ready" } else { "not ready" },
        "publishing": publishing.to_string(),
        "consuming": consuming.to_string(),
    }))
}

async fn metrics(health: web::Data<Health>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(health.metrics.render())
}
