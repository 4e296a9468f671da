//! Schemas of what is not written as a type, from the constants that it is checked with.

use protocol::state::State;
use serde_json::{Value, json};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::api::batch::MAX_TASKS;
use crate::api::fields::ENDS;
use crate::callbacks::receivers::MAX_URL_BYTES;
use crate::rules;

/// A schema that is written as JSON. One that is none describes nothing, which a test would see.
pub fn schema(json: Value) -> RefOr<Schema> {
    serde_json::from_value(json).unwrap_or_else(|_| Schema::default().into())
}

/// The body of a submit; `api/fields.rs` reads it.
pub struct Submission;

impl ToSchema for Submission {}

impl PartialSchema for Submission {
    fn schema() -> RefOr<Schema> {
        let limit = |text: &str| {
            let least = rules::LEAST_SECONDS;
            json!({"type": ["number", "null"], "minimum": least, "maximum": rules::MAX_SECONDS, "description": text})
        };
        let wait = json!({"type": "number", "minimum": 0, "maximum": rules::MAX_BACKOFF_S});
        schema(json!({
            "type": "object",
            "description": "A task to run. A null is as good as nothing.",
            "required": ["task"],
            "additionalProperties": false,
            "properties": {
                "task": {
                    "type": "string", "minLength": 1, "maxLength": rules::MAX_TASK_BYTES, "pattern": TASK_NAME,
                    "description": "Its name, at most 200 bytes",
                },
                "args": {"type": ["array", "null"], "description": "Arguments by position"},
                "kwargs": {"type": ["object", "null"], "description": "Arguments by name"},
                "queue": {"type": ["string", "null"], "description": "One of the producer's QUEUES"},
                "priority": {
                    "type": ["integer", "null"], "minimum": 0, "maximum": rules::MAX_PRIORITY,
                    "description": "Higher goes first",
                },
                "countdown": {
                    "type": ["number", "null"], "minimum": 0, "maximum": rules::MAX_SECONDS,
                    "description": "Seconds to wait before it may run; excludes `eta`",
                },
                "eta": {
                    "type": ["string", "null"], "format": "date-time", "description": "Not before; excludes `countdown`",
                },
                "expires": {
                    "type": ["number", "string", "null"], "minimum": rules::LEAST_SECONDS,
                    "maximum": rules::MAX_SECONDS, "format": "date-time",
                    "description": "Seconds from now, or a time, after which it is REVOKED unless it has started",
                },
                "time_limit": limit("Seconds that an attempt may take, at most the producer's MAX_TIME_LIMIT"),
                "soft_time_limit": limit("Seconds after which an attempt is asked to end, at most `time_limit`"),
                "task_id": {
                    "type": ["string", "null"], "pattern": TASK_ID, "description": "An id of one's own choice",
                },
                "callback": callback(),
                "retry": {
                    "type": ["object", "null"],
                    "description": "How failed attempts are retried, where it differs from the task's own way",
                    "additionalProperties": false,
                    "properties": {
                        "max_retries": {"type": "integer", "minimum": 0, "maximum": rules::MAX_RETRIES},
                        "backoff": wait,
                        "backoff_max": wait,
                        "jitter": {"type": "boolean"},
                    },
                },
            },
        }))
    }
}

/// Where a task's end is posted.
fn callback() -> Value {
    json!({
        "type": ["object", "null"],
        "description": "Where its end is posted, as a signed message of Standard Webhooks: `task.succeeded`, \
            `task.failed` or `task.revoked`, with the task as `data`. Members of more than 64 KiB are null and \
            named in its `omitted`",
        "required": ["url"],
        "additionalProperties": false,
        "properties": {
            "url": {
                "type": "string", "maxLength": MAX_URL_BYTES, "pattern": "^https?://[!-~]*$",
                "description": "https; or http to hosts and networks of the producer's CALLBACK_ALLOW",
            },
            "events": {
                "type": ["array", "null"], "minItems": 1, "uniqueItems": true,
                "items": {"enum": ENDS.map(State::name)},
                "description": "The ends that are posted, all of them when nothing is said",
            },
        },
    })
}

/// The body of a replay that edits; `api/fields/edit.rs` reads it.
pub struct Edited;

impl ToSchema for Edited {}

impl PartialSchema for Edited {
    fn schema() -> RefOr<Schema> {
        schema(json!({
            "type": "object",
            "description": "What the task is called with from now on; what is not named stays",
            "additionalProperties": false,
            "properties": {
                "args": {"type": ["array", "null"], "description": "Arguments by position"},
                "kwargs": {"type": ["object", "null"], "description": "Arguments by name"},
            },
        }))
    }
}

/// The body of a batch as JSON.
pub struct Submissions;

impl ToSchema for Submissions {}

impl PartialSchema for Submissions {
    fn schema() -> RefOr<Schema> {
        schema(json!({
            "type": "array", "minItems": 1, "maxItems": MAX_TASKS,
            "items": {"$ref": format!("#/components/schemas/{}", Submission::name())},
        }))
    }
}

/// The body of a batch as NDJSON.
pub struct Lines;

impl ToSchema for Lines {}

impl PartialSchema for Lines {
    fn schema() -> RefOr<Schema> {
        schema(json!({"type": "string", "description": "One task a line"}))
    }
}

/// What [`rules::task_name`] accepts, its length apart.
pub const TASK_NAME: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$";

/// What [`rules::task_id`] accepts.
pub const TASK_ID: &str = "^[A-Za-z0-9_-]{1,64}$";

/// A task's id in a path.
pub struct TaskId;

impl ToSchema for TaskId {}

impl PartialSchema for TaskId {
    fn schema() -> RefOr<Schema> {
        schema(json!({"type": "string", "pattern": TASK_ID}))
    }
}

/// A queue's name in a path.
pub struct QueueName;

impl ToSchema for QueueName {}

impl PartialSchema for QueueName {
    fn schema() -> RefOr<Schema> {
        schema(json!({"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"}))
    }
}

/// A [`protocol::heartbeat::RunningTask`].
pub struct Runs;

impl ToSchema for Runs {}

impl PartialSchema for Runs {
    fn schema() -> RefOr<Schema> {
        schema(json!({
            "type": "object",
            "required": ["task_id", "retries"],
            "properties": {
                "task_id": {"type": "string"},
                "retries": {"type": "integer", "minimum": 0, "description": "The attempt, from 0"},
            },
        }))
    }
}

/// A state, in Celery's words.
pub struct StateName;

impl ToSchema for StateName {}

impl PartialSchema for StateName {
    fn schema() -> RefOr<Schema> {
        let names = State::ALL.map(State::name);
        schema(json!({"type": "string", "enum": names}))
    }
}

/// A [`protocol::reply::ErrorInfo`].
pub struct ErrorView;

impl ToSchema for ErrorView {}

impl PartialSchema for ErrorView {
    fn schema() -> RefOr<Schema> {
        schema(json!({
            "type": "object",
            "required": ["type", "message", "traceback"],
            "properties": {
                "type": {"type": "string", "description": "A bare name, like `TimeLimitExceeded`"},
                "message": {"type": "string"},
                "traceback": {"type": ["string", "null"]},
            },
        }))
    }
}

/// Any JSON.
pub struct Any;

impl ToSchema for Any {}

impl PartialSchema for Any {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some("Any JSON")).into()
    }
}
