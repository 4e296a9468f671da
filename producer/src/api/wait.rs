//! Waits for a task: until it has ended, or until a client has news. Holds no row meanwhile.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::prefer::Wait;
use super::problem::Problem;
use crate::store::{StoreError, TaskRow, TooManyWatchers, Watch, Whose};

impl From<TooManyWatchers> for Problem {
    fn from(error: TooManyWatchers) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-watchers", error.to_string())
    }
}

/// The task once it is as wanted, or as it stands when the time is up or the producer ends; `None` when it is gone.
pub async fn wait(
    watch: &mut Watch,
    limit: Duration,
    stopping: &CancellationToken,
    is_wanted: impl Fn(&TaskRow) -> bool,
) -> Result<Option<Arc<TaskRow>>, StoreError> {
    let wanted = async {
        let mut row = watch.now().await?.map(Arc::new);
        while row.as_ref().is_some_and(|row| !is_wanted(row)) {
            drop(row);
            row = watch.changed().await?;
        }
        Ok(row)
    };
    match stopping.run_until_cancelled(timeout(limit, wanted)).await {
        Some(Ok(row)) => row,
        Some(Err(_)) | None => Ok(watch.now().await?.map(Arc::new)),
    }
}

/// An accepted task once it has ended or the time is up. It is accepted whatever happens here, so nothing here fails.
pub async fn wait_accepted(api: &Api, id: &str, whose: Whose, limit: Wait) -> Option<Arc<TaskRow>> {
    let mut watch = api.store.watch(id, whose).ok()?;
    wait(&mut watch, limit.duration(), &api.stopping, |row| row.state.is_terminal()).await.ok().flatten()
}
