//! Errors as RFC 9457 `application/problem+json`.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use super::quota::{Policy, RATE_LIMIT};
use crate::store::{Excess, StoreError};

/// Seconds after which a client may try again when the store or the outbox has no room.
const RETRY_AFTER_S: &str = "5";

/// A field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) to it.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// A parameter of the query that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ParameterError {
    /// Its name.
    pub parameter: String,
    /// What is wrong with it.
    pub detail: String,
}

/// An answer that is no success, as in RFC 9457.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:errand:problem:` and what it is, for programs.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    /// What happened, for people.
    detail: String,
    /// The bad fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// The bad parameters of the query.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parameters: Vec<ParameterError>,
    /// The limit of the caller's key that it is beyond.
    #[serde(skip)]
    exhausted: Option<Policy>,
}

impl Problem {
    /// A problem whose `type` ends in `kind`.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:errand:problem:{kind}"),
            title: status.canonical_reason().unwrap_or("error"),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            parameters: Vec::new(),
            exhausted: None,
        }
    }

    /// 422 with every bad field.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let named: Vec<&str> = errors.iter().map(|error| error.pointer.as_str()).collect();
        let detail = format!("not a task: see {}", named.join(", "));
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-task", detail) }
    }

    /// 422 with every bad field of a replay's body.
    pub fn edit(errors: Vec<FieldError>) -> Self {
        let detail = "the task cannot be replayed with this body; nothing changed";
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-edit", detail) }
    }

    /// 422 with every bad field of a batch, of which nothing was stored.
    pub fn batch(errors: Vec<FieldError>, detail: impl Into<String>) -> Self {
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-batch", detail) }
    }

    /// 400 with every bad parameter of the query.
    pub fn parameters(parameters: Vec<ParameterError>) -> Self {
        let named: Vec<&str> = parameters.iter().map(|bad| bad.parameter.as_str()).collect();
        let detail = format!("the query cannot be used: see {}", named.join(", "));
        Self { parameters, ..Self::new(StatusCode::BAD_REQUEST, "invalid-parameters", detail) }
    }

    /// 401 for a key that is none, not known, or revoked.
    pub fn revoked_key() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "the key is none, not known, or revoked")
    }

    /// 404 for an id that was never accepted or whose result has expired.
    pub fn unknown_task() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown-task", "no task with this id is kept")
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let status = self.status_code();
        let mut answer = HttpResponse::build(status);
        if status == StatusCode::UNAUTHORIZED {
            answer.insert_header((WWW_AUTHENTICATE, "Bearer"));
        }
        if let Some(policy) = self.exhausted {
            answer.insert_header((RATE_LIMIT, format!("{policy};r=0")));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE || self.exhausted.is_some() {
            answer.insert_header((RETRY_AFTER, RETRY_AFTER_S));
        }
        let body = serde_json::to_vec(self).unwrap_or_default();
        answer.insert_header((CONTENT_TYPE, "application/problem+json")).body(body)
    }
}

impl From<Excess> for Problem {
    fn from(excess: Excess) -> Self {
        let detail = format!("the task {excess}; nothing was accepted");
        let exhausted = match excess {
            Excess::OpenTasks(_) => Policy::OpenTasks,
            Excess::WaitingBytes(_) => Policy::WaitingBytes,
        };
        Self { exhausted: Some(exhausted), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "limit-reached", detail) }
    }
}

impl From<StoreError> for Problem {
    /// The client learns that it failed, the log learns why.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Taken => Self {
                errors: vec![FieldError {
                    pointer: "/task_id".to_owned(),
                    detail: "is taken by another task".to_owned(),
                }],
                ..Self::new(StatusCode::CONFLICT, "task-id-taken", "a task with this id exists")
            },
            StoreError::Beyond(excess) => excess.into(),
            StoreError::KeyReused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "something else was submitted under this Idempotency-Key; nothing was accepted",
            ),
            StoreError::Full => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store-unavailable",
                "the store's disk is full: tasks are read, ended and deleted, and none is accepted",
            ),
            StoreError::Database(_) | StoreError::Slow | StoreError::Closed => {
                tracing::error!(%error, "a request failed at the store");
                let detail = "the store does not take or give tasks just now";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", detail)
            }
        }
    }
}
