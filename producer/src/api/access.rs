//! Who may use which route: one table, from which every request is checked before its body is read, and which the
//! document shows. What is not in it is for `admin`.

use std::future::{Ready, ready};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, ResponseError, web};

use super::problem::Problem;
use crate::key::Scope;
use crate::keyring::{Caller, Keyring, Refusal};

/// What a route asks of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Open,
    /// A key with this scope, or `admin`.
    Needs(Scope),
}

use Access::{Needs, Open};
use Scope::{Admin, Read, Submit};

/// Method, path and what it asks for. HEAD is as good as GET.
const TABLE: &[(&str, &str, Access)] = &[
    ("POST", "/v1/tasks", Needs(Submit)),
    ("POST", "/v1/tasks/batch", Needs(Submit)),
    ("GET", "/v1/tasks", Needs(Read)),
    ("GET", "/v1/tasks/{id}", Needs(Read)),
    ("GET", "/v1/tasks/{id}/events", Needs(Read)),
    ("GET", "/v1/tasks/{id}/attempts", Needs(Read)),
    ("POST", "/v1/tasks/{id}/revoke", Needs(Submit)),
    ("DELETE", "/v1/tasks/{id}", Needs(Submit)),
    ("GET", "/v1/queues", Needs(Admin)),
    ("GET", "/v1/queues/{queue}", Needs(Admin)),
    ("POST", "/v1/queues/{queue}/pause", Needs(Admin)),
    ("POST", "/v1/queues/{queue}/resume", Needs(Admin)),
    ("POST", "/v1/queues/{queue}/purge", Needs(Admin)),
    ("GET", "/v1/workers", Needs(Admin)),
    ("GET", "/v1/task-types", Needs(Read)),
    ("GET", "/v1/stats", Needs(Admin)),
    ("GET", "/metrics", Needs(Admin)),
    ("GET", "/livez", Open),
    ("GET", "/readyz", Open),
    ("GET", "/openapi.json", Open),
    ("GET", "/docs", Open),
];

/// What a request asks of its caller.
pub fn access(method: &Method, path: &str) -> Access {
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    let row = TABLE.iter().find(|(of, route, _)| *of == method && stands_for(route, path));
    row.map_or(Needs(Admin), |(.., access)| *access)
}

/// Whether a path is one of a route's, in which `{id}` is any one segment.
fn stands_for(route: &str, path: &str) -> bool {
    let (mut route, mut path) = (route.split('/'), path.split('/'));
    loop {
        match (route.next(), path.next()) {
            (None, None) => return true,
            (Some(of), Some(segment)) if of == segment || of.starts_with('{') => {}
            _ => return false,
        }
    }
}

/// Lets a request through to its endpoint, which finds the [`Caller`] in it, or answers 401 or 403.
pub async fn check<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match admit(&request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.call(request).await.map(ServiceResponse::map_into_boxed_body)
        }
        Err(answer) => Ok(request.into_response(answer)),
    }
}

fn admit(request: &ServiceRequest) -> Result<Caller, actix_web::HttpResponse> {
    let access = access(request.method(), request.match_info().as_str());
    let Needs(scope) = access else { return Ok(Caller::anonymous()) };
    let keyring = request.app_data::<web::Data<Keyring>>();
    let mut given = request.headers().get_all(AUTHORIZATION);
    let (first, second) = (given.next(), given.next());
    let caller = match keyring {
        Some(keyring) if second.is_none() => keyring.caller(first.map(HeaderValue::as_bytes)),
        _ => Err(Refusal::BadKey),
    };
    match caller {
        Ok(caller) if caller.may(scope) => Ok(caller),
        Ok(_) => {
            let detail = format!("this needs a key with the scope {scope}");
            Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).error_response())
        }
        Err(refusal) => Err(unauthorized(refusal)),
    }
}

/// As in RFC 6750: `error` only where there was a key.
fn unauthorized(refusal: Refusal) -> actix_web::HttpResponse {
    let (challenge, detail) = match refusal {
        Refusal::NoKey => ("Bearer", "this needs a key: Authorization: Bearer errand_..."),
        Refusal::BadKey => ("Bearer error=\"invalid_token\"", "the key is none, not known, or revoked"),
    };
    let mut answer = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).error_response();
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    answer
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let unchecked = || Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the caller was not checked");
        ready(request.extensions().get::<Self>().cloned().ok_or_else(unchecked))
    }
}
