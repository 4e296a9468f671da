//! `POST /v1/dead-letters/replay`: replays what a filter matches.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::timestamp::now_ms;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::filter;
use crate::api::Api;
use crate::api::openapi::answers::{BadQuery, NoStore};
use crate::api::openapi::parameters::{LetterQuery, PaceQuery};
use crate::api::problem::Problem;
use crate::api::query::Parameters;
use crate::api::submit::beyond_cap;
use crate::keyring::Caller;
use crate::store::{Bulk, Pace};

/// The slowest rate, tasks a second.
pub const LEAST_RATE: f64 = 0.001;
/// The fastest rate, tasks a second.
pub const MAX_RATE: f64 = 100_000.0;

/// One goes along the dead letters at a time, and leaves the other readers of the store to everybody else.
static TURN: Semaphore = Semaphore::const_new(1);
const TURN_DEADLINE: Duration = Duration::from_secs(10);

/// What a replay of many did, or would do.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLettersReplayed {
    /// Whether it was only asked what would be replayed.
    dry_run: bool,
    /// Dead letters that were, or would be, replayed.
    replayed: u64,
    /// Whether it ended at 100,000, at a limit of the key, or had no more room, and more may match: ask again.
    more: bool,
}

/// Replay many dead letters
///
/// Those of now that match, oldest first, 100,000 at most. With a `rate` each is due at its time, which is kept over
/// restarts. What has been replayed is no dead letter any more, so a request that is repeated, whatever became of the
/// first, replays only the rest.
#[utoipa::path(post, path = "/v1/dead-letters/replay", tag = "dead letters", params(LetterQuery, PaceQuery), responses(
    (status = 200, description = "How many", body = DeadLettersReplayed),
    BadQuery,
    NoStore,
))]
pub async fn replay(api: web::Data<Api>, caller: Caller, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut query = Parameters::read(request.query_string())?;
    let filter = filter(&mut query, &caller);
    let dry_run = query.flag("dry_run");
    let rate = query.one("rate", rate);
    query.end()?;
    let _turn = turn().await?;
    let Bulk { letters, more, .. } = if dry_run {
        api.store.count_letters(&filter, now_ms()).await?
    } else {
        let pace = Pace { rate, cap: api.outbox_cap, start: now_ms() };
        let bulk = api.store.replay_letters(&filter, pace).await?;
        match bulk.beyond {
            Some(excess) if bulk.letters == 0 => return Err(excess.into()),
            None if bulk.letters == 0 && bulk.more => return Err(beyond_cap(&api)),
            _ => {}
        }
        metrics::counter!("errand_replayed_total").increment(bulk.letters);
        bulk
    };
    Ok(HttpResponse::Ok().json(DeadLettersReplayed { dry_run, replayed: letters, more }))
}

async fn turn() -> Result<SemaphorePermit<'static>, Problem> {
    let busy =
        || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "replays-busy", "other dead letters are being replayed");
    timeout(TURN_DEADLINE, TURN.acquire()).await.ok().and_then(Result::ok).ok_or_else(busy)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (LEAST_RATE..=MAX_RATE).contains(rate));
    rate.ok_or_else(|| format!("must be a number of tasks a second from {LEAST_RATE} to {MAX_RATE}"))
}
