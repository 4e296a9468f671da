//! The strict writer: exactly what a stock client reads, and keys of ours beside it, which it ignores.

use serde::{Serialize, Serializer};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;

use super::{Child, ErrorInfo, PROGRESS, Reply, Report, bare_name, never_empty};
use crate::message::{CONTENT_ENCODING, CONTENT_TYPE, Message, Properties};
use crate::timestamp;

/// The body, in Celery's order of keys.
#[derive(Serialize)]
struct Body<'a> {
    status: &'a str,
    result: Box<RawValue>,
    traceback: Option<&'a str>,
    children: &'a [Child],
    date_done: Option<String>,
    task_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta: Option<String>,
}

/// An exception as Celery's JSON result backends write it.
#[derive(Serialize)]
struct Exception<'a> {
    #[serde(rename = "exc_type")]
    kind: &'a str,
    #[serde(rename = "exc_message")]
    args: [String; 1],
    /// Where a stock client looks for the class. Without it the client makes one of that name, and never anything
    /// else that a module may hold under it.
    #[serde(rename = "exc_module", skip_serializing_if = "Option::is_none")]
    module: Option<&'static str>,
}

impl Reply {
    /// The result message, to be published to the request's `reply_to` through the default exchange. `correlation_id`
    /// is the request's. The state of a [`Report::Custom`] goes out as it is.
    #[must_use]
    pub fn encode(&self, correlation_id: &str, persistent: bool) -> Message {
        let properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            content_encoding: Some(CONTENT_ENCODING.to_owned()),
            persistent,
            priority: Some(0),
            correlation_id: Some(correlation_id.to_owned()),
            ..Properties::default()
        };
        // Strings, numbers and raw JSON: serde_json fails on none of them.
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        Message { properties, body }
    }

    fn body(&self) -> Body<'_> {
        let (status, result) = self.status_and_result();
        Body {
            status,
            result,
            traceback: self.report.error().and_then(|error| error.traceback.as_deref()),
            children: &self.children,
            date_done: self.date_done.map(timestamp::celery),
            task_id: &self.task_id,
            group_id: self.group_id.as_deref(),
            parent_id: self.parent_id.as_deref(),
            worker: self.worker.as_deref(),
            retries: self.retries,
            seq: self.seq,
            since: self.since,
            held_ms: self.held_ms,
            started_at: self.started_at.map(timestamp::celery),
            eta: self.report.eta().map(timestamp::celery),
        }
    }

    fn status_and_result(&self) -> (&str, Box<RawValue>) {
        let result = match &self.report {
            Report::Started => raw(&json!({"pid": std::process::id(), "hostname": self.worker})),
            Report::Progress(progress) => return (PROGRESS, raw(progress)),
            Report::Custom { state, meta } => return (state, meta.clone()),
            Report::Success(result) => result.clone(),
            Report::Retry { error, .. } | Report::Failure(error) => raw(&exception(&error.kind, &error.message)),
            Report::Revoked { reason } => raw(&exception("TaskRevokedError", &never_empty(reason.clone(), "revoked"))),
        };
        (self.report.state().name(), result)
    }
}

impl Serialize for Child {
    /// As Celery's results do: `[[id, parent], members]`, and the parent is known from the result that it stands in.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Task(id) => ((id, ()), ()).serialize(serializer),
            Self::Group(id, members) => ((id, ()), members).serialize(serializer),
        }
    }
}

impl Report {
    pub(super) const fn error(&self) -> Option<&ErrorInfo> {
        match self {
            Self::Retry { error, .. } | Self::Failure(error) => Some(error),
            _ => None,
        }
    }

    const fn eta(&self) -> Option<OffsetDateTime> {
        match self {
            Self::Retry { eta, .. } => *eta,
            _ => None,
        }
    }
}

fn exception<'a>(kind: &'a str, message: &str) -> Exception<'a> {
    let kind = bare_name(kind);
    let module = match kind {
        "NotRegistered" | "TaskRevokedError" => Some("celery.exceptions"),
        "TimeLimitExceeded" | "SoftTimeLimitExceeded" => Some("billiard.exceptions"),
        _ => None,
    };
    Exception { kind, args: [never_empty(message.to_owned(), kind)], module }
}

/// What is passed here always serializes; null stands for what would not.
fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn reply(report: Report) -> Reply {
        Reply::of("i", report)
    }

    fn body(reply: &Reply) -> Value {
        serde_json::from_slice(&reply.encode("c", true).body).unwrap()
    }

    fn failure(kind: &str, message: &str) -> Value {
        let error = ErrorInfo::new(kind, message);
        body(&reply(Report::Failure(error)))["result"].clone()
    }

    #[test]
    fn properties_are_what_a_stock_client_takes() {
        let message = reply(Report::Started).encode("c", false);
        let expected = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            priority: Some(0),
            correlation_id: Some("c".to_owned()),
            ..Properties::default()
        };
        assert_eq!(message.properties, expected);
        assert!(reply(Report::Started).encode("c", true).properties.persistent);
    }

    #[test]
    fn without_keys_of_ours_the_body_is_a_stock_workers() {
        let success = reply(Report::Success(RawValue::TRUE.to_owned()));
        let expected = json!({"status": "SUCCESS", "result": true, "traceback": null, "children": [],
            "date_done": null, "task_id": "i"});
        assert_eq!(body(&success), expected);
    }

    #[test]
    fn exceptions_name_their_module_only_where_a_stock_client_has_the_class() {
        let of = |kind| failure(kind, "m");
        assert_eq!(of("NotRegistered")["exc_module"], "celery.exceptions");
        assert_eq!(of("TimeLimitExceeded")["exc_module"], "billiard.exceptions");
        assert_eq!(of("SoftTimeLimitExceeded")["exc_module"], "billiard.exceptions");
        assert_eq!(of("WorkerLost"), json!({"exc_type": "WorkerLost", "exc_message": ["m"]}));
        assert_eq!(of("os.system"), json!({"exc_type": "system", "exc_message": ["m"]}));
        let revoked = body(&reply(Report::Revoked { reason: "expired".to_owned() }));
        let expected =
            json!({"exc_type": "TaskRevokedError", "exc_message": ["expired"], "exc_module": "celery.exceptions"});
        assert_eq!((&revoked["status"], &revoked["result"]), (&json!("REVOKED"), &expected));
    }

    #[test]
    fn an_error_without_a_message_says_its_type() {
        assert_eq!(failure("Oops", " "), json!({"exc_type": "Oops", "exc_message": ["Oops"]}));
        assert_eq!(failure("", ""), json!({"exc_type": "Exception", "exc_message": ["Exception"]}));
    }

    #[test]
    fn started_names_process_and_worker() {
        let started = Reply { worker: Some("w@h".to_owned()), ..reply(Report::Started) };
        assert_eq!(body(&started)["result"], json!({"pid": std::process::id(), "hostname": "w@h"}));
        assert_eq!(body(&started)["worker"], "w@h");
    }
}
