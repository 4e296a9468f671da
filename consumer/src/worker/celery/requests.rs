//! A command as Celery's tools broadcast it, and whether it is for this worker.

use protocol::control::{MAX_IDS, MAX_TEXT_BYTES};
use protocol::message::{ContentFault, Message};
use regex_lite::RegexBuilder;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A longer command is none.
const MAX_BYTES: usize = 1024 * 1024;
/// A longer pattern matches nothing.
const MAX_PATTERN: usize = 1000;
const MAX_PROGRAM: usize = 1 << 18;
/// By so many seconds the clocks of two machines may differ.
const SKEW: f64 = 2.0;

/// A command.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    /// What is wanted.
    pub(super) method: String,
    arguments: Option<Map<String, Value>>,
    destination: Option<Vec<String>>,
    pattern: Option<String>,
    matcher: Option<String>,
    /// What the answer carries back.
    pub(super) ticket: Option<String>,
    /// Where the answer goes; nobody wants one when there is none.
    pub(super) reply_to: Option<ReplyTo>,
}

/// Where an answer goes.
#[derive(Debug, Deserialize)]
pub(super) struct ReplyTo {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// Why a message is no command.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestFault {
    #[error(transparent)]
    Content(#[from] ContentFault),
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("it is not a command: {0}")]
    Json(#[from] serde_json::Error),
}

impl Request {
    pub(super) fn decode(message: &Message) -> Result<Self, RequestFault> {
        if message.body.len() > MAX_BYTES {
            return Err(RequestFault::TooLarge);
        }
        let body = message.json_body()?;
        // Compressed it may have been small.
        if body.len() > MAX_BYTES {
            return Err(RequestFault::TooLarge);
        }
        Ok(serde_json::from_slice(&body)?)
    }

    /// Whether a worker of that name is meant: by its name, else by a pattern, else all are.
    pub(super) fn is_for(&self, worker: &str) -> bool {
        match (&self.destination, &self.pattern) {
            (Some(names), _) if !names.is_empty() => names.iter().any(|name| name == worker),
            (_, Some(pattern)) if !pattern.is_empty() => matches(worker, pattern, self.matcher.as_deref()),
            _ => true,
        }
    }

    /// An argument of the command.
    pub(super) fn argument(&self, name: &str) -> Option<&Value> {
        self.arguments.as_ref()?.get(name)
    }

    /// An argument that is one id or a list of them, as many as a producer would tell of at once; what is none is left
    /// out.
    pub(super) fn ids(&self, name: &str) -> Vec<String> {
        let text = |value: &Value| value.as_str().filter(|id| id.len() <= MAX_TEXT_BYTES).map(str::to_owned);
        match self.argument(name) {
            Some(Value::Array(ids)) => ids.iter().filter_map(text).take(MAX_IDS).collect(),
            Some(id) => text(id).into_iter().collect(),
            None => Vec::new(),
        }
    }
}

/// Whether nobody waits for the answer any more, at a time in seconds since 1970.
pub(super) fn is_over(message: &Message, now: f64) -> bool {
    let expires = message.properties.headers.get("expires").and_then(Value::as_f64).unwrap_or_default();
    expires > 0.0 && expires + SKEW < now
}

/// kombu's matchers: `pcre` finds at the start of the name, `glob` matches it whole.
fn matches(name: &str, pattern: &str, matcher: Option<&str>) -> bool {
    if pattern.len() > MAX_PATTERN {
        return false;
    }
    let expression = match matcher {
        None | Some("glob") => format!("^(?s:{})$", glob(pattern)),
        Some("pcre") => format!("^(?:{pattern})"),
        Some(_) => return false,
    };
    let expression = RegexBuilder::new(&expression).size_limit(MAX_PROGRAM).build();
    expression.is_ok_and(|expression| expression.is_match(name))
}

/// A shell's pattern as a regular expression.
fn glob(pattern: &str) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(sign) = rest.chars().next() {
        rest = &rest[sign.len_utf8()..];
        // A set holds at least one sign, which may be the bracket itself.
        let set = (sign == '[').then(|| rest.char_indices().skip(1).find(|(_, sign)| *sign == ']')).flatten();
        match (sign, set) {
            ('*', _) => out.push_str(".*"),
            ('?', _) => out.push('.'),
            ('[', Some((end, _))) => {
                let (negated, signs) = match rest[..end].strip_prefix('!') {
                    Some(signs) => ("^", signs),
                    None => ("", &rest[..end]),
                };
                let signs = signs.replace('\\', r"\\").replace('[', r"\[").replace('^', r"\^").replace('&', r"\&");
                out.extend(["[", negated, &signs, "]"]);
                rest = &rest[end + 1..];
            }
            (sign, _) => out.push_str(&regex_lite::escape(&sign.to_string())),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn is_for(worker: &str, fields: &Value) -> bool {
        let mut body = json!({"method": "ping", "arguments": {}});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value::<Request>(body).unwrap().is_for(worker)
    }

    #[test]
    fn a_command_is_for_those_that_it_names_or_describes() {
        let name = "errand-12@h1";
        assert!(is_for(name, &json!({"destination": null, "pattern": null})));
        assert!(is_for(name, &json!({"destination": ["other", name]})));
        assert!(!is_for(name, &json!({"destination": ["other"], "pattern": "*"})));
        for (pattern, matcher, matched) in [
            ("errand-*@h?", json!(null), true),
            ("errand-[1-3]2@h[!2]", json!("glob"), true),
            ("errand-*", json!("glob"), true),
            ("rrand-*", json!("glob"), false),
            ("errand-.*", json!("glob"), false),
            ("errand-[0-9]+@", json!("pcre"), true),
            ("@h1", json!("pcre"), false),
            ("(", json!("pcre"), false),
            ("*", json!("sql"), false),
        ] {
            let fields = json!({"pattern": pattern, "matcher": matcher});
            assert_eq!(is_for(name, &fields), matched, "{fields}");
        }
    }

    #[test]
    fn a_command_that_nobody_waits_for_is_over() {
        let expiring = |at: Value| {
            let mut message = Message::default();
            message.properties.headers.insert("expires".to_owned(), at);
            is_over(&message, 1000.0)
        };
        assert_eq!([json!(0), json!(999), json!(990)].map(expiring), [false, false, true]);
    }
}
