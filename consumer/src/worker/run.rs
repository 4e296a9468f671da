//! Runs one attempt: its handler in a task of its own, its time limits, its progress. Panics end here.

use std::sync::Arc;
use std::time::Duration;

use protocol::reply::{Progress, Report};
use protocol::task::Task;
use time::OffsetDateTime;
use time::macros::datetime;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::Worker;
use super::runs::Key;
use crate::context::{Cancelled, Context, ContextParts};
use crate::disposition::Outcome;
use crate::registry::{CallError, ErasedHandler};

/// A task that ends sooner is not announced as STARTED: a quick one costs two messages, not four.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(50);
/// At most five reports of progress a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

type Called = Result<Result<Box<serde_json::value::RawValue>, CallError>, JoinError>;

/// Runs the handler to its end or to its hard limit.
pub(super) async fn run(
    worker: &Arc<Worker>,
    key: &Key,
    task: &Task,
    handler: Arc<dyn ErasedHandler>,
    started_at: OffsetDateTime,
) -> Outcome {
    let started = Instant::now();
    let hard = task.time_limit.unwrap_or(worker.config.time_limit).min(worker.config.max_time_limit);
    let parts = ContextParts {
        task_id: task.id.clone(),
        task: task.task.clone(),
        attempt: task.retries,
        worker: worker.config.worker_name.clone(),
        deadline: Some(started + hard),
    };
    metrics::counter!("errand_runs_started_total").increment(1);
    let (context, control, _submissions) = Context::new(parts);
    let progress = control.progress();
    worker.runs.control(key, control);
    // A task and threads of its own: a panic ends it alone, and a handler that never yields stops neither its own limits
    // nor the worker's connections.
    let call = handler.call(task.args.clone(), task.kwargs.clone(), context);
    let mut handler = AbortOnDropHandle::new(worker.tracker.spawn_on(call, &worker.handlers));
    let outcome = tokio::select! {
        called = &mut handler => outcome_of(called),
        () = sleep_until(started + hard) => Outcome::TimeLimitExceeded(hard),
        never = announce(worker, task, progress, started_at) => match never {},
        never = cancel_at(worker, key, task.soft_time_limit.map(|soft| started + soft.min(hard))) => match never {},
    };
    metrics::histogram!("errand_run_seconds").record(started.elapsed().as_secs_f64());
    outcome
}

fn outcome_of(called: Called) -> Outcome {
    match called {
        Ok(Ok(result)) => Outcome::Returned(result),
        Ok(Err(error)) => Outcome::Failed(error.into()),
        Err(error) => Outcome::Panicked(panic_message(error)),
    }
}

fn panic_message(error: JoinError) -> String {
    let Ok(payload) = error.try_into_panic() else { return "the handler's task was aborted".to_owned() };
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "the handler panicked".to_owned())
}

/// Asks the handler to end; the hard limit follows.
async fn cancel_at(worker: &Worker, key: &Key, soft_limit: Option<Instant>) -> std::convert::Infallible {
    if let Some(at) = soft_limit {
        sleep_until(at).await;
        worker.runs.cancel(key, Cancelled::SoftTimeLimit);
    }
    std::future::pending().await
}

/// Announces a task that is not quick, and its progress as it changes.
async fn announce(
    worker: &Worker,
    task: &Task,
    mut progress: watch::Receiver<Option<Progress>>,
    started_at: OffsetDateTime,
) -> std::convert::Infallible {
    sleep(ANNOUNCE_AFTER).await;
    let mut seq = seq_at(started_at);
    worker.settle.announce(task, Report::Started, seq, started_at);
    loop {
        let latest = progress.borrow_and_update().clone();
        if let Some(latest) = latest {
            seq = seq.saturating_add(1);
            worker.settle.announce(task, Report::Progress(latest), seq, started_at);
            sleep(PROGRESS_EVERY).await;
        }
        if progress.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Where the order of a run's reports starts. A second run of the same attempt, after a worker's death, must not start
/// below the first: at most five reports a second, so five numbers a second since 2026 are enough, until 2053.
fn seq_at(started_at: OffsetDateTime) -> u32 {
    let since_2026 = started_at - datetime!(2026-01-01 00:00 UTC);
    u32::try_from(since_2026.whole_milliseconds() / PROGRESS_EVERY.as_millis().cast_signed()).unwrap_or(0)
}
