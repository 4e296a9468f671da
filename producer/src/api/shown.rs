//! A task as it is answered: its JSON, the validator of that (RFC 9110), and when to look again.

use std::hash::{DefaultHasher, Hasher};

use actix_web::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH, RETRY_AFTER, VARY};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use protocol::timestamp::now_ms;

use super::Api;
use super::prefer::{PREFER, Wait};
use crate::store::{Stage, TaskRow, UnixMs};

/// A task to be answered.
pub struct Shown {
    body: Vec<u8>,
    retry_after: Option<i64>,
}

impl Shown {
    /// The task as the API shows it now.
    pub fn new(api: &Api, row: &TaskRow) -> Self {
        // It cannot fail: a view has texts, numbers and JSON that was read as such, and no maps.
        let body = serde_json::to_vec(&api.view(row)).unwrap_or_default();
        let retry_after = (!row.state.is_terminal()).then(|| retry_after(row, now_ms()));
        Self { body, retry_after }
    }

    /// Strong: it follows from every byte, `reason` included.
    fn etag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.body);
        format!("\"{:016x}\"", hasher.finish())
    }

    /// The answer of that status, to be completed.
    pub fn answer(self, mut answer: HttpResponseBuilder) -> HttpResponse {
        self.headers(&mut answer);
        answer.content_type("application/json").body(self.body)
    }

    /// The answer to a read: 304 when the client has it already.
    pub fn read(self, seen: Option<&Seen>, waited: Option<Wait>) -> HttpResponse {
        let is_seen = seen.is_some_and(|seen| seen.has(&self));
        let mut answer = if is_seen { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        answer.insert_header((ETAG, self.etag())).insert_header((VARY, PREFER.as_str()));
        if let Some(wait) = waited {
            answer.insert_header(wait.applied());
        }
        if is_seen {
            self.headers(&mut answer);
            return answer.finish();
        }
        self.answer(answer)
    }

    fn headers(&self, answer: &mut HttpResponseBuilder) {
        answer.insert_header((CACHE_CONTROL, "no-cache"));
        if let Some(seconds) = self.retry_after {
            answer.insert_header((RETRY_AFTER, seconds));
        }
    }
}

/// Seconds until it is worth a look: a task that waits for a time is not looked for before it, nor later than that.
fn retry_after(row: &TaskRow, now: UnixMs) -> i64 {
    let at = match row.stage {
        Stage::Scheduled => Some(row.due_at),
        Stage::Retrying => row.retry_at,
        _ => None,
    };
    let ends = row.accepted.expires.unwrap_or(UnixMs::MAX);
    at.map_or(1, |at| at.min(ends).saturating_sub(now).saturating_add(999) / 1000).clamp(1, LONGEST_S)
}

/// The longest time in seconds after which a client is to look again: a task may be revoked meanwhile.
const LONGEST_S: i64 = 60;

/// What a client has, by its `If-None-Match`.
pub struct Seen(String);

impl Seen {
    /// `None` without the header.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        let lines = request.headers().get_all(IF_NONE_MATCH).filter_map(|line| line.to_str().ok());
        let lines: Vec<&str> = lines.collect();
        (!lines.is_empty()).then(|| Self(lines.join(",")))
    }

    /// Whether the client has it: compared weakly, as this header asks for. None of ours holds a comma.
    pub fn has(&self, shown: &Shown) -> bool {
        let (etag, mut tags) = (shown.etag(), self.0.split(',').map(str::trim));
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::new_task;

    #[test]
    fn what_waits_for_a_time_is_looked_for_then() {
        let row = TaskRow::from(new_task("a"));
        let now = row.accepted.created_at;
        let at = |stage, due_at, expires| {
            let mut row = TaskRow { stage, due_at, retry_at: Some(due_at), ..row.clone() };
            row.accepted.expires = expires;
            retry_after(&row, now)
        };
        assert_eq!(at(Stage::Waiting, now + 9_000, None), 1);
        assert_eq!(at(Stage::Scheduled, now + 8_001, None), 9);
        assert_eq!(at(Stage::Retrying, now + 2_000, None), 2);
        assert_eq!(at(Stage::Scheduled, now + 8_000, Some(now + 3_000)), 3);
        assert_eq!(at(Stage::Scheduled, now + 1_000_000, None), LONGEST_S);
        assert_eq!(at(Stage::Scheduled, now - 5_000, None), 1);
    }

    #[test]
    fn tags_are_compared_weakly() {
        let shown = Shown { body: b"{}".to_vec(), retry_after: None };
        let etag = shown.etag();
        for seen in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
            assert!(Seen(seen.clone()).has(&shown), "{seen}");
        }
        let other = Shown { body: b"{ }".to_vec(), retry_after: None }.etag();
        for seen in [String::new(), etag.replace('"', ""), other, "\"a2\"".to_owned()] {
            assert!(!Seen(seen.clone()).has(&shown), "{seen}");
        }
    }
}
