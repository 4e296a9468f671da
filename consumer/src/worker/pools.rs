//! Where handlers run: among others on a few threads, on a thread of their own, or apart in a process.
//!
//! None of them can be stopped by force but a process. A handler that goes on after its time limit keeps its thread;
//! when no thread is left the worker ends gracefully and starts again.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::gates::Pass;
use crate::disposition::Outcome;
use crate::registry::CallError;

/// A handler has this long to end after its hard limit before its thread counts as held.
const HELD_AFTER: Duration = Duration::from_secs(1);

/// What a handler's call comes to.
type Called = Result<Box<RawValue>, CallError>;

/// The threads of this worker's handlers.
pub(super) struct Pools {
    among: Pool,
    threads: Pool,
    runtime: runtime::Handle,
    /// What looks after calls that are over their limit. Nothing waits for it.
    strays: TaskTracker,
    /// Cancelled when handlers hold all threads of a pool.
    exhausted: CancellationToken,
}

struct Pool {
    name: &'static str,
    size: usize,
    held: Arc<AtomicUsize>,
}

/// A call that was started.
pub(super) enum Running {
    /// Among others, and whether it is being polled just now.
    Among(AbortOnDropHandle<Called>, Arc<AtomicBool>),
    /// On a thread; dropping the guard ends it at its next `await`.
    Thread(oneshot::Receiver<Outcome>, DropGuard),
}

/// What became of a call that was over its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It is gone.
    Ended,
    /// It goes on and keeps its thread.
    Held,
    /// It waits for a thread that others hold: that it did not end in time is not its fault.
    Starved,
}

impl Pools {
    /// Of a runtime with that many threads, and that many threads of their own.
    pub(super) fn new(runtime: runtime::Handle, threads: u16, exhausted: CancellationToken) -> Self {
        let pool = |name, size| Pool { name, size, held: Arc::default() };
        Self {
            among: pool("async", runtime.metrics().num_workers()),
            threads: pool("blocking", usize::from(threads)),
            runtime,
            strays: TaskTracker::new(),
            exhausted,
        }
    }

    /// Starts a call among the others.
    pub(super) fn among(&self, mut call: impl Future<Output = Called> + Send + Unpin + 'static, pass: Pass) -> Running {
        let polled = Arc::new(AtomicBool::new(false));
        let flag = polled.clone();
        let call = async move {
            let _pass = pass;
            poll_fn(|cx| {
                flag.store(true, Ordering::Relaxed);
                let called = Pin::new(&mut call).poll(cx);
                flag.store(false, Ordering::Relaxed);
                called
            })
            .await
        };
        Running::Among(AbortOnDropHandle::new(self.runtime.spawn(call)), polled)
    }

    /// Starts a call on a thread of its own. The pass bounds their number.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(super) fn thread(
        &self,
        call: impl Future<Output = Called> + Send + 'static,
        pass: Pass,
    ) -> std::io::Result<Running> {
        let (ended, outcome) = oneshot::channel();
        let cut = CancellationToken::new();
        let (runtime, token) = (self.runtime.clone(), cut.clone());
        thread::Builder::new().name("blocking".to_owned()).spawn(move || {
            let _pass = pass;
            let call = AssertUnwindSafe(token.run_until_cancelled(call)).catch_unwind();
            let outcome = match runtime.block_on(call) {
                Ok(Some(called)) => outcome_of(called),
                Ok(None) => return,
                Err(panic) => Outcome::Panicked(panic_message(&*panic)),
            };
            let _ = ended.send(outcome);
        })?;
        Ok(Running::Thread(outcome, cut.drop_guard()))
    }

    /// Gives up a call that is over its hard limit. One that goes on all the same is reported.
    pub(super) async fn give_up(&self, running: Running, task: &str, task_id: &str) -> GivenUp {
        let (pool, polled, mut ended): (&Pool, bool, BoxFuture<'static, ()>) = match running {
            Running::Among(call, polled) => {
                call.abort();
                (&self.among, polled.load(Ordering::Relaxed), call.map(drop).boxed())
            }
            Running::Thread(outcome, cut) => {
                drop(cut);
                (&self.threads, true, outcome.map(drop).boxed())
            }
        };
        if timeout(HELD_AFTER, &mut ended).await.is_ok() {
            return GivenUp::Ended;
        }
        if !polled {
            return GivenUp::Starved;
        }
        let held = pool.hold(task, task_id);
        if held.is_last() {
            tracing::error!(pool = pool.name, "no thread is left for tasks: the worker ends and starts again");
            self.exhausted.cancel();
        }
        self.strays.spawn(async move {
            ended.await;
            drop(held);
        });
        GivenUp::Held
    }
}

impl Pool {
    fn hold(&self, task: &str, task_id: &str) -> Held {
        let Self { name, size, ref held } = *self;
        let count = held.fetch_add(1, Ordering::Relaxed) + 1;
        metrics::gauge!("errand_held_threads", "pool" => name).increment(1.0);
        let what = "a handler goes on after its time limit and keeps its thread";
        tracing::error!(task, task_id, pool = name, held = count, of = size, "{what}");
        let (task, task_id) = (task.to_owned(), task_id.to_owned());
        Held { pool: name, last: count >= size, count: held.clone(), task, task_id }
    }
}

/// A thread that a handler keeps after its limit, until it ends.
struct Held {
    pool: &'static str,
    last: bool,
    count: Arc<AtomicUsize>,
    task: String,
    task_id: String,
}

impl Held {
    const fn is_last(&self) -> bool {
        self.last
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("errand_held_threads", "pool" => self.pool).decrement(1.0);
        let (task, task_id) = (&self.task, &self.task_id);
        tracing::warn!(task, task_id, pool = self.pool, "a handler ended after its time limit");
    }
}

impl Running {
    /// How the call ends. Cancel safe.
    pub(super) async fn outcome(&mut self) -> Outcome {
        match self {
            Self::Among(call, _) => match call.await {
                Ok(called) => outcome_of(called),
                Err(error) => Outcome::Panicked(panic_of(error)),
            },
            Self::Thread(outcome, _) => {
                outcome.await.unwrap_or_else(|_| Outcome::Panicked("the handler's thread was lost".to_owned()))
            }
        }
    }
}

fn outcome_of(called: Called) -> Outcome {
    match called {
        Ok(result) => Outcome::Returned(result),
        Err(error) => Outcome::Failed(error.into()),
    }
}

fn panic_of(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic_message(&*panic),
        Err(_) => "the handler's task was aborted".to_owned(),
    }
}

/// What a panic said.
pub(in crate::worker) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "the handler panicked".to_owned())
}
