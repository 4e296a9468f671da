//! The HTTP API. One file an endpoint; every answer that is no success is a [`Problem`].
//!
//! Nothing on the path of a submit waits for the broker.

mod access;
mod arguments;
mod attempts;
mod batch;
mod body;
mod callback;
mod catalog;
mod dead_letters;
mod depth;
mod events;
mod fields;
mod forget;
mod health;
mod idempotency;
mod lean;
mod list;
mod openapi;
mod pause;
mod prefer;
mod problem;
mod query;
mod quota;
mod retry;
mod revoke;
mod server;
mod shown;
mod stats;
mod submit;
mod task;
mod view;
mod wait;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::middleware::from_fn;
use actix_web::{HttpRequest, HttpResponse, ResponseError, guard, web};
use metrics_exporter_prometheus::PrometheusHandle;
use protocol::amqp::Link;
use protocol::timestamp::now_ms;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[cfg(test)]
pub use self::fields::parse;
use self::problem::Problem;
pub use self::server::server;
pub use self::view::{TaskView, time};
use crate::reason::{Line, reason};
use crate::relay::Route;
use crate::rules::Limits;
use crate::store::{NewTask, Store, TaskRow};
use crate::workers::Workers;

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
    /// The queues that are relayed.
    pub queues: Vec<Route>,
    /// Whether only tasks that a worker has announced are accepted.
    pub require_known_tasks: bool,
    /// Due and unfinished rows, at most.
    pub outbox_cap: u64,
    /// Cancelled when the process is about to end.
    pub stopping: CancellationToken,
}

impl Api {
    /// The task as the API shows it.
    fn view(&self, row: &TaskRow) -> view::TaskView {
        let NewTask { queue, task, .. } = &row.accepted;
        let line = Line {
            service: self.workers.service(queue, task),
            paused: self.store.paused_at(queue).is_some(),
            foreign: self.route(queue).is_some_and(|route| route.foreign),
        };
        let reason = reason(row, &self.link.borrow(), line, now_ms());
        let own = self.workers.retry(&row.accepted.task).unwrap_or_default();
        view::TaskView::new(row, own, reason)
    }

    fn route(&self, queue: &str) -> Option<&Route> {
        self.queues.iter().find(|route| route.queue == queue)
    }

    /// A queue of this producer, or 404.
    fn known_queue(&self, queue: &str) -> Result<&Route, Problem> {
        self.route(queue).ok_or_else(|| {
            let queues: Vec<&str> = self.queues.iter().map(|route| route.queue.as_str()).collect();
            let detail = format!("the queues of this producer are {}", queues.join(", "));
            Problem::new(StatusCode::NOT_FOUND, "unknown-queue", detail)
        })
    }
}

fn routes(config: &mut web::ServiceConfig) {
    let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
    let other =
        |allowed| web::to(move |request: HttpRequest| std::future::ready(method_not_allowed(&request, allowed)));
    config
        // In the order of their use: each one ahead costs a match.
        .service(
            web::resource("/v1/tasks")
                .route(web::post().to(submit::submit))
                .route(get().to(list::list))
                .default_service(other("GET, HEAD, POST")),
        )
        .service(
            // A client may have chosen `batch` as an id: what it asks of that goes on to the next resource.
            web::resource("/v1/tasks/batch")
                .guard(guard::Not(guard::Any(guard::Get()).or(guard::Head()).or(guard::Delete())))
                .route(web::post().to(batch::batch))
                .default_service(other("POST")),
        )
        .service(
            web::resource("/v1/tasks/{id}")
                .wrap(from_fn(lean::lean))
                .route(get().to(task::task))
                .route(web::delete().to(forget::forget))
                .default_service(other("GET, HEAD, DELETE")),
        )
        .service(
            web::resource("/v1/tasks/{id}/revoke").route(web::post().to(revoke::revoke)).default_service(other("POST")),
        )
        .service(
            web::resource("/v1/tasks/{id}/retry").route(web::post().to(retry::retry)).default_service(other("POST")),
        )
        .configure(dead_letter_routes)
        .service(
            web::resource("/v1/queues/{queue}/pause")
                .route(web::post().to(pause::pause))
                .default_service(other("POST")),
        )
        .service(
            web::resource("/v1/queues/{queue}/resume")
                .route(web::post().to(pause::resume))
                .default_service(other("POST")),
        )
        .service(
            web::resource("/v1/queues/{queue}/purge")
                .route(web::post().to(pause::purge))
                .default_service(other("POST")),
        )
        .service(
            web::resource("/v1/tasks/{id}/attempts").route(get().to(attempts::attempts)).default_service(other(READ)),
        )
        .service(web::resource("/v1/stats").route(get().to(stats::stats)).default_service(other(READ)))
        .service(web::resource("/v1/tasks/{id}/events").route(get().to(events::events)).default_service(other(READ)))
        .service(web::resource("/livez").route(get().to(health::livez)).default_service(other(READ)))
        .service(web::resource("/readyz").route(get().to(health::readyz)).default_service(other(READ)))
        .service(web::resource("/metrics").route(get().to(health::metrics)).default_service(other(READ)))
        .service(web::resource("/v1/queues").route(get().to(depth::queues)).default_service(other(READ)))
        .service(web::resource("/v1/queues/{queue}").route(get().to(depth::queue)).default_service(other(READ)))
        .service(web::resource("/v1/workers").route(get().to(catalog::workers)).default_service(other(READ)))
        .service(web::resource("/v1/task-types").route(get().to(catalog::task_types)).default_service(other(READ)))
        .service(web::resource("/openapi.json").route(get().to(openapi::openapi)).default_service(other(READ)))
        .service(web::resource("/docs").route(get().to(openapi::docs)).default_service(other(READ)))
        .default_service(web::to(not_found));
}

fn dead_letter_routes(config: &mut web::ServiceConfig) {
    let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
    let other =
        |allowed| web::to(move |request: HttpRequest| std::future::ready(method_not_allowed(&request, allowed)));
    config
        .service(web::resource("/v1/dead-letters").route(get().to(dead_letters::letters)).default_service(other(READ)))
        .service(
            // A client may have chosen `replay` as an id, as above.
            web::resource("/v1/dead-letters/replay")
                .guard(guard::Not(guard::Any(guard::Get()).or(guard::Head()).or(guard::Delete())))
                .route(web::post().to(dead_letters::bulk::replay))
                .default_service(other("POST")),
        )
        .service(
            web::resource("/v1/dead-letters/{id}")
                .route(get().to(dead_letters::letter))
                .route(web::delete().to(dead_letters::dismiss))
                .default_service(other("GET, HEAD, DELETE")),
        )
        .service(
            web::resource("/v1/dead-letters/{id}/replay")
                .route(web::post().to(retry::replay))
                .default_service(other("POST")),
        );
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
