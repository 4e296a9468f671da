//! Runs one attempt: its handler in its place, its time limits, its progress, its children. Panics end here.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, poll_fn};
use futures_util::{FutureExt, StreamExt};
use protocol::control::REVOKED;
use protocol::reply::{Progress, Report};
use protocol::task::Task;
use time::OffsetDateTime;
use time::macros::datetime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{Instrument, Span};

use super::Worker;
use super::child::{self, Apart, NoVerdict};
use super::gates::{Pass, Place};
use super::pools::{GivenUp, Running};
use super::runs::Key;
use super::settle::Origin;
use crate::context::{Cancelled, Context, ContextParts, Submission};
use crate::disposition::Outcome;
use crate::options::{Execution, ResourceLimits};
use crate::registry::ErasedHandler;

/// A task that ends sooner is not announced as STARTED: a quick one costs two messages, not four.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(50);
/// At most five reports of progress a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Children of one run that are on their way to the broker at once.
const SUBMISSIONS: usize = 32;
/// A revoked task has this long to end by itself.
const REVOKE_GRACE: Duration = Duration::from_secs(10);

/// One attempt that may start.
pub(super) struct Attempt<'a> {
    pub(super) worker: &'a Worker,
    pub(super) key: &'a Key,
    pub(super) origin: &'a Origin<'a>,
    pub(super) handler: Arc<dyn ErasedHandler>,
    pub(super) place: Place,
}

/// A call on its way.
enum Call<'a> {
    Apart(BoxFuture<'a, Result<Outcome, NoVerdict>>),
    Here(Running),
}

impl Call<'_> {
    /// How it ends. Cancel safe.
    async fn ended(&mut self) -> Result<Outcome, NoVerdict> {
        match self {
            Self::Apart(run) => run.await,
            Self::Here(running) => Ok(running.outcome().await),
        }
    }
}

/// How a run ended, and when it had started.
pub(super) type Ran = Result<(Outcome, OffsetDateTime), NoVerdict>;

impl Attempt<'_> {
    /// Runs the handler to its end or to its hard limit.
    pub(super) async fn run(self, pass: Pass) -> Ran {
        let (worker, task, options) = (self.worker, self.origin.task, self.handler.options());
        let apart = match self.place {
            Place::Apart => Some(child::start(worker.config.max_result_bytes).await?),
            Place::Among | Place::Thread => None,
        };
        // Its time runs from here: that a process takes long to come up is not the task's fault.
        let (started, started_at) = (Instant::now(), worker.settle.now(task));
        let hard = task.time_limit.or(options.time_limit).unwrap_or(worker.config.time_limit);
        let hard = hard.min(worker.config.max_time_limit);
        let soft = task.soft_time_limit.or(options.soft_time_limit).map(|soft| soft.min(hard));
        worker.counts.runs.increment(1);
        worker.celery.started(self.key, task, started_at);
        let (context, control, submissions) = Context::new(ContextParts {
            task_id: task.id.clone(),
            task: task.task.clone(),
            attempt: task.retries,
            worker: worker.config.worker_name.clone(),
            deadline: Some(started + hard),
        });
        let progress = control.progress();
        worker.runs.control(self.key, control);
        if worker.remote.revoked(task).is_some() {
            worker.runs.cancel(self.key, Cancelled::Revoked);
        }
        let mut call = self.start(apart, &context, pass)?;
        let mut submitted = pin!(submit(worker, self.origin, submissions));
        // What looks after a run is made for one that is not quick.
        let quick = ANNOUNCE_AFTER.min(soft.unwrap_or(hard));
        let ended = tokio::select! {
            biased;
            ended = call.ended() => Some(ended),
            never = &mut submitted => match never {},
            () = sleep_until(started + quick) => None,
        };
        let ended = if let Some(ended) = ended {
            ended
        } else {
            tokio::select! {
                ended = self.within_limits(call, &context, started, hard) => ended,
                never = announce(worker, task, progress, started, started_at) => match never {},
                never = cancel_at(worker, self.key, soft.map(|soft| started + soft)) => match never {},
                never = submitted => match never {},
            }
        };
        worker.counts.run_seconds.record(started.elapsed().as_secs_f64());
        Ok((ended?, started_at))
    }

    fn start<'a>(&'a self, apart: Option<Apart>, context: &'a Context, pass: Pass) -> Result<Call<'a>, NoVerdict> {
        let (pools, task) = (&self.worker.pools, self.origin.task);
        if let Some(apart) = apart {
            let run = async move {
                let _pass = pass;
                apart.run(task, context, self.resources()).await
            };
            return Ok(Call::Apart(run.boxed()));
        }
        let call = self.handler.clone().call(task.args.clone(), task.kwargs.clone(), context.clone());
        let call = call.instrument(span(&task.id, &task.task, task.retries));
        Ok(Call::Here(match self.place {
            Place::Thread => pools.thread(call, pass)?,
            Place::Among | Place::Apart => pools.among(call, pass),
        }))
    }

    async fn within_limits(
        &self,
        mut call: Call<'_>,
        context: &Context,
        started: Instant,
        hard: Duration,
    ) -> Result<Outcome, NoVerdict> {
        let (worker, task) = (self.worker, self.origin.task);
        let outcome = tokio::select! {
            ended = call.ended() => return ended,
            outcome = over(context, started, hard) => outcome,
        };
        let Call::Here(running) = call else { return Ok(outcome) };
        // A blocking handler that looks ends now.
        worker.runs.cancel(self.key, Cancelled::SoftTimeLimit);
        match worker.pools.give_up(running, &task.task, &task.id).await {
            GivenUp::Starved if matches!(outcome, Outcome::TimeLimitExceeded(_)) => Err(NoVerdict::Starved),
            GivenUp::Ended | GivenUp::Held | GivenUp::Starved => Ok(outcome),
        }
    }

    fn resources(&self) -> Option<ResourceLimits> {
        match self.handler.options().execution {
            Execution::Isolated(limits) => Some(limits),
            Execution::Async | Execution::Blocking => None,
        }
    }
}

/// When a run has no more time, and how it ends then: at its hard limit, or some time after it was revoked.
async fn over(context: &Context, started: Instant, hard: Duration) -> Outcome {
    let revoked = async {
        context.cancelled_by(|reason| reason == Cancelled::Revoked).await;
        sleep(REVOKE_GRACE).await;
    };
    tokio::select! {
        () = sleep_until(started + hard) => Outcome::TimeLimitExceeded(hard),
        () = revoked => Outcome::Revoked(REVOKED.to_owned()),
    }
}

/// What every log line of a handler says of its run.
pub(super) fn span(task_id: &str, task: &str, attempt: u32) -> Span {
    tracing::info_span!("task", task_id, task, attempt)
}

/// Publishes the children that the handler submits.
async fn submit(worker: &Worker, origin: &Origin<'_>, mut submissions: mpsc::Receiver<Submission>) -> Infallible {
    // Most tasks have none.
    let Some(first) = submissions.recv().await else { return std::future::pending().await };
    let others = poll_fn(move |cx| submissions.poll_recv(cx));
    stream::iter([first])
        .chain(others)
        .for_each_concurrent(SUBMISSIONS, |submission| async {
            let Submission { task_id, signature, done } = submission;
            let _ = done.send(worker.settle.submit(origin, &task_id, &signature).await);
        })
        .await;
    std::future::pending().await
}

/// Asks the handler to end; the hard limit follows.
async fn cancel_at(worker: &Worker, key: &Key, soft_limit: Option<Instant>) -> Infallible {
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
    started: Instant,
    started_at: OffsetDateTime,
) -> Infallible {
    sleep_until(started + ANNOUNCE_AFTER).await;
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
