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

use self::frame::{Frames, FromChild, MAX_REPORT, Order, ROOM, Sink, ToChild, Verdict, decode, encode, framed};
pub(crate) use self::serve::serve;
use crate::context::{Cancelled, Context, Submission};
use crate::disposition::Outcome;
use crate::options::ResourceLimits;
use crate::signature::SubmitError;

/// How long a child has from its start to its first word.
const START: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone: it waits for the disk at most.
const REAP: Duration = Duration::from_secs(10);

/// An attempt that came to nothing through no fault of its task's.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoVerdict {
    /// Handlers that do not yield held all threads.
    #[error("others held all threads when its time was over")]
    Starved,
    /// No thread, no process, or no channel to it.
    #[error("no thread or process could be started for it: {0}")]
    Spawn(#[from] std::io::Error),
    /// The process died or hung before it took the task.
    #[error("the process that was started for it did not come up: {0}")]
    Silent(String),
}

/// A process that waits for its task.
pub(super) struct Apart {
    process: Process,
    frames: Frames,
    sink: Sink,
    max_result: usize,
}

/// Starts a process, for results of at most so many bytes. It has no task yet, so no time limit runs.
pub(super) async fn start(max_result: usize) -> Result<Apart, NoVerdict> {
    let (mut process, channel) = spawn()?;
    let (mut frames, sink) = framed(channel, max_result.max(MAX_REPORT).saturating_add(ROOM));
    let first = timeout(START, frames.next()).await;
    if matches!(first, Ok(Some(Ok(ref frame))) if matches!(decode(frame), Ok(FromChild::Ready))) {
        return Ok(Apart { process, frames, sink, max_result });
    }
    Err(NoVerdict::Silent(ended(process.end().await)))
}

impl Apart {
    /// Runs the task's handler in the process, with this context in the worker. Dropping the future kills the process.
    pub(super) async fn run(
        mut self,
        task: &Task,
        context: &Context,
        limits: Option<ResourceLimits>,
    ) -> Result<Outcome, NoVerdict> {
        let order = Order {
            task_id: task.id.clone(),
            task: task.task.clone(),
            attempt: task.retries,
            worker: context.worker().to_owned(),
            args: task.args.clone(),
            kwargs: task.kwargs.clone(),
            time_left: context.time_left(),
            limits,
            max_result: self.max_result,
        };
        if let Err(error) = self.sink.send(encode(&ToChild::Run(Box::new(order)))?).await {
            return Err(NoVerdict::Silent(format!("{error}, {}", ended(self.process.end().await))));
        }
        let verdict = self.converse(context).await;
        let status = self.process.end().await;
        Ok(match verdict {
            Ok(verdict) => outcome_of(verdict),
            Err(None) => died(&ended(status), limits),
            Err(Some(error)) => died(&format!("it did not keep to its channel's language: {error}"), None),
        })
    }

    /// Passes on what context and child have to say until the call has ended; without a verdict when the child is gone, or
    /// says what cannot be understood.
    async fn converse(&mut self, context: &Context) -> Result<Verdict, Option<std::io::Error>> {
        let Self { frames, sink, .. } = self;
        let (mut told, mut listens): (Option<Cancelled>, bool) = (None, true);
        let mut submissions = FuturesUnordered::new();
        loop {
            let answer = tokio::select! {
                // First what the child has said: it may have ended while there was something to tell it.
                biased;
                frame = frames.next() => {
                    match frame.ok_or(None)?.and_then(|frame| decode(&frame)).map_err(Some)? {
                        FromChild::Ended(verdict) => return Ok(verdict),
                        FromChild::Submit(number, task_id, signature) => {
                            let (done, answer) = oneshot::channel();
                            let submission = Submission { task_id, signature, done };
                            submissions.push(pass_on(context.clone(), number, submission, answer));
                        }
                        FromChild::Progress(progress) => context.report(progress),
                        FromChild::Ready => {}
                    }
                    continue;
                }
                reason = context.cancelled_by(|reason| Some(reason) > told) => {
                    told = Some(reason);
                    ToChild::Cancel(reason)
                }
                Some((number, result)) = submissions.next() => ToChild::Submitted(number, result),
            };
            // One that does not listen any more may have said its last word.
            if listens {
                listens = sink.send(encode(&answer).map_err(Some)?).await.is_ok();
            }
        }
    }
}

fn spawn() -> std::io::Result<(Process, UnixStream)> {
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
    // What its allocator keeps would count as its task's.
    command.env("_RJEM_MALLOC_CONF", "retain:false");
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

fn died(how: &str, limits: Option<ResourceLimits>) -> Outcome {
    let bounds = limits.map(|limits| {
        format!("; it might use {} MiB of memory and {} s of CPU", limits.memory >> 20, limits.cpu.as_secs())
    });
    Outcome::Died(format!("the process that ran it alone died: {how}{}", bounds.unwrap_or_default()))
}

fn ended(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "it cannot be ended".to_owned() };
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::XCPU) => "its CPU time was used up".to_owned(),
        Some(signal) => format!("signal {}", signal.as_raw()),
        None => status.to_string(),
    }
}
