//! The problems that many endpoints answer with, described once.

use std::collections::BTreeMap;

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::api::problem::Problem;

/// The media type of every answer that is no success.
pub const PROBLEM: &str = "application/problem+json";

type Responses = BTreeMap<String, RefOr<Response>>;

fn problem(description: &str) -> ResponseBuilder {
    let schema = Ref::from_schema_name(Problem::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(description).content(PROBLEM, content)
}

fn problems(described: &[(u16, &str)]) -> Responses {
    described.iter().map(|(status, text)| (status.to_string(), problem(text).build().into())).collect()
}

fn busy(description: &str) -> Responses {
    [("503".to_owned(), problem(description).header("Retry-After", seconds()).build().into())].into()
}

fn seconds() -> Header {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).build();
    HeaderBuilder::new().schema(seconds).description(Some("Seconds")).build()
}

fn text(description: &str) -> Header {
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    HeaderBuilder::new().schema(text).description(Some(description)).build()
}

/// Of an endpoint that needs a key.
pub struct NoAccess;

impl IntoResponses for NoAccess {
    fn responses() -> Responses {
        let challenge = || text("`Bearer`, and what is wrong with the key");
        let none = problem("There is no key, or it is not known, or revoked");
        let little = problem("The key has another scope");
        [("401", none), ("403", little)]
            .map(|(status, answer)| (status.to_owned(), answer.header("WWW-Authenticate", challenge()).build().into()))
            .into()
    }
}

/// Of an endpoint that needs a key, which may have limits.
pub struct TooMuch;

impl IntoResponses for TooMuch {
    fn responses() -> Responses {
        let answer = problem("A limit of the key is reached: of its requests, its open tasks, or their bytes")
            .header("Retry-After", seconds())
            .header("RateLimit-Policy", text("The limits of the key"))
            .header("RateLimit", text("What is left of them"));
        [("429".to_owned(), answer.build().into())].into()
    }
}

/// Of an endpoint that reads a body, but for what may stand in it.
pub struct BadBody;

impl IntoResponses for BadBody {
    fn responses() -> Responses {
        problems(&[
            (408, "The body did not come in time"),
            (413, "The body is too large"),
            (415, "The body is of another content type, or compressed"),
        ])
    }
}

/// Of an endpoint that reads or writes the store.
pub struct NoStore;

impl IntoResponses for NoStore {
    fn responses() -> Responses {
        busy("The store, or what it may hold, has no room just now, or too many large answers are being read")
    }
}

/// Of an endpoint that needs no store and whose answer may be large.
pub struct NoRoom;

impl IntoResponses for NoRoom {
    fn responses() -> Responses {
        busy("Too many large answers are being read")
    }
}

/// Of an endpoint that takes batches in.
pub struct NoBatch;

impl IntoResponses for NoBatch {
    fn responses() -> Responses {
        busy("The store, or what it may hold, has no room just now, or too many batches come in at once")
    }
}

/// Of an endpoint that may wait for changes of a task.
pub struct NoWatch;

impl IntoResponses for NoWatch {
    fn responses() -> Responses {
        busy(
            "The store gives no tasks just now, too many clients wait for one, or too many large answers are being read",
        )
    }
}

/// Of an endpoint that reads a query.
pub struct BadQuery;

impl IntoResponses for BadQuery {
    fn responses() -> Responses {
        problems(&[(400, "Parameters are wrong, unknown or given twice: `parameters` names each")])
    }
}

/// Of an endpoint of one queue.
pub struct NoQueue;

impl IntoResponses for NoQueue {
    fn responses() -> Responses {
        problems(&[(404, "This producer has no queue of this name")])
    }
}

/// Of an endpoint of one dead letter.
pub struct NoLetter;

impl IntoResponses for NoLetter {
    fn responses() -> Responses {
        problems(&[(
            404,
            "No dead letter has this id: its task was never given up, or was replayed, dismissed or forgotten",
        )])
    }
}

/// Of an endpoint of one task.
pub struct NoTask;

impl IntoResponses for NoTask {
    fn responses() -> Responses {
        problems(&[(404, "No task with this id is kept: it was never accepted, or was forgotten since")])
    }
}
