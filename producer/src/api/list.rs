//! `GET /v1/tasks`: the tasks, newest first, a page at a time.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::state::State;
use protocol::timestamp::{parse_rfc3339, unix_ms};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::Api;
use super::openapi::answers::{BadQuery, NoStore};
use super::openapi::parameters::ListQuery;
use super::problem::Problem;
use super::query::Parameters;
use super::view::TaskView;
use crate::keyring::Caller;
use crate::rules;
use crate::store::{Filter, Whose};

/// Tasks of a page when nothing is said.
pub const USUAL_LIMIT: usize = 50;
/// Tasks of a page, at most.
pub const MAX_LIMIT: usize = 1_000;

/// Pages that are read at once, so that lists leave readers of the store to everybody else.
static READING: Semaphore = Semaphore::const_new(2);
const READING_DEADLINE: Duration = Duration::from_secs(10);

/// A page of tasks.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskList {
    tasks: Vec<TaskView>,
    /// What to give as `cursor` for the next page, null at the end. A page may be short, or empty, and not the last.
    next_cursor: Option<String>,
}

/// What is asked for.
#[derive(Debug)]
struct Wish {
    filter: Filter,
    before: Option<i64>,
    limit: usize,
}

/// List tasks
///
/// Newest first, a page at a time.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", params(ListQuery), responses(
    (status = 200, description = "A page of tasks", body = TaskList), BadQuery, NoStore,
))]
pub async fn list(api: web::Data<Api>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut wish = read(request.query_string())?;
    wish.filter.whose = caller.whose();
    let _reading = reading().await?;
    let page = api.store.list(&wish.filter, wish.before, wish.limit).await?;
    let tasks = page.rows.iter().map(|row| api.view(row)).collect();
    Ok(HttpResponse::Ok().json(TaskList { tasks, next_cursor: page.next.map(cursor) }))
}

/// A turn to read a page.
///
/// # Errors
/// 503 when it does not come soon.
pub async fn reading() -> Result<SemaphorePermit<'static>, Problem> {
    let busy = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "lists-busy", "too many lists are being read");
    timeout(READING_DEADLINE, READING.acquire()).await.ok().and_then(Result::ok).ok_or_else(busy)
}

fn read(query: &str) -> Result<Wish, Problem> {
    let mut query = Parameters::read(query)?;
    let wish = Wish {
        filter: Filter {
            states: states(&mut query),
            task: query.one("task", |name| rules::task_name(name).map(|()| name.to_owned())),
            queue: query.one("queue", queue),
            since: query.one("since", at),
            whose: Whose::Anybody,
        },
        before: query.one("cursor", |text| place(text).ok_or_else(|| "is no next_cursor of a list".to_owned())),
        limit: query.one("limit", limit).unwrap_or(USUAL_LIMIT),
    };
    query.end().map(|()| wish)
}

/// Several may be given, apart or with commas.
fn states(query: &mut Parameters) -> Vec<State> {
    let mut states = Vec::new();
    for name in query.all("state").iter().flat_map(|names| names.split(',')) {
        match State::from_name(name) {
            Some(state) if states.contains(&state) => {}
            Some(state) => states.push(state),
            None => {
                query.refuse("state", format!("must be of {}", State::ALL.map(State::name).join(", ")));
                // One is told: there can be as many as fit into a query.
                return Vec::new();
            }
        }
    }
    states
}

/// Any that there can be: a queue may have been taken from QUEUES while its tasks are kept.
pub fn queue(name: &str) -> Result<String, String> {
    let fits = (1..=rules::MAX_QUEUE_BYTES).contains(&name.len());
    if fits { Ok(name.to_owned()) } else { Err(format!("must be 1 to {} bytes", rules::MAX_QUEUE_BYTES)) }
}

/// A time of a query.
pub fn at(text: &str) -> Result<i64, String> {
    // In a query a plus that is not encoded is a space.
    let must = "must be a time in RFC 3339 with an offset, like 2026-11-20T15:00:00Z";
    parse_rfc3339(&text.replace(' ', "+")).map(unix_ms).ok_or_else(|| must.to_owned())
}

/// How long a page is to be, at most.
pub fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| format!("must be an integer from 1 to {MAX_LIMIT}"))
}

/// The version of what is in a cursor comes first.
fn cursor(place: i64) -> String {
    format!("1{place:x}")
}

fn place(cursor: &str) -> Option<i64> {
    let digits = cursor.strip_prefix('1').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    i64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(query: &str) -> Vec<String> {
        let problem = serde_json::to_value(read(query).unwrap_err()).unwrap();
        assert_eq!(problem["status"], 400);
        let bad = problem["parameters"].as_array().unwrap().iter();
        bad.map(|bad| bad["parameter"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_parameter_is_taken() {
        let query = "state=RETRY,FAILURE&state=FAILURE&state=SUCCESS&task=a%20b&queue=mail&limit=7&cursor=1ff";
        let wish = read(&format!("{query}&since=2026-11-20T15:00:00+01:00")).unwrap();
        assert_eq!(wish.filter.states, [State::Retry, State::Failure, State::Success]);
        assert_eq!((wish.filter.task.as_deref(), wish.filter.queue.as_deref()), (Some("a b"), Some("mail")));
        assert_eq!((wish.limit, wish.before), (7, Some(255)));
        assert_eq!(wish.filter.since, parse_rfc3339("2026-11-20T14:00:00Z").map(unix_ms));
        assert_eq!(read("").unwrap().limit, 50);
    }

    #[test]
    fn every_bad_parameter_is_named() {
        for bad in [
            "state=",
            "state=done",
            "state=x,y,z",
            "task=",
            "task=a%00b",
            "queue=",
            concat!("queue=0123456789012345678901234567890123456789", "0123456789012345678901234"),
            "since=yesterday",
            "limit=0",
            "limit=1001",
            "limit=x",
            "cursor=",
            "cursor=zz",
            "cursor=1",
            "cursor=1+f",
            "cursor=1ffffffffffffffffff",
            "sate=RETRY",
            "limit=1&limit=2",
        ] {
            assert_eq!(refused(bad), [bad.split('=').next().unwrap()], "{bad}");
        }
        assert_eq!(refused("limit=0&offset=7&state=x"), ["state", "limit", "offset"]);
        assert_eq!(refused(&"a=b&".repeat(1_000)).len(), 1);
    }

    proptest! {
        #[test]
        fn a_cursor_leads_back_to_its_place(at in 1..i64::MAX, text in ".{0,20}") {
            prop_assert_eq!(place(&cursor(at)), Some(at));
            let _ = place(&text);
        }
    }
}
