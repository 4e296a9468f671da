//! Who may use which route: one table, from which every request is checked before its body is read, and which the
//! document shows. What is not in it is for `admin`.

use std::future::{Ready, ready};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError, web};

use super::problem::Problem;
use super::quota;
use crate::key::Scope;
use crate::keyring::{Caller, Keyring, Refusal};
use crate::rate::Left;

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
pub const TABLE: &[(&str, &str, Access)] = &[
    ("POST", "/v1/tasks", Needs(Submit)),
    ("POST", "/v1/tasks/batch", Needs(Submit)),
    ("GET", "/v1/tasks", Needs(Read)),
    ("GET", "/v1/tasks/{id}", Needs(Read)),
    ("GET", "/v1/tasks/{id}/events", Needs(Read)),
    ("GET", "/v1/tasks/{id}/attempts", Needs(Read)),
    ("POST", "/v1/tasks/{id}/revoke", Needs(Submit)),
    ("DELETE", "/v1/tasks/{id}", Needs(Submit)),
    ("POST", "/v1/tasks/{id}/retry", Needs(Submit)),
    ("GET", "/v1/dead-letters", Needs(Read)),
    ("POST", "/v1/dead-letters/replay", Needs(Submit)),
    ("GET", "/v1/dead-letters/{id}", Needs(Read)),
    ("DELETE", "/v1/dead-letters/{id}", Needs(Submit)),
    ("POST", "/v1/dead-letters/{id}/replay", Needs(Submit)),
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
    let (caller, needs) = match admit(&request) {
        Ok(admitted) => admitted,
        Err(refusal) => return Ok(request.into_response(unauthorized(refusal))),
    };
    let (limits, left) = (caller.limits(), caller.take());
    let refused = match (left, needs) {
        (Some(Left::Nothing(wait)), _) => Some(quota::too_many(wait)),
        (_, Needs(scope)) if !caller.may(scope) => Some(forbidden(scope)),
        _ => None,
    };
    let mut answer = if let Some(refused) = refused {
        request.into_response(refused)
    } else {
        request.extensions_mut().insert(caller);
        next.call(request).await?.map_into_boxed_body()
    };
    quota::say(answer.headers_mut(), limits, left);
    Ok(answer)
}

/// Who calls, and what that takes. Nobody is asked for where anybody may call.
fn admit(request: &ServiceRequest) -> Result<(Caller, Access), Refusal> {
    let access = access(request.method(), request.match_info().as_str());
    if access == Open {
        return Ok((Caller::anonymous(), access));
    }
    let keyring = request.app_data::<web::Data<Keyring>>();
    let mut given = request.headers().get_all(AUTHORIZATION);
    let (first, second) = (given.next(), given.next());
    let caller = match keyring {
        Some(keyring) if second.is_none() => keyring.caller(first.map(HeaderValue::as_bytes))?,
        _ => return Err(Refusal::BadKey),
    };
    Ok((caller, access))
}

/// As in RFC 6750, section 3.1.
fn forbidden(scope: Scope) -> HttpResponse {
    let detail = format!("this needs a key with the scope {scope}");
    let mut answer = Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).error_response();
    let challenge = HeaderValue::from_str(&format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\""));
    if let Ok(challenge) = challenge {
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    answer
}

/// As in RFC 6750: `error` only where there was a key.
fn unauthorized(refusal: Refusal) -> HttpResponse {
    match refusal {
        Refusal::NoKey => {
            let detail = "this needs a key: Authorization: Bearer errand_...";
            Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).error_response()
        }
        Refusal::BadKey => {
            let mut answer = Problem::revoked_key().error_response();
            let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            answer
        }
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let unchecked = || Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the caller was not checked");
        ready(request.extensions().get::<Self>().cloned().ok_or_else(unchecked))
    }
}
