//! The tolerant reader: only `status` and `task_id` are required. What else is of another type than expected counts as
//! absent, since a reply that is refused leaves its task open.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::{ErrorInfo, NAMELESS, PROGRESS, Progress, Reply, ReplyFault, Report, bare_name, never_empty};
use crate::message::Message;
use crate::state::State;
use crate::timestamp::parse_celery;

#[derive(Deserialize)]
struct Body<'a> {
    status: String,
    task_id: String,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traceback: Option<&'a RawValue>,
    #[serde(borrow, default)]
    date_done: Option<&'a RawValue>,
    #[serde(borrow, default)]
    group_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    parent_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    worker: Option<&'a RawValue>,
    #[serde(borrow, default)]
    retries: Option<&'a RawValue>,
    #[serde(borrow, default)]
    seq: Option<&'a RawValue>,
    #[serde(borrow, default)]
    since: Option<&'a RawValue>,
    #[serde(borrow, default)]
    held_ms: Option<&'a RawValue>,
    #[serde(borrow, default)]
    started_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    eta: Option<&'a RawValue>,
}

impl Reply {
    /// Reads a result message of ours or of a stock worker. The caller bounds the body's size; the JSON in
    /// [`Report::Success`] and [`Report::Custom`] is checked for syntax only (see [`crate::json::check`]).
    ///
    /// # Errors
    /// The message is not JSON, or lacks `status` or `task_id`.
    pub fn decode(message: &Message) -> Result<Self, ReplyFault> {
        let bytes = message.json_body()?;
        let body: Body<'_> = object(&bytes).map_err(ReplyFault::Body)?;
        Ok(body.into_reply())
    }
}

impl Body<'_> {
    fn into_reply(self) -> Reply {
        Reply {
            retries: lenient(self.retries),
            seq: lenient(self.seq),
            since: lenient(self.since),
            held_ms: lenient(self.held_ms),
            worker: lenient(self.worker).or_else(|| self.hostname()),
            started_at: time(self.started_at),
            date_done: time(self.date_done),
            group_id: lenient(self.group_id),
            parent_id: lenient(self.parent_id),
            children: Vec::new(),
            report: self.report(),
            task_id: self.task_id,
        }
    }

    fn report(&self) -> Report {
        let result = || self.result.unwrap_or(RawValue::NULL).to_owned();
        match State::from_name(&self.status) {
            Some(State::Started) => Report::Started,
            Some(State::Retry) => Report::Retry { error: self.error(), eta: time(self.eta) },
            Some(State::Success) => Report::Success(result()),
            Some(State::Failure) => Report::Failure(self.error()),
            Some(State::Revoked) => Report::Revoked { reason: self.reason() },
            Some(State::Pending) | None => match self.progress() {
                Some(progress) => Report::Progress(progress),
                None => Report::Custom { state: self.status.clone(), meta: result() },
            },
        }
    }

    fn error(&self) -> ErrorInfo {
        let exception = Exception::read(self.result);
        let kind = bare_name(&exception.kind).to_owned();
        let message = never_empty(exception.message, &kind);
        ErrorInfo { kind, message, traceback: self.traceback.map(text) }
    }

    fn reason(&self) -> String {
        never_empty(Exception::read(self.result).message, "revoked")
    }

    /// A stock worker names itself in the result of STARTED only.
    fn hostname(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Started {
            hostname: String,
        }
        if self.status != State::Started.name() {
            return None;
        }
        object::<Started>(self.result?.get().as_bytes()).ok().map(|started| started.hostname)
    }

    /// Our shape of progress, which stock handlers often use too. Keys beyond it are dropped.
    fn progress(&self) -> Option<Progress> {
        #[derive(Deserialize)]
        struct Meta {
            current: Value,
            #[serde(default)]
            total: Value,
            message: Option<String>,
        }
        if self.status != PROGRESS {
            return None;
        }
        let Meta { current, total, message } = object(self.result?.get().as_bytes()).ok()?;
        let total = if total.is_null() { None } else { Some(units(&total)?) };
        Some(Progress { current: units(&current)?, total, message })
    }
}

/// An exception as Celery's JSON result backends write it, read as far as possible.
struct Exception {
    kind: String,
    message: String,
}

impl Exception {
    fn read(result: Option<&RawValue>) -> Self {
        #[derive(Deserialize)]
        struct Parts<'a> {
            #[serde(borrow, default)]
            exc_type: Option<&'a RawValue>,
            #[serde(borrow, default)]
            exc_message: Option<&'a RawValue>,
        }
        let Some(raw) = result else { return Self { kind: NAMELESS.to_owned(), message: String::new() } };
        match object::<Parts<'_>>(raw.get().as_bytes()) {
            Ok(parts) => Self {
                kind: parts.exc_type.map(text).unwrap_or_default(),
                message: parts.exc_message.map(joined).unwrap_or_default(),
            },
            // Some workers send a bare text.
            Err(_) => Self { kind: NAMELESS.to_owned(), message: text(raw) },
        }
    }
}

/// An exception's arguments as one text.
fn joined(message: &RawValue) -> String {
    match serde_json::from_str::<Vec<&RawValue>>(message.get()) {
        Ok(parts) => parts.into_iter().map(text).collect::<Vec<_>>().join(", "),
        Err(_) => text(message),
    }
}

/// A string's content, anything else as JSON; so also a string with a lone surrogate, which Python sends.
fn text(raw: &RawValue) -> String {
    serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

/// An object, where serde would also read a struct from an array.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    if json.trim_ascii_start().starts_with(b"[") {
        return Err(serde::de::Error::custom("not an object"));
    }
    serde_json::from_slice(json)
}

fn lenient<T: DeserializeOwned>(raw: Option<&RawValue>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

fn time(raw: Option<&RawValue>) -> Option<OffsetDateTime> {
    parse_celery(&lenient::<String>(raw)?)
}

/// A whole number from 0, also as the float that Python makes of it.
fn units(number: &Value) -> Option<u64> {
    /// Above 2^53 a float does not tell one integer from the next.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=EXACT).contains(float))?;
        format!("{float:.0}").parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::CONTENT_TYPE;
    use crate::timestamp::from_unix_ms;
    use proptest::prelude::*;
    use serde_json::json;

    fn message(body: &[u8]) -> Message {
        let mut message = Message { body: body.to_vec(), ..Message::default() };
        message.properties.content_type = Some(CONTENT_TYPE.to_owned());
        message
    }

    fn of(status: &str, result: &str) -> Report {
        let body = format!(r#"{{"task_id": "i", "status": "{status}", "result": {result}}}"#);
        Reply::decode(&message(body.as_bytes())).unwrap().report
    }

    fn error(result: &str) -> (String, String) {
        match of("FAILURE", result) {
            Report::Failure(error) => (error.kind, error.message),
            other => panic!("{other:?}"),
        }
    }

    fn pair(kind: &str, message: &str) -> (String, String) {
        (kind.to_owned(), message.to_owned())
    }

    #[test]
    fn the_least_is_a_status_and_a_task() {
        let reply = Reply::decode(&message(br#"{"status": "SUCCESS", "task_id": "i"}"#)).unwrap();
        assert_eq!(reply.report, Report::Success(RawValue::NULL.to_owned()));
        for body in ["", "null", "[]", "{}", r#"{"status": "SUCCESS"}"#, r#"{"task_id": "i"}"#, r#"["SUCCESS", "i"]"#] {
            assert!(matches!(Reply::decode(&message(body.as_bytes())), Err(ReplyFault::Body(_))), "{body}");
        }
        let nan = br#"{"status": "SUCCESS", "task_id": "i", "result": NaN}"#;
        assert!(matches!(Reply::decode(&message(nan)), Err(ReplyFault::Body(_))));
        let pickle = Message::default();
        assert!(matches!(Reply::decode(&pickle), Err(ReplyFault::Content(_))));
    }

    #[test]
    fn an_exceptions_arguments_become_one_message() {
        assert_eq!(error(r#"{"exc_type": "E", "exc_message": ["a", 42, {"b": 1}]}"#), pair("E", r#"a, 42, {"b": 1}"#));
        assert_eq!(error(r#"{"exc_type": "a.b.E", "exc_message": "text"}"#), pair("E", "text"));
        assert_eq!(error(r#"{"exc_type": "a::E", "exc_message": 7}"#), pair("E", "7"));
        assert_eq!(error(r#"{"exc_type": "E", "exc_message": ["bad \ud800"]}"#), pair("E", r#""bad \ud800""#));
    }

    #[test]
    fn an_error_always_has_a_type_and_a_message() {
        for message in ["[]", "null", r#""""#, r#"[" "]"#] {
            assert_eq!(error(&format!(r#"{{"exc_type": "E", "exc_message": {message}}}"#)), pair("E", "E"));
        }
        assert_eq!(error("{}"), pair("Exception", "Exception"));
        assert_eq!(error("null"), pair("Exception", "Exception"));
        assert_eq!(error(r#""text""#), pair("Exception", "text"));
        assert_eq!(error(r#"["E", "a"]"#), pair("Exception", r#"["E", "a"]"#));
        assert_eq!(of("REVOKED", "null"), Report::Revoked { reason: "revoked".to_owned() });
    }

    #[test]
    fn progress_of_our_shape_is_progress_and_any_other_is_custom() {
        let progress = |current, total| Report::Progress(Progress { current, total, message: None });
        assert_eq!(of("PROGRESS", r#"{"current": 1, "total": 3}"#), progress(1, Some(3)));
        assert_eq!(of("PROGRESS", r#"{"current": 1.0, "total": 3e2, "status": "x"}"#), progress(1, Some(300)));
        assert_eq!(of("PROGRESS", r#"{"current": 18446744073709551615}"#), progress(u64::MAX, None));
        for meta in [
            "null",
            "7",
            r#"{"total": 3}"#,
            r#"{"current": 0.5}"#,
            r#"{"current": -1}"#,
            "[1, 3]",
            r#"{"current": 1, "total": "3"}"#,
            r#"{"current": 1, "message": 3}"#,
            r#"{"current": 1e300}"#,
        ] {
            let custom =
                Report::Custom { state: PROGRESS.to_owned(), meta: RawValue::from_string(meta.to_owned()).unwrap() };
            assert_eq!(of("PROGRESS", meta), custom);
        }
    }

    #[test]
    fn what_has_another_type_counts_as_absent() {
        let body = json!({"status": "STARTED", "task_id": "i", "result": {"hostname": "w@h"}, "traceback": 1,
            "retries": "1", "seq": -1, "worker": 7, "date_done": "soon", "started_at": 3, "group_id": [], "eta": {}});
        let reply = Reply::decode(&message(body.to_string().as_bytes())).unwrap();
        assert_eq!((reply.retries, reply.seq, reply.worker.as_deref()), (None, None, Some("w@h")));
        assert_eq!((reply.date_done, reply.started_at, reply.group_id), (None, None, None));
    }

    fn any_time() -> impl Strategy<Value = Option<OffsetDateTime>> {
        (0..253_402_300_800_000_i64).prop_map(from_unix_ms)
    }

    fn any_json() -> impl Strategy<Value = Box<RawValue>> {
        let value = prop::collection::vec((any::<String>(), any::<i64>()), 0..4).prop_map(|pairs| json!(pairs));
        value.prop_map(|value| RawValue::from_string(value.to_string()).unwrap())
    }

    prop_compose! {
        fn any_error()(kind in "[A-Z][A-Za-z0-9_]{0,20}", message in ".*[a-z].*", traceback: Option<String>)
            -> ErrorInfo { ErrorInfo { kind, message, traceback } }
    }

    fn any_report() -> impl Strategy<Value = Report> {
        prop_oneof![
            Just(Report::Started),
            any::<(u64, Option<u64>, Option<String>)>()
                .prop_map(|(current, total, message)| Report::Progress(Progress { current, total, message })),
            ("[A-Z]{1,3}", any_json()).prop_map(|(state, meta)| Report::Custom { state, meta }),
            (any_error(), any_time()).prop_map(|(error, eta)| Report::Retry { error, eta }),
            any_json().prop_map(Report::Success),
            any_error().prop_map(Report::Failure),
            "[a-z]{1,20}".prop_map(|reason| Report::Revoked { reason }),
        ]
    }

    prop_compose! {
        fn any_reply()(
            (task_id, report) in (any::<String>(), any_report()),
            (retries, seq) in any::<(Option<u32>, Option<u32>)>(),
            (worker, group_id, parent_id) in any::<(Option<String>, Option<String>, Option<String>)>(),
            (started_at, date_done) in (any_time(), any_time()),
            (since, held_ms) in any::<(Option<i64>, Option<u64>)>(),
        ) -> Reply {
            Reply {
                retries, seq, since, held_ms, worker, started_at, date_done, group_id, parent_id,
                ..Reply::of(task_id, report)
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same_reply(reply in any_reply(), persistent: bool) {
            prop_assert_eq!(Reply::decode(&reply.encode("c", persistent)).unwrap(), reply);
        }

        #[test]
        fn a_damaged_reply_is_refused_or_says_all_that_a_store_needs(
            reply in any_reply(), damages in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..6), cut: bool,
        ) {
            let mut message = reply.encode("c", true);
            for (at, byte) in damages {
                let at = at.index(message.body.len());
                message.body[at] = byte;
                if cut {
                    message.body.truncate(at + 1);
                }
            }
            match Reply::decode(&message) {
                Ok(read) => if let Some(error) = read.report.error() {
                    prop_assert!(!error.kind.is_empty() && !error.message.trim().is_empty(), "{error:?}");
                },
                Err(fault) => prop_assert!(matches!(fault, ReplyFault::Body(_)), "{fault}"),
            }
        }

        #[test]
        fn no_body_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), json in r#"[\[\]{}:,"0-9entul ]{0,40}"#) {
            let _ = Reply::decode(&message(&bytes));
            for status in ["FAILURE", "PROGRESS", "STARTED", "REVOKED", "X"] {
                let body = format!(r#"{{"task_id": "i", "status": "{status}", "result": {json}}}"#);
                let _ = Reply::decode(&message(body.as_bytes()));
            }
        }
    }
}
