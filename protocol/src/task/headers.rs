//! Reading a header table by name and type, with the fault that names what is wrong.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::DecodeFault;
use crate::message::{DELAY_LEFT_MS, Headers, RETRY, truncate};
use crate::retry::RetryOptions;
use crate::timestamp::parse_celery;

/// The headers, in which an absent one is the same as null.
pub(super) struct Reader<'a>(pub(super) &'a Headers);

impl<'a> Reader<'a> {
    pub(super) fn get(&self, header: &str) -> Option<&'a Value> {
        self.0.get(header).filter(|value| !value.is_null())
    }

    /// The header as `as_type` has it, `None` when it is absent or null.
    fn typed<T>(
        &self,
        header: &'static str,
        expected: &'static str,
        as_type: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, DecodeFault> {
        let read = |value| as_type(value).ok_or(DecodeFault::HeaderType { header, expected });
        self.get(header).map(read).transpose()
    }

    pub(super) fn text(&self, header: &'static str) -> Result<Option<String>, DecodeFault> {
        self.typed(header, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn required(&self, header: &'static str) -> Result<String, DecodeFault> {
        self.text(header)?.filter(|text| !text.is_empty()).ok_or(DecodeFault::HeaderMissing(header))
    }

    pub(super) fn integer(&self, header: &'static str) -> Result<Option<i64>, DecodeFault> {
        self.typed(header, "an integer", Value::as_i64)
    }

    pub(super) fn count(&self, header: &'static str) -> Result<Option<u32>, DecodeFault> {
        let range = |number| u32::try_from(number).map_err(|_| DecodeFault::HeaderRange(header));
        self.integer(header)?.map(range).transpose()
    }

    pub(super) fn flag(&self, header: &'static str) -> Result<bool, DecodeFault> {
        Ok(self.typed(header, "a boolean", Value::as_bool)?.unwrap_or(false))
    }

    pub(super) fn time(&self, header: &'static str) -> Result<Option<OffsetDateTime>, DecodeFault> {
        let read = |text: &str| {
            let text_start = || truncate(text, 100).to_owned();
            parse_celery(text).ok_or_else(|| DecodeFault::HeaderTime { header, text: text_start() })
        };
        self.typed(header, "a string", Value::as_str)?.map(read).transpose()
    }

    /// `timelimit` is [hard, soft], seconds or null each.
    pub(super) fn limits(&self) -> Result<(Option<Duration>, Option<Duration>), DecodeFault> {
        const HEADER: &str = "timelimit";
        let wrong = DecodeFault::HeaderType { header: HEADER, expected: "[hard, soft]" };
        match self.typed(HEADER, "an array", Value::as_array)?.map(Vec::as_slice) {
            None => Ok((None, None)),
            Some([hard, soft]) => Ok((limit(hard)?, limit(soft)?)),
            Some(_) => Err(wrong),
        }
    }

    pub(super) fn retry(&self) -> Result<RetryOptions, DecodeFault> {
        let read = |value: &Value| RetryOptions::deserialize(value).map_err(DecodeFault::RetryPolicy);
        self.get(RETRY).map_or_else(|| Ok(RetryOptions::default()), read)
    }

    pub(super) fn delay_left(&self) -> Result<Option<Duration>, DecodeFault> {
        let range = |ms| u64::try_from(ms).map_err(|_| DecodeFault::HeaderRange(DELAY_LEFT_MS));
        let ms = self.integer(DELAY_LEFT_MS)?.map(range).transpose()?;
        Ok(ms.filter(|ms| *ms > 0).map(Duration::from_millis))
    }
}

/// Seconds as a limit. For Celery 0 is no limit.
fn limit(seconds: &Value) -> Result<Option<Duration>, DecodeFault> {
    if seconds.is_null() {
        return Ok(None);
    }
    let wrong = DecodeFault::HeaderType { header: "timelimit", expected: "[hard, soft] in seconds" };
    let seconds = seconds.as_f64().ok_or(wrong)?;
    let limit = Duration::try_from_secs_f64(seconds).map_err(|_| DecodeFault::HeaderRange("timelimit"))?;
    Ok(Some(limit).filter(|limit| !limit.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{CONTENT_TYPE, Message};
    use crate::retry::RetryPolicy;
    use crate::task::Task;
    use serde_json::json;

    /// A message with the least that a worker needs, and one header more.
    fn with(header: &str, value: Value) -> Message {
        let mut message = Message { body: b"[[], {}, null]".to_vec(), ..Message::default() };
        message.properties.content_type = Some(CONTENT_TYPE.to_owned());
        for (name, value) in [("id", json!("i")), ("task", json!("t")), (header, value)] {
            message.properties.headers.insert(name.to_owned(), value);
        }
        message
    }

    fn reason(message: &Message) -> String {
        Task::decode(message).unwrap_err().reason.to_string()
    }

    #[test]
    fn id_and_task_are_required() {
        for missing in ["id", "task"] {
            for value in [Value::Null, json!("")] {
                assert_eq!(reason(&with(missing, value)), format!("header {missing} is missing"));
            }
        }
    }

    #[test]
    fn a_header_of_the_wrong_type_is_named() {
        for (header, value, said) in [
            ("id", json!(7), "header id is not a string"),
            ("retries", json!("0"), "header retries is not an integer"),
            ("retries", json!(1.5), "header retries is not an integer"),
            ("retries", json!(-1), "header retries is out of range"),
            ("retries", json!(1_i64 << 32), "header retries is out of range"),
            ("eta", json!(1.0), "header eta is not a string"),
            ("eta", json!("soon"), r#"header eta is not a time: "soon""#),
            ("expires", json!("60"), r#"header expires is not a time: "60""#),
            ("timelimit", json!(30), "header timelimit is not an array"),
            ("timelimit", json!([30]), "header timelimit is not [hard, soft]"),
            ("timelimit", json!(["30", null]), "header timelimit is not [hard, soft] in seconds"),
            ("timelimit", json!([-1, null]), "header timelimit is out of range"),
            ("ignore_result", json!(1), "header ignore_result is not a boolean"),
            ("group_index", json!("1"), "header group_index is not an integer"),
            ("root_id", json!([]), "header root_id is not a string"),
            ("errand-retry", json!("3"), "header errand-retry is not a retry policy"),
            ("errand-retry", json!({"max_retry": 3}), "header errand-retry is not a retry policy"),
            ("errand-delay-left-ms", json!(-5), "header errand-delay-left-ms is out of range"),
            ("errand-publish", json!("1"), "header errand-publish is not an integer"),
            ("errand-since", json!("now"), "header errand-since is not an integer"),
            ("errand-submit", json!(1), "header errand-submit is not a string"),
        ] {
            assert_eq!(reason(&with(header, value)), said);
        }
    }

    #[test]
    fn our_own_headers_are_read() {
        let of = |header, value| Task::decode(&with(header, value)).unwrap();
        let chosen = RetryOptions { max_retries: Some(7), backoff: Some(2.0), ..RetryOptions::default() };
        assert_eq!(of("errand-retry", json!({"max_retries": 7, "backoff": 2})).retry, chosen);
        let whole = json!({"max_retries": 3, "backoff": 1.0, "backoff_max": 600.0, "jitter": true});
        assert_eq!(of("errand-retry", whole).retry, RetryOptions::from(RetryPolicy::default()));
        assert_eq!(of("errand-delay-left-ms", json!(1500)).delay_left, Some(Duration::from_millis(1500)));
        assert_eq!(of("errand-delay-left-ms", json!(0)).delay_left, None);
        assert!(of("errand-reply", json!("durable")).durable_reply);
        assert!(!of("errand-reply", json!("other")).durable_reply);
        assert_eq!(of("errand-publish", json!(2)).publish, Some(2));
        assert_eq!(of("errand-since", json!(1_800_000_000_000_i64)).since, Some(1_800_000_000_000));
        assert_eq!(of("errand-submit", json!("mail")).submit.as_deref(), Some("mail"));
    }

    #[test]
    fn time_limits_are_hard_first_and_zero_is_none() {
        let of = |value| {
            Task::decode(&with("timelimit", value)).map(|task| (task.time_limit, task.soft_time_limit)).unwrap()
        };
        assert_eq!(of(json!([30, 20])), (Some(Duration::from_secs(30)), Some(Duration::from_secs(20))));
        assert_eq!(of(json!([0, 0.25])), (None, Some(Duration::from_millis(250))));
        assert_eq!(of(json!([null, null])), (None, None));
    }
}
