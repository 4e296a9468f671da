//! `GET /livez`, `/readyz`, `/metrics`.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::{KeepAlive, StatusCode};
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

/// Connections at once; the next one waits for a place.
const MAX_CONNECTIONS: usize = 256;
/// How long a head may take to come.
const HEAD: Duration = Duration::from_secs(5);

/// An HTTP server on that address; it runs when spawned. A connection is for one request, and for seconds: its answers are
/// small, and actix bounds the time of a connection's first head only.
pub(super) fn server(health: Health, listen: SocketAddr) -> std::io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(health.clone()))
            .route("/livez", web::get().to(livez))
            .route("/readyz", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics))
    });
    let server = server.workers(1).max_connections(MAX_CONNECTIONS).client_request_timeout(HEAD);
    Ok(server.keep_alive(KeepAlive::Disabled).disable_signals().bind(listen)?.run())
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
