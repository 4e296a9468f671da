//! `GET /v1/stats`: how many tasks are where.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::openapi::answers::NoStore;
use super::problem::Problem;
use crate::store::Counts;

/// Tasks since the store was made, all of one moment: `accepted` is the sum of all that follow but `forgotten`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stats {
    /// All that were ever accepted.
    accepted: u64,
    /// Not due yet.
    scheduled: u64,
    /// Due, and not handed to the broker yet.
    waiting: u64,
    /// At the broker, or running and not announced.
    queued: u64,
    /// Announced as running.
    running: u64,
    /// Waiting for their next attempt.
    retrying: u64,
    /// Ended in SUCCESS, forgotten ones too.
    success: u64,
    /// Ended in FAILURE, forgotten ones too.
    failure: u64,
    /// Ended in REVOKED, forgotten ones too.
    revoked: u64,
    /// Of those that ended: deleted, or their results have expired.
    forgotten: u64,
}

/// How many tasks are where
///
/// Since the store was made, over all queues.
#[utoipa::path(get, path = "/v1/stats", tag = "service", responses(
    (status = 200, description = "The counts", body = Stats), NoStore,
))]
pub async fn stats(api: web::Data<Api>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(Stats::from(api.store.counts().await?)))
}

impl From<Counts> for Stats {
    fn from(counts: Counts) -> Self {
        Self {
            accepted: counts.accepted,
            scheduled: counts.scheduled,
            waiting: counts.waiting,
            queued: counts.queued,
            running: counts.running,
            retrying: counts.retrying,
            success: counts.success,
            failure: counts.failure,
            revoked: counts.revoked,
            forgotten: counts.forgotten,
        }
    }
}
