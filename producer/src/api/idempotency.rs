//! `Idempotency-Key`: a submit that a client repeats, not knowing whether the first one arrived, is accepted once.

use std::fmt::Write;

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use protocol::timestamp::now_ms;
use sha2::{Digest, Sha256};

use super::fields::Members;
use super::problem::Problem;
use super::{Api, submit};
use crate::keyring::Caller;
use crate::store::{Accepted, IdempotencyKey, NewTask, TaskRow};

/// What the client sends.
const HEADER: &str = "Idempotency-Key";
/// Says that nothing was accepted now.
pub const REPLAYED: &str = "Idempotency-Replayed";
/// The longest key.
pub const MAX_KEY_BYTES: usize = 255;

/// The request's key, if it has one. `body` is a task that was checked.
///
/// # Errors
/// 400 for a key that cannot be one.
pub fn key(request: &HttpRequest, caller: &Caller, body: &[u8]) -> Result<Option<IdempotencyKey>, Problem> {
    let mut given = request.headers().get_all(HEADER);
    let Some(key) = given.next() else { return Ok(None) };
    let is_visible = key.as_bytes().iter().all(u8::is_ascii_graphic);
    match key.to_str() {
        Ok(key) if given.next().is_none() && is_visible && (1..=MAX_KEY_BYTES).contains(&key.len()) => {
            let owner = caller.owner().unwrap_or_default().to_owned();
            Ok(Some(IdempotencyKey { owner, key: key.to_owned(), fingerprint: fingerprint(body) }))
        }
        _ => {
            let detail = format!("{HEADER} must be given once, as 1 to {MAX_KEY_BYTES} visible ASCII characters");
            Err(Problem::new(StatusCode::BAD_REQUEST, "invalid-idempotency-key", detail))
        }
    }
}

/// Refuses a key where it has no meaning: one that is not heeded would be trusted in vain.
///
/// # Errors
/// 400 when there is one.
pub fn refuse_key(request: &HttpRequest) -> Result<(), Problem> {
    if !request.headers().contains_key(HEADER) {
        return Ok(());
    }
    let detail = format!("a batch takes no {HEADER}: give its tasks a task_id each, and it can be repeated");
    Err(Problem::new(StatusCode::BAD_REQUEST, "invalid-idempotency-key", detail))
}

/// Accepts the task unless its key is known; answers the task that the key stands for, and whether it was known.
///
/// # Errors
/// 422 when something else was submitted under the key, 410 when its task is kept no more, and as without a key.
pub async fn accept(
    api: &Api,
    caller: &Caller,
    task: NewTask,
    key: IdempotencyKey,
) -> Result<(TaskRow, bool), Problem> {
    // Looked up first, so that a full outbox keeps nobody from learning what was accepted.
    if let Some(id) = api.store.replayed(&key, now_ms()).await? {
        return replay(api, caller, &id).await;
    }
    submit::refuse_arguments(api, &task)?;
    submit::refuse_beyond_cap(api, std::slice::from_ref(&task))?;
    match api.store.insert_once(task.clone(), key).await? {
        Accepted::Replayed(id) => replay(api, caller, &id).await,
        Accepted::Stored => {
            metrics::counter!("errand_accepted_total").increment(1);
            Ok((TaskRow::from(task), false))
        }
    }
}

async fn replay(api: &Api, caller: &Caller, id: &str) -> Result<(TaskRow, bool), Problem> {
    let row = api.store.task(id, &caller.whose()).await?.ok_or_else(|| {
        let detail = format!("the task of this {HEADER}, {id}, has ended and is kept no more; nothing was accepted");
        Problem::new(StatusCode::GONE, "idempotent-task-gone", detail)
    })?;
    Ok((row, true))
}

/// SHA-256 of the members by name. Neither their order nor white space counts, nor do nulls, which are as good as absent.
fn fingerprint(body: &[u8]) -> String {
    let mut members = serde_json::from_slice(body).map(|Members(members)| members).unwrap_or_default();
    members.retain(|(_, value)| value.get() != "null");
    members.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut hash = Sha256::new();
    for (name, value) in &members {
        // No text of JSON has a zero byte in it.
        hash.update([name.as_bytes(), &[0], &compact(value.get()), &[0]].concat());
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Valid JSON without the white space between its tokens. Numbers and escapes stay as they were written.
fn compact(json: &str) -> Vec<u8> {
    let (mut in_string, mut is_escaped) = (false, false);
    let mut kept = Vec::with_capacity(json.len());
    for byte in json.bytes() {
        if in_string || !byte.is_ascii_whitespace() {
            kept.push(byte);
        }
        in_string ^= byte == b'"' && !is_escaped;
        is_escaped = in_string && byte == b'\\' && !is_escaped;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_submit_is_written_does_not_count() {
        let first = fingerprint(br#"{"task": "add", "args": [1, "a \" b"], "eta": null}"#);
        let again = fingerprint(b"{\n \"args\" : [1,\t\"a \\\" b\"], \"task\":\"add\"}");
        assert_eq!((first.len(), first), (64, again));
    }

    #[test]
    fn what_a_submit_says_counts() {
        let bodies: [&[u8]; 7] = [
            br#"{"task":"add","args":[1]}"#,
            br#"{"task":"add","args":[1.0]}"#,
            br#"{"task":"add","args":[1,2]}"#,
            br#"{"task":"add","args":["1"]}"#,
            br#"{"task":"add","args":["1 "]}"#,
            br#"{"task":"add","args":["\\"," 1 "]}"#,
            br#"{"task":"add","args":["\\","1"]}"#,
        ];
        let distinct: std::collections::HashSet<String> = bodies.into_iter().map(fingerprint).collect();
        assert_eq!(distinct.len(), bodies.len());
    }
}
