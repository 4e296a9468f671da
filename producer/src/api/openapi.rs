//! `GET /openapi.json` and `GET /docs`: what the API is, put together from what stands beside each endpoint.
//!
//! An endpoint that is a route and not in [`Document`], or the other way round, fails a test.

pub mod answers;
pub mod parameters;
pub mod schemas;
mod security;

use actix_web::http::header::{CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use actix_web::{HttpResponse, web};
use utoipa::OpenApi;

use self::security::Keys;
use super::{
    attempts, batch, catalog, dead_letters, depth, events, forget, health, list, pause, retry, revoke, stats, submit,
    task,
};

/// Every endpoint. Schemas follow from what these name.
#[derive(OpenApi)]
#[openapi(
    modifiers(&Keys),
    info(
        title = "Errand",
        description = "Accepts tasks, keeps them until they have ended, and says how they are. Every answer that is \
            no success is a problem as in RFC 9457. Any path may also be asked with HEAD where GET is allowed; another \
            method is answered 405 with `Allow`. A key is needed where the producer knows any: a caller sees the tasks \
            of its own key only, unless that has the scope `admin`. What a running task submits is its key's too. \
            Whatever the path, what is no HTTP is answered 400, a head of more than \
            95 headers or 128 KiB 431, and one that does not come within 15 s 408; each ends the connection, as do 5 s \
            without a request and a client that takes longer than 20 s to read 64 KiB of its answer. An answer to GET \
            larger than 64 KiB may be 503 while too many such are being read, and one to another method may then be a \
            problem of the type `answer-omitted` with the status and the headers of the answer: it was done."
    ),
    servers((url = "/")),
    paths(
        submit::submit,
        batch::batch,
        list::list,
        task::task,
        events::events,
        attempts::attempts,
        revoke::revoke,
        retry::retry,
        forget::forget,
        dead_letters::letters,
        dead_letters::letter,
        retry::replay,
        dead_letters::bulk::replay,
        dead_letters::dismiss,
        depth::queues,
        depth::queue,
        pause::pause,
        pause::resume,
        pause::purge,
        stats::stats,
        catalog::workers,
        catalog::task_types,
        health::livez,
        health::readyz,
        health::metrics,
        openapi,
        docs,
    ),
    tags(
        (name = "tasks", description = "Submit tasks and follow them"),
        (name = "dead letters", description = "Tasks that were given up"),
        (name = "queues", description = "Where tasks wait"),
        (name = "service", description = "The producer itself"),
    ),
)]
struct Document;

/// The document's JSON, made once.
#[derive(Clone)]
pub struct Rendered(web::Bytes);

impl Rendered {
    /// Puts the document together.
    ///
    /// # Errors
    /// Never for the types here; serialising is fallible by type only.
    pub fn new() -> serde_json::Result<Self> {
        Ok(Self(web::Bytes::from(serde_json::to_vec(&Document::openapi())?)))
    }
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "service", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
pub async fn openapi(document: web::Data<Rendered>) -> HttpResponse {
    let mut answer = HttpResponse::Ok().content_type("application/json").body(document.0.clone());
    answer.extensions_mut().insert(super::server::Shared);
    answer
}

const PAGE: &str = include_str!("openapi/page.html");
/// What the page may do: run what is in it, and read the document. Each answer has its own nonce.
const POLICY: &str =
    "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// This document as a page
#[utoipa::path(get, path = "/docs", tag = "service", responses(
    (status = 200, description = "A page that needs nothing from elsewhere", body = String, content_type = "text/html",
        headers(("Content-Security-Policy" = String, description = "Nothing from elsewhere is loaded"))),
))]
pub async fn docs() -> HttpResponse {
    let nonce = uuid::Uuid::now_v7().simple().to_string();
    let policy = format!("{POLICY}; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'");
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((CONTENT_SECURITY_POLICY, policy))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(PAGE.replace("{nonce}", &nonce))
}

#[cfg(test)]
mod tests;
