//! Queries and request headers, from the constants that they are checked with. All may be left out.

use serde_json::{Value, json};
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};

use super::schemas::{TASK_NAME, schema};
use crate::api::dead_letters::MAX_ERROR_TYPE_BYTES;
use crate::api::dead_letters::bulk::{LEAST_RATE, MAX_RATE};
use crate::api::idempotency::MAX_KEY_BYTES;
use crate::api::list::{MAX_LIMIT, USUAL_LIMIT};
use crate::api::prefer::LONGEST_S;
use crate::rules;

fn parameter(place: ParameterIn, name: &str, description: &str, json: Value) -> Parameter {
    let parameter = ParameterBuilder::new().name(name).parameter_in(place).description(Some(description));
    parameter.schema(Some(schema(json))).build()
}

fn query(name: &str, description: &str, json: Value) -> Parameter {
    parameter(ParameterIn::Query, name, description, json)
}

fn header(name: &str, description: &str, json: Value) -> Vec<Parameter> {
    vec![parameter(ParameterIn::Header, name, description, json)]
}

/// The query of a list.
pub struct ListQuery;

impl IntoParams for ListQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let states = protocol::state::State::ALL.map(protocol::state::State::name);
        let cursor = json!({"type": "string", "pattern": "^1[0-9A-Fa-f]{1,16}$"});
        let name = json!({
            "type": "string", "minLength": 1, "maxLength": rules::MAX_TASK_BYTES, "pattern": TASK_NAME,
        });
        let limit = json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": USUAL_LIMIT});
        vec![
            query(
                "state",
                "In one of these states: given several times, or once with commas",
                json!({"type": "array", "items": {"type": "string", "enum": states}}),
            ),
            query("task", "Of this name", name),
            query(
                "queue",
                "In this queue",
                json!({"type": "string", "minLength": 1, "maxLength": rules::MAX_QUEUE_BYTES}),
            ),
            query("since", "Accepted at this time or later", json!({"type": "string", "format": "date-time"})),
            query("cursor", "The `next_cursor` of the page before", cursor),
            query("limit", "Tasks of a page, at most", limit),
        ]
    }
}

/// What dead letters are chosen by.
pub struct LetterQuery;

impl IntoParams for LetterQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = |most: usize| json!({"type": "string", "minLength": 1, "maxLength": most});
        let time = || json!({"type": "string", "format": "date-time"});
        vec![
            query("task", "Of tasks of this name", text(rules::MAX_TASK_BYTES)),
            query("queue", "Of tasks in this queue", json!({"type": "string"})),
            query("error_type", "With an error of this type", text(MAX_ERROR_TYPE_BYTES)),
            query("since", "Given up at this time or later", time()),
            query("until", "Given up at this time or before", time()),
        ]
    }
}

/// The page of a list of dead letters.
pub struct LetterPage;

impl IntoParams for LetterPage {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let cursor = json!({"type": "string", "pattern": "^1[0-9A-Fa-f]{1,15}-[0-9A-Fa-f]{1,15}$"});
        let limit = json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": USUAL_LIMIT});
        vec![
            query("cursor", "The `next_cursor` of the page before", cursor),
            query("limit", "Dead letters of a page, at most", limit),
        ]
    }
}

/// How many dead letters are replayed.
pub struct PaceQuery;

impl IntoParams for PaceQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let flag = json!({"type": "boolean", "default": false});
        let rate = json!({"type": "number", "minimum": LEAST_RATE, "maximum": MAX_RATE});
        vec![
            query("dry_run", "Whether they are only counted", flag),
            query("rate", "Tasks a second that become due; all are at once without it", rate),
        ]
    }
}

/// The query of a replay.
pub struct EditQuery;

impl IntoParams for EditQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let flag = json!({"type": "boolean", "default": false});
        vec![query("edit", "Whether the body changes what the task is called with", flag)]
    }
}

/// The query of a batch.
pub struct BatchQuery;

impl IntoParams for BatchQuery {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let description = "Whether the tasks that can be accepted are, when others cannot";
        vec![query("partial", description, json!({"type": "boolean", "default": false}))]
    }
}

/// `Idempotency-Key`.
pub struct Key;

impl IntoParams for Key {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let key = json!({"type": "string", "pattern": format!("^[!-~]{{1,{MAX_KEY_BYTES}}}$")});
        header("Idempotency-Key", "The same at each repetition of one submit, which is accepted once", key)
    }
}

/// `Prefer`.
pub struct Patience;

impl IntoParams for Patience {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let description = format!(
            "`wait=N`: answer when the task has ended, after N seconds at the latest, 1 to {LONGEST_S}. What cannot be \
             honoured is ignored."
        );
        header("Prefer", &description, json!({"type": "string", "example": "wait=10"}))
    }
}

/// `If-None-Match`.
pub struct SeenTag;

impl IntoParams for SeenTag {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        header("If-None-Match", "The `ETag` that the client has", json!({"type": "string"}))
    }
}

/// `Last-Event-ID`.
pub struct LastEvent;

impl IntoParams for LastEvent {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        header("Last-Event-ID", "The `id` of the last event that arrived", json!({"type": "string"}))
    }
}
