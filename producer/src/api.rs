//! The HTTP API. One file an endpoint; every answer that is no success is a [`Problem`].
//!
//! Nothing on the path of a submit waits for the broker.

mod body;
mod events;
mod fields;
mod health;
mod lean;
mod prefer;
mod problem;
mod shown;
mod submit;
mod task;
mod view;
mod wait;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError, guard, web};
use metrics_exporter_prometheus::PrometheusHandle;
use protocol::amqp::Link;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::problem::Problem;
use crate::reason::reason;
use crate::rules::Limits;
use crate::store::{Store, TaskRow};
use crate::workers::Workers;

const HTTP_WORKERS: usize = 2;

/// What the endpoints work with.
pub struct Api {
    /// The rows.
    pub store: Store,
    /// Whether publishing goes through.
    pub link: watch::Receiver<Link>,
    /// Who is alive.
    pub workers: Workers,
    /// The recorder that `/metrics` renders.
    pub metrics: PrometheusHandle,
    /// What is accepted.
    pub limits: Limits,
    /// Due and unfinished rows, at most.
    pub outbox_cap: u64,
    /// Cancelled when the process is about to end.
    pub stopping: CancellationToken,
}

impl Api {
    /// The task as the API shows it.
    fn view(&self, row: &TaskRow) -> view::TaskView {
        let service = self.workers.service(&row.accepted.queue, &row.accepted.task);
        let reason = reason(row, &self.link.borrow(), service);
        let own = self.workers.retry(&row.accepted.task).unwrap_or_default();
        view::TaskView::new(row, own, reason)
    }
}

/// An HTTP server on that address; it runs when spawned.
///
/// # Errors
/// The address cannot be listened on.
pub fn server(api: Arc<Api>, listen: SocketAddr) -> std::io::Result<Server> {
    let api = web::Data::from(api);
    let server = HttpServer::new(move || App::new().app_data(api.clone()).configure(routes))
        .workers(HTTP_WORKERS)
        .client_request_timeout(Duration::from_secs(5))
        .max_connections(10_000)
        // A client that closes its side is gone: what it waits for, or listens to, ends at once.
        .h1_allow_half_closed(false)
        .shutdown_timeout(2)
        .disable_signals()
        .bind(listen)?;
    Ok(server.run())
}

fn routes(config: &mut web::ServiceConfig) {
    let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
    let other =
        |allowed| web::to(move |request: HttpRequest| std::future::ready(method_not_allowed(&request, allowed)));
    config
        .service(web::resource("/v1/tasks").route(web::post().to(submit::submit)).default_service(other("POST")))
        .service(
            web::resource("/v1/tasks/{id}")
                .wrap(from_fn(lean::lean))
                .route(get().to(task::task))
                .default_service(other(READ)),
        )
        .service(web::resource("/v1/tasks/{id}/events").route(get().to(events::events)).default_service(other(READ)))
        .service(web::resource("/livez").route(get().to(health::livez)).default_service(other(READ)))
        .service(web::resource("/readyz").route(get().to(health::readyz)).default_service(other(READ)))
        .service(web::resource("/metrics").route(get().to(health::metrics)).default_service(other(READ)))
        .default_service(web::to(not_found));
}

/// The methods of what can only be read.
const READ: &str = "GET, HEAD";

async fn not_found(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::new(StatusCode::NOT_FOUND, "not-found", format!("there is nothing at {}", request.path())))
}

fn method_not_allowed(request: &HttpRequest, allowed: &'static str) -> HttpResponse {
    let detail = format!("{} is not for {}", request.method(), request.path());
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail);
    let mut answer = problem.error_response();
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}
