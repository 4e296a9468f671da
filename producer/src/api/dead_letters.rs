//! `GET /v1/dead-letters`, `GET` and `DELETE /v1/dead-letters/{id}`: the tasks that were given up. A letter has its task's
//! id and is shown as its task.

pub mod bulk;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::list::{self, USUAL_LIMIT};
use super::openapi::answers::{BadQuery, NoLetter, NoStore};
use super::openapi::parameters::{LetterPage, LetterQuery};
use super::openapi::schemas::TaskId;
use super::problem::Problem;
use super::query::Parameters;
use super::view::TaskView;
use crate::keyring::Caller;
use crate::rules;
use crate::store::{LetterFilter, LetterPlace};

/// The longest type of an error that is asked for, bytes.
pub const MAX_ERROR_TYPE_BYTES: usize = 200;

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetterList {
    dead_letters: Vec<TaskView>,
    /// What to give as `cursor` for the next page, null at the end. A page may be short, or empty, and not the last.
    next_cursor: Option<String>,
}

/// List dead letters
///
/// The tasks that were given up and neither dismissed nor replayed since, latest first, a page at a time. A letter is
/// kept for as long as its task's result.
#[utoipa::path(get, path = "/v1/dead-letters", tag = "dead letters", params(LetterQuery, LetterPage), responses(
    (status = 200, description = "A page of dead letters, each as its task stands", body = DeadLetterList),
    BadQuery,
    NoStore,
))]
pub async fn letters(api: web::Data<Api>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::read(request.query_string())?;
    let filter = filter(&mut query, &caller);
    let after = query.one("cursor", |text| place(text).ok_or_else(|| "is no next_cursor of a list".to_owned()));
    let limit = query.one("limit", list::limit).unwrap_or(USUAL_LIMIT);
    query.end()?;
    let _reading = list::reading().await?;
    let page = api.store.letters(&filter, after, limit).await?;
    let dead_letters = page.rows.iter().map(|row| api.view(row)).collect();
    Ok(HttpResponse::Ok().json(DeadLetterList { dead_letters, next_cursor: page.next.map(cursor) }))
}

/// Look at a dead letter
#[utoipa::path(get, path = "/v1/dead-letters/{id}", tag = "dead letters",
    params(("id" = inline(TaskId), Path, description = "Its task's id")),
    responses((status = 200, description = "Its task", body = TaskView), NoLetter, NoStore))]
pub async fn letter(api: web::Data<Api>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let row = api.store.letter(&id, &caller.whose()).await?.ok_or_else(unknown)?;
    Ok(HttpResponse::Ok().json(api.view(&row)))
}

/// Dismiss a dead letter
///
/// It is not listed any more. Its task stays as it is until its result expires, and may still be retried.
#[utoipa::path(delete, path = "/v1/dead-letters/{id}", tag = "dead letters",
    params(("id" = inline(TaskId), Path, description = "Its task's id")),
    responses((status = 204, description = "It is dismissed"), NoLetter, NoStore))]
pub async fn dismiss(api: web::Data<Api>, caller: Caller, id: web::Path<String>) -> Result<HttpResponse, Problem> {
    let was_there = api.store.dismiss(&id, &caller.whose(), now_ms()).await?;
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(unknown()) }
}

/// 404 for an id that no dead letter has.
pub fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown-dead-letter", "no dead letter has this id")
}

/// What a list and a replay of many choose by.
fn filter(query: &mut Parameters, caller: &Caller) -> LetterFilter {
    let is_type = |text: &str| (1..=MAX_ERROR_TYPE_BYTES).contains(&text.len());
    LetterFilter {
        task: query.one("task", |name| rules::task_name(name).map(|()| name.to_owned())),
        queue: query.one("queue", list::queue),
        error_type: query.one("error_type", |text| {
            let must = || format!("must be 1 to {MAX_ERROR_TYPE_BYTES} bytes");
            is_type(text).then(|| text.to_owned()).ok_or_else(must)
        }),
        since: query.one("since", list::at),
        until: query.one("until", list::at),
        whose: caller.whose(),
    }
}

/// The version of what is in a cursor comes first.
fn cursor(LetterPlace { finished_at, seq }: LetterPlace) -> String {
    format!("1{finished_at:x}-{seq:x}")
}

fn place(cursor: &str) -> Option<LetterPlace> {
    let hex = |text: &str| {
        let text = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        i64::from_str_radix(text, 16).ok()
    };
    let (finished_at, seq) = cursor.strip_prefix('1')?.split_once('-')?;
    Some(LetterPlace { finished_at: hex(finished_at)?, seq: hex(seq)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_bad_parameter_is_named() {
        for bad in ["task=", "error_type=", "since=x", "until=yesterday", "state=FAILURE", "queue=a&queue=b"] {
            let mut query = Parameters::read(bad).unwrap();
            filter(&mut query, &Caller::anonymous());
            let problem = serde_json::to_value(query.end().unwrap_err()).unwrap();
            assert_eq!(problem["parameters"][0]["parameter"], bad.split('=').next().unwrap(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_leads_back_to_its_place(finished_at in 0..i64::MAX, seq in 1..i64::MAX, text in ".{0,20}") {
            let at = LetterPlace { finished_at, seq };
            prop_assert_eq!(place(&cursor(at)), Some(at));
            let _ = place(&text);
        }
    }
}
