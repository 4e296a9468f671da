//! Runs one task in a process of its own: the same executable, started again with the command `child`.
//!
//! This is the worker's end; [`serve`] is the child's. The child is alone to blame for its death, takes what it started
//! with it, and ends when the worker does.

mod frame;
mod serve;

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt, StreamExt};
use protocol::task::Task;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::frame::{Frames, FromChild, Order, ROOM, Sink, ToChild, Verdict, decode, encode, framed};
pub(crate) use self::serve::serve;
use crate::context::{Cancelled, Context, Submission};
use crate::disposition::Outcome;
use crate::options::ResourceLimits;
use crate::signature::SubmitError;

/// How long a child has from its start to its first word.
const START: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone: it waits for the disk at most.
const REAP: Duration = Duration::from_secs(10);

/// A task that could not run, through no fault of its own.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStarted {
    /// Handlers that do not yield hold all threads.
    #[error("others held all threads until its time was over")]
    Starved,
    /// No thread, no process, or no channel to it.
    #[error("no thread or process could be started for it: {0}")]
    Spawn(#[from] std::io::Error),
    /// The process died or hung before it took the task.
    #[error("the process that was started for it did not come up: {0}")]
    Silent(String),
}

/// Runs the task's handler in a child, with this context in the worker. Dropping the future kills the child.
pub(super) async fn run(
    task: &Task,
    context: &Context,
    limits: Option<ResourceLimits>,
    max_result: usize,
) -> Result<Outcome, NotStarted> {
    let (mut process, channel) = start()?;
    let (mut frames, mut sink) = framed(channel, max_result + ROOM);
    let order = Order {
        task_id: task.id.clone(),
        task: task.task.clone(),
        attempt: task.retries,
        worker: context.worker().to_owned(),
        args: task.args.clone(),
        kwargs: task.kwargs.clone(),
        time_left: context.time_left(),
        limits,
        max_result,
    };
    let ready = timeout(START, frames.next()).await;
    if !matches!(ready, Ok(Some(Ok(ref frame))) if matches!(decode(frame), Ok(FromChild::Ready))) {
        let status = process.end().await;
        return Err(NotStarted::Silent(status.map_or_else(|| "it does not end".to_owned(), how)));
    }
    let sent = sink.send(encode(&ToChild::Run(Box::new(order)))?).await;
    let verdict = match sent {
        Ok(()) => converse(&mut frames, &mut sink, context).await,
        Err(_) => None,
    };
    let status = process.end().await;
    Ok(verdict.map_or_else(|| died(status, limits), outcome_of))
}

fn start() -> std::io::Result<(Process, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).arg("child");
    // It talks to nobody but the worker.
    command.env_remove("AMQP_URL").env_remove("AMQP_URL_FILE");
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).kill_on_drop(true).spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    Ok((Process { group, child }, UnixStream::from_std(ours)?))
}

/// A child with all that it started. Dropping it kills them.
struct Process {
    /// Its process group, which has its id, until it was waited for: afterwards the number may be another's.
    group: Option<Pid>,
    child: Child,
}

impl Process {
    /// Kills what is left of the group and waits for the child; `None` when it does not end.
    async fn end(&mut self) -> Option<ExitStatus> {
        // Before the wait: while the child is a zombie its number is not given to another.
        self.kill();
        let status = timeout(REAP, self.child.wait()).await.ok()?.ok();
        self.group = None;
        status
    }

    fn kill(&mut self) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
            // It may not have made its group yet.
            let _ = self.child.start_kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Passes on what context and child have to say until the call has ended; `None` when the child is gone.
async fn converse(frames: &mut Frames, sink: &mut Sink, context: &Context) -> Option<Verdict> {
    let mut told: Option<Cancelled> = None;
    let mut submissions = FuturesUnordered::new();
    loop {
        let answer = tokio::select! {
            frame = frames.next() => match decode(&frame?.ok()?).ok()? {
                FromChild::Ended(verdict) => return Some(verdict),
                FromChild::Submit(number, task_id, signature) => {
                    let (done, answer) = oneshot::channel();
                    let submission = Submission { task_id, signature: *signature, done };
                    submissions.push(pass_on(context.clone(), number, submission, answer));
                    continue;
                }
                FromChild::Progress(progress) => {
                    context.report(progress);
                    continue;
                }
                FromChild::Ready => continue,
            },
            reason = context.cancelled_by(|reason| Some(reason) > told) => {
                told = Some(reason);
                ToChild::Cancel(reason)
            }
            Some((number, result)) = submissions.next() => ToChild::Submitted(number, result),
        };
        // A child that does not read dies of its time limit.
        sink.send(encode(&answer).ok()?).await.ok()?;
    }
}

async fn pass_on(
    context: Context,
    number: u64,
    submission: Submission,
    answer: oneshot::Receiver<Result<(), SubmitError>>,
) -> (u64, Result<(), SubmitError>) {
    let gone = || Err(SubmitError::Unavailable("the run has ended".to_owned()));
    if context.submissions().send(submission).await.is_err() {
        return (number, gone());
    }
    (number, answer.await.unwrap_or_else(|_| gone()))
}

fn outcome_of(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Returned(result) => Outcome::Returned(result),
        Verdict::TooLarge(bytes) => Outcome::TooLarge(bytes),
        Verdict::Failed(error) => Outcome::Failed(error),
        Verdict::Panicked(message) => Outcome::Panicked(message),
    }
}

fn died(status: Option<ExitStatus>, limits: Option<ResourceLimits>) -> Outcome {
    let how = status.map_or_else(|| "it closed its channel".to_owned(), how);
    let bounds = limits.map(|limits| {
        format!("; it might use {} MiB of memory and {} s of CPU", limits.memory >> 20, limits.cpu.as_secs())
    });
    Outcome::Died(format!("the process that ran it alone died: {how}{}", bounds.unwrap_or_default()))
}

fn how(status: ExitStatus) -> String {
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::XCPU) => "its CPU time was used up".to_owned(),
        Some(signal) => format!("signal {}", signal.as_raw()),
        None => status.to_string(),
    }
}
