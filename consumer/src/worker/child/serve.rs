//! The child's end: takes the task from the channel, runs its handler, says how it ended.
//!
//! The handler has the main thread, the channel a thread of its own, so that a handler which blocks still hears that it
//! is to end, and dies with the worker.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{FutureExt, SinkExt, StreamExt};
use protocol::reply::{ErrorInfo, Progress};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, kill_current_process_group, setrlimit, setsid};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::frame::{Frames, FromChild, MAX_CALL, Order, Sink, ToChild, Verdict, decode, encode, framed};
use crate::context::{Context, ContextControl, ContextParts, Submission};
use crate::disposition::bounded;
use crate::handler::TaskError;
use crate::options::ResourceLimits;
use crate::registry::Registry;
use crate::signature::SubmitError;
use crate::worker::pools::panic_message;
use crate::worker::run::span;

/// The least time between two reports of progress; the worker passes on fewer still.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Submissions that await their answer.
const SUBMISSIONS: usize = 32;

/// Runs the task that the worker sends over standard input, and ends the process.
///
/// # Errors
/// Standard input is not the worker's channel.
pub(crate) fn serve(registry: &Registry) -> anyhow::Result<()> {
    let channel = take_channel().context("`child` is started by a worker, which sends the task over standard input")?;
    setsid()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    // A worker that is told to end lets its runs end: whoever signals everything must not end them before.
    let _deaf =
        runtime.block_on(async { anyhow::Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)) })?;
    let (orders, order) = std::sync::mpsc::sync_channel(1);
    let (verdicts, verdict) = oneshot::channel();
    std::thread::Builder::new().name("channel".to_owned()).spawn(move || {
        let spoken = Builder::new_current_thread()
            .enable_all()
            .build()
            .and_then(|runtime| runtime.block_on(speak(channel, &orders, verdict)));
        if let Err(error) = spoken {
            tracing::debug!(%error, "the worker is gone");
        }
        // What the handler started goes with it.
        let _ = kill_current_process_group(Signal::KILL);
    })?;
    let (order, context) = order.recv()?;
    restrict(order.limits)?;
    let verdict = run(&runtime, registry, order, context);
    let _ = verdicts.send(verdict);
    // The channel's thread ends the process.
    loop {
        std::thread::park();
    }
}

/// Standard input becomes empty for the handler and what it starts.
fn take_channel() -> anyhow::Result<UnixStream> {
    let channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    channel.peer_addr()?;
    channel.set_nonblocking(true)?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(channel)
}

/// No core file of a task that crashes on purpose or by its arguments; and the limits of an isolated one.
fn restrict(limits: Option<ResourceLimits>) -> anyhow::Result<()> {
    bound(Resource::Core, 0, 0)?;
    if let Some(limits) = limits {
        bound(Resource::Data, limits.memory, limits.memory)?;
        let cpu = limits.cpu.as_secs().max(1);
        // The signal at the first says why, the one at the second cannot be ignored.
        bound(Resource::Cpu, cpu, cpu + 5)?;
    }
    Ok(())
}

/// What the system has forbidden already stays forbidden: only root may raise it.
fn bound(resource: Resource, current: u64, maximum: u64) -> anyhow::Result<()> {
    let least = |limit: u64| Some(getrlimit(resource).maximum.map_or(limit, |before| before.min(limit)));
    Ok(setrlimit(resource, Rlimit { current: least(current), maximum: least(maximum) })?)
}

fn run(runtime: &Runtime, registry: &Registry, order: Order, context: Context) -> Verdict {
    let Some(handler) = registry.get(&order.task) else {
        return Verdict::Failed(TaskError::fail("NotRegistered", order.task));
    };
    let span = span(&order.task_id, &order.task, order.attempt);
    let call = handler.call(order.args, order.kwargs, context).instrument(span);
    match runtime.block_on(AssertUnwindSafe(call).catch_unwind()) {
        Ok(Ok(result)) if result.get().len() > order.max_result => Verdict::TooLarge(result.get().len()),
        Ok(Ok(result)) => Verdict::Returned(result),
        Ok(Err(error)) => Verdict::Failed(TaskError::from(error).map(bounded)),
        Err(panic) => Verdict::Panicked(bounded(ErrorInfo::new("Panic", panic_message(&*panic))).message),
    }
}

type Answers = HashMap<u64, oneshot::Sender<Result<(), SubmitError>>>;

/// The child's half of the conversation, until the verdict is sent or the worker is gone.
async fn speak(
    channel: UnixStream,
    orders: &std::sync::mpsc::SyncSender<(Order, Context)>,
    mut verdict: oneshot::Receiver<Verdict>,
) -> std::io::Result<()> {
    let (mut frames, mut sink) = framed(tokio::net::UnixStream::from_std(channel)?, MAX_CALL);
    say(&mut sink, &FromChild::Ready).await?;
    let ToChild::Run(order) = hear(&mut frames).await? else { return Err(std::io::ErrorKind::InvalidData.into()) };
    let parts = ContextParts {
        task_id: order.task_id.clone(),
        task: order.task.clone(),
        attempt: order.attempt,
        worker: order.worker.clone(),
        deadline: order.time_left.map(|left| Instant::now() + left),
    };
    let (context, control, mut submitted) = Context::new(parts);
    let mut progress = Reports::of(&control);
    let _ = orders.send((*order, context));
    let (mut answers, mut number) = (Answers::new(), 0);
    loop {
        tokio::select! {
            biased;
            frame = hear(&mut frames) => match frame? {
                ToChild::Cancel(reason) => control.cancel(reason),
                ToChild::Submitted(number, result) => {
                    let _ = answers.remove(&number).map(|done| done.send(result));
                }
                ToChild::Run(_) => {}
            },
            // So many await their answer at once; the handler's others wait on its side of the channel.
            Some(Submission { task_id, signature, done }) = submitted.recv(), if answers.len() < SUBMISSIONS => {
                number += 1;
                answers.insert(number, done);
                say(&mut sink, &FromChild::Submit(number, task_id, signature)).await?;
            }
            latest = progress.next() => say(&mut sink, &FromChild::Progress(latest)).await?,
            Ok(verdict) = &mut verdict => {
                if let Some(latest) = progress.unsaid() {
                    say(&mut sink, &FromChild::Progress(latest)).await?;
                }
                return say(&mut sink, &FromChild::Ended(verdict)).await;
            }
        }
    }
}

async fn say(sink: &mut Sink, frame: &FromChild) -> std::io::Result<()> {
    sink.send(encode(frame)?).await
}

async fn hear(frames: &mut Frames) -> std::io::Result<ToChild> {
    let frame = frames.next().await.ok_or(std::io::ErrorKind::UnexpectedEof)??;
    decode(&frame)
}

/// The handler's reports of progress, the latest every so often.
struct Reports {
    latest: watch::Receiver<Option<Progress>>,
    not_before: Instant,
}

impl Reports {
    fn of(control: &ContextControl) -> Self {
        Self { latest: control.progress(), not_before: Instant::now() }
    }

    /// The next report. Cancel safe.
    async fn next(&mut self) -> Progress {
        loop {
            sleep_until(self.not_before).await;
            if self.latest.changed().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(latest) = self.latest.borrow_and_update().clone() {
                self.not_before = Instant::now() + PROGRESS_EVERY;
                return latest;
            }
        }
    }

    fn unsaid(&mut self) -> Option<Progress> {
        let changed = self.latest.has_changed().unwrap_or(true);
        if changed { self.latest.borrow_and_update().clone() } else { None }
    }
}
