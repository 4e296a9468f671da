//! `fetch_url(url, method="GET", headers={}, timeout=30)`: sends one HTTP request and returns what was answered.
//!
//! Only public addresses are reached, and those that the operator allows: see [`fetch`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fetch::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use fetch::{FetchError, Fetcher, Method, Request};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::remote::task_error;
use super::seconds::Seconds;
use crate::context::{Cancelled, Context};
use crate::handler::{Handler, TaskError};
use crate::options::TaskOptions;

/// Nesting that a result may have, less than it is refused for.
const JSON_DEPTH: usize = 64;
const IDEMPOTENCY_KEY: &str = "idempotency-key";

pub(crate) struct FetchUrl {
    pub(crate) fetcher: Fetcher,
    /// The longest body.
    pub(crate) max_bytes: usize,
}

/// Sends one HTTP request without a body and returns what was answered, whatever its status: a 404, 429 or 503 is a
/// result too, and only what brought no answer in time is retried. Up to 10 redirects are followed.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// http or https, without user and password. A host that is not public fails as `AddressRefused`.
    url: String,
    /// Like any task the request may be sent more than once. POST and PATCH carry an `Idempotency-Key`, the task's id,
    /// unless `headers` has one.
    #[serde(default)]
    method: Verb,
    /// After a redirect to another server only those go along that describe the wish, such as `Accept`: no credentials.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Seconds for all of it: name lookup, redirects, body.
    #[serde(default = "thirty_seconds")]
    timeout: Seconds,
}

fn thirty_seconds() -> Seconds {
    Seconds(std::time::Duration::from_secs(30))
}

#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Verb {
    #[default]
    Get,
    Head,
    Options,
    Post,
    Put,
    Patch,
    Delete,
}

/// The answer. Its body is in one of `json`, `text` and `base64`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Answer {
    /// The URL that answered, after redirects.
    url: String,
    status: u16,
    /// Names are lower-case. Repeated headers are joined with `, `, `set-cookie` with a line feed.
    headers: BTreeMap<String, String>,
    /// A body that is JSON by its content type and in fact, to the digit.
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<Box<RawValue>>,
    /// Any other body that is UTF-8. In one that is text by its content type, bytes that are not become U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Any other body.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl Handler for FetchUrl {
    const NAME: &'static str = "fetch_url";
    const OPTIONS: TaskOptions = TaskOptions::new().redact(&["headers"]);
    type Args = Args;
    type Output = Answer;

    async fn run(
        &self,
        Args { url, method, headers, timeout: Seconds(timeout) }: Args,
        ctx: Context,
    ) -> Result<Answer, TaskError> {
        let until = Instant::now() + timeout;
        let deadline = ctx.deadline().map_or(until, |hard| hard.min(until));
        let headers = request_headers(headers, method, &ctx)?;
        let request = Request { method: method.into(), headers, ..Request::get(url, deadline) };
        tokio::select! {
            answer = self.fetch(request) => answer.map_err(|error| task_error(&error)),
            // A shutdown leaves a grace period, which is longer than most answers take.
            reason = ctx.cancelled_by(|reason| reason != Cancelled::Shutdown) => Err(reason.into()),
        }
    }
}

impl FetchUrl {
    async fn fetch(&self, request: Request) -> Result<Answer, FetchError> {
        let response = self.fetcher.send(request).await?;
        let (url, status) = (response.url().to_string(), response.status().as_u16());
        let headers = by_name(response.headers());
        let body = response.bytes(self.max_bytes).await?;
        let content_type = headers.get(CONTENT_TYPE.as_str()).map(String::as_str).unwrap_or_default();
        let Body { json, text, base64 } = Body::of(body.into(), content_type);
        Ok(Answer { url, status, headers, json, text, base64 })
    }
}

/// What of a body's three forms it has.
#[derive(Debug, Default)]
struct Body {
    json: Option<Box<RawValue>>,
    text: Option<String>,
    base64: Option<String>,
}

impl Body {
    fn of(bytes: Vec<u8>, content_type: &str) -> Self {
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match String::from_utf8(bytes) {
            Ok(text) if is_json(&media_type) => match json(&text) {
                Some(json) => Self { json: Some(json), ..Self::default() },
                None => Self { text: Some(text), ..Self::default() },
            },
            Ok(text) => Self { text: Some(text), ..Self::default() },
            Err(error) if is_text(&media_type) => {
                Self { text: Some(String::from_utf8_lossy(error.as_bytes()).into_owned()), ..Self::default() }
            }
            Err(error) => Self { base64: Some(BASE64.encode(error.as_bytes())), ..Self::default() },
        }
    }
}

fn is_json(media_type: &str) -> bool {
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

fn is_text(media_type: &str) -> bool {
    let ends = ["/xml", "+xml", "/javascript", "/x-www-form-urlencoded"];
    media_type.starts_with("text/") || is_json(media_type) || ends.iter().any(|end| media_type.ends_with(end))
}

/// `None` of what the reader of the result could not read, such as a lone surrogate or deep nesting.
fn json(text: &str) -> Option<Box<RawValue>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_ascii();
    protocol::json::check(text, JSON_DEPTH).ok()?;
    RawValue::from_string(text.to_owned()).ok()
}

fn by_name(headers: &HeaderMap) -> BTreeMap<String, String> {
    let of = |name: &HeaderName| {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        values.collect::<Vec<_>>().join(if *name == SET_COOKIE { "\n" } else { ", " })
    };
    headers.keys().map(|name| (name.as_str().to_owned(), of(name))).collect()
}

/// The headers may hold secrets: an error shows at most a name.
fn request_headers(given: BTreeMap<String, String>, method: Verb, ctx: &Context) -> Result<HeaderMap, TaskError> {
    let invalid = |what: &str| TaskError::fail("InvalidArguments", format!("argument `headers`: {what}"));
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name: HeaderName = name.parse().map_err(|_| invalid("a name that is no header's"))?;
        let value = HeaderValue::try_from(value);
        let mut value = value.map_err(|_| invalid(&format!("`{name}` has a value that no header can have")))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    if matches!(method, Verb::Post | Verb::Patch) && !headers.contains_key(IDEMPOTENCY_KEY) {
        let key = HeaderValue::try_from(ctx.idempotency_key());
        headers.insert(IDEMPOTENCY_KEY, key.map_err(|_| invalid("the task's id cannot be an `Idempotency-Key`"))?);
    }
    Ok(headers)
}

impl From<Verb> for Method {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Get => Self::GET,
            Verb::Head => Self::HEAD,
            Verb::Options => Self::OPTIONS,
            Verb::Post => Self::POST,
            Verb::Put => Self::PUT,
            Verb::Patch => Self::PATCH,
            Verb::Delete => Self::DELETE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TaskSettings;
    use crate::registry::Registry;
    use crate::testing::TestRun;
    use serde_json::json;

    fn fetch_url() -> FetchUrl {
        FetchUrl { fetcher: TaskSettings::default().fetcher().unwrap(), max_bytes: 1024 }
    }

    async fn error_of(kwargs: &serde_json::Value) -> (String, String) {
        let error = TestRun::new().call(fetch_url(), "[]", &kwargs.to_string()).await.unwrap_err();
        assert!(matches!(error, TaskError::Fail { .. }), "{error:?}");
        (error.error().kind.clone(), error.error().message.clone())
    }

    #[test]
    fn a_body_has_the_form_that_loses_nothing() {
        let form = |bytes: &[u8], content_type: &str| {
            let Body { json, text, base64 } = Body::of(bytes.to_vec(), content_type);
            (json.map(|json| json.get().to_owned()), text, base64)
        };
        let (json, text, base64) = (
            |json: &str| (Some(json.to_owned()), None, None),
            |text: &str| (None, Some(text.to_owned()), None),
            |base64: &str| (None, None, Some(base64.to_owned())),
        );
        let digits = r#"{"n": 1180591620717411303424, "f": 1.10}"#;
        assert_eq!(form(digits.as_bytes(), "application/json; charset=utf-8"), json(digits));
        assert_eq!(form(b"\xef\xbb\xbf [1] ", "application/problem+JSON"), json("[1]"));
        assert_eq!(form(b"null", "text/json"), json("null"));
        for not_json in ["", "[1", r#""\ud800""#, "1e999", &"[".repeat(100)] {
            assert_eq!(form(not_json.as_bytes(), "application/json"), text(not_json));
        }
        assert_eq!(form(b"[1]", "text/plain"), text("[1]"));
        assert_eq!(form("é".as_bytes(), ""), text("é"));
        assert_eq!(form(b"caf\xe9", "text/html; charset=latin1"), text("caf\u{fffd}"));
        assert_eq!(form(b"\x89PNG", "image/png"), base64("iVBORw=="));
        assert_eq!(form(b"\xff", ""), base64("/w=="));
    }

    #[test]
    fn repeated_headers_are_joined() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("Vary", "a"), ("vary", "b"), ("Set-Cookie", "a=1, x"), ("set-cookie", "b=2")] {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value));
        }
        let joined = [("set-cookie", "a=1, x\nb=2"), ("vary", "a, b")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(by_name(&headers), BTreeMap::from(joined));
    }

    #[tokio::test]
    async fn an_error_names_the_header_and_not_its_value() {
        for (headers, named) in [
            (json!({"X-Key": "se\ncret"}), "`x-key`"),
            (json!({"se cret": "x"}), "a name"),
            (json!({"Host": "secret"}), "`host`"),
            (json!({"X-Key": {"secret": 1}}), "not shown"),
        ] {
            let (kind, message) = error_of(&json!({"url": "http://1.1.1.1/", "headers": headers})).await;
            assert_eq!(kind, "InvalidArguments");
            assert!(message.contains(named) && !message.contains("cret"), "{message}");
        }
    }

    #[tokio::test]
    async fn what_is_not_public_fails_at_once() {
        let (kind, message) = error_of(&json!({"url": "http://127.0.0.1:1/?token=secret"})).await;
        assert_eq!((kind.as_str(), message.as_str()), ("AddressRefused", "127.0.0.1: a loopback address"));
    }

    #[tokio::test]
    async fn a_soft_time_limit_ends_it() {
        let run = TestRun::new();
        run.cancel(Cancelled::SoftTimeLimit);
        let mut fetch = fetch_url();
        // It accepts connections and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = TaskSettings { fetch_allow: vec!["127.0.0.1".to_owned()], ..TaskSettings::default() };
        fetch.fetcher = settings.fetcher().unwrap();
        let kwargs = json!({"url": format!("http://{}/", silent.local_addr().unwrap())});
        let error = run.call(fetch, "[]", &kwargs.to_string()).await.unwrap_err();
        assert_eq!(error.error().kind, "SoftTimeLimitExceeded");
    }

    #[test]
    fn its_arguments_are_documented() {
        let task = Registry::new().register(fetch_url()).task_types().remove(0);
        assert_eq!(task.arguments["required"], json!(["url"]));
        assert!(task.arguments["properties"].as_object().unwrap().values().all(|of| of["description"].is_string()));
        assert_eq!(task.redacted, ["headers"]);
    }
}
