//! Runs a handler in a unit test: no broker, no worker, and everything that it told is there to look at.
//!
//! ```
//! # use consumer::context::Context;
//! # use consumer::handler::{Handler, TaskError};
//! # use consumer::testing::TestRun;
//! # struct Greet;
//! # impl Handler for Greet {
//! #     const NAME: &'static str = "greet";
//! #     type Args = (String,);
//! #     type Output = String;
//! #     async fn run(&self, (name,): (String,), ctx: Context) -> Result<String, TaskError> {
//! #         ctx.progress(1, 1);
//! #         Ok(format!("hello {name}"))
//! #     }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let run = TestRun::new();
//! let greeting = run.call(Greet, r#"["Ada"]"#, "{}").await.unwrap();
//! assert_eq!(greeting.get(), r#""hello Ada""#);
//! assert_eq!(run.progress().len(), 1);
//! # }
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use protocol::reply::Progress;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::context::{Cancelled, Context, ContextControl, ContextParts, Submission};
use crate::handler::{Handler, TaskError};
use crate::registry::{ErasedHandler, Registry};
use crate::signature::Signature;

/// One run of a handler, with a context that records.
#[derive(Debug)]
pub struct TestRun {
    context: Context,
    control: ContextControl,
    submissions: tokio::sync::Mutex<mpsc::Receiver<Submission>>,
    submitted: Mutex<Vec<Signature>>,
}

impl Default for TestRun {
    fn default() -> Self {
        Self::attempt(0)
    }
}

impl TestRun {
    /// The first attempt of a task with the id `test`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// This attempt of it, from 0.
    #[must_use]
    pub fn attempt(attempt: u32) -> Self {
        let [task_id, task, worker] = ["test", "test", "test"].map(str::to_owned);
        let (context, control, submissions) =
            Context::recording(ContextParts { task_id, task, attempt, worker, deadline: None });
        let submissions = tokio::sync::Mutex::new(submissions);
        Self { context, control, submissions, submitted: Mutex::default() }
    }

    /// The context, for a handler that is called directly. What it then submits is answered by [`run`](Self::run) and
    /// [`call`](Self::call) only.
    #[must_use]
    pub fn context(&self) -> Context {
        self.context.clone()
    }

    /// Runs the handler with these arguments.
    ///
    /// # Errors
    /// The handler's.
    pub async fn run<H: Handler>(&self, handler: &H, args: H::Args) -> Result<H::Output, TaskError> {
        self.beside(handler.run(args, self.context())).await
    }

    /// Runs the handler as the worker does: `args` is a JSON array, `kwargs` a JSON object, the result JSON too.
    ///
    /// # Errors
    /// The handler's, or `InvalidArguments`.
    pub async fn call<H: Handler>(&self, handler: H, args: &str, kwargs: &str) -> Result<Box<RawValue>, TaskError> {
        self.call_erased(Arc::new(handler), args, kwargs).await
    }

    /// The same with a task of a registry, `NotRegistered` when it has none of that name.
    ///
    /// # Errors
    /// The handler's, `InvalidArguments`, or `NotRegistered`.
    pub async fn call_task(
        &self,
        registry: &Registry,
        task: &str,
        args: &str,
        kwargs: &str,
    ) -> Result<Box<RawValue>, TaskError> {
        let handler = registry.get(task).ok_or_else(|| TaskError::fail("NotRegistered", task))?;
        self.call_erased(handler, args, kwargs).await
    }

    async fn call_erased(
        &self,
        handler: Arc<dyn ErasedHandler>,
        args: &str,
        kwargs: &str,
    ) -> Result<Box<RawValue>, TaskError> {
        let raw = |json: &str| {
            RawValue::from_string(json.to_owned())
                .map_err(|error| TaskError::fail("InvalidArguments", error.to_string()))
        };
        let call = handler.call(raw(args)?, raw(kwargs)?, self.context());
        self.beside(call).await.map_err(TaskError::from)
    }

    /// Asks the run to end.
    pub fn cancel(&self, reason: Cancelled) {
        self.control.cancel(reason);
    }

    /// All progress that was reported, in order.
    #[must_use]
    pub fn progress(&self) -> Vec<Progress> {
        self.context.recorded()
    }

    /// The children that were submitted, in order.
    #[must_use]
    pub fn submitted(&self) -> Vec<Signature> {
        self.submitted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs it, and takes every child that it submits.
    async fn beside<T>(&self, run: impl Future<Output = T>) -> T {
        let mut submissions = self.submissions.lock().await;
        tokio::pin!(run);
        loop {
            tokio::select! {
                ended = &mut run => return ended,
                Some(submission) = submissions.recv() => {
                    self.submitted.lock().unwrap_or_else(PoisonError::into_inner).push(*submission.signature);
                    let _ = submission.done.send(Ok(()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fan;

    impl Handler for Fan {
        const NAME: &'static str = "fan";
        type Args = (u8,);
        type Output = Vec<String>;

        async fn run(&self, (count,): (u8,), ctx: Context) -> Result<Vec<String>, TaskError> {
            let mut ids = Vec::new();
            for n in 0..count {
                ctx.progress(u64::from(n), u64::from(count));
                ids.push(ctx.submit(Signature::new("page").arg(n)).await?);
            }
            Ok(ids)
        }
    }

    #[tokio::test]
    async fn what_a_handler_told_is_recorded() {
        let run = TestRun::new();
        let ids = run.run(&Fan, (2,)).await.unwrap();
        assert_eq!((ids.len(), run.progress().len()), (2, 2));
        let pages: Vec<String> = run.submitted().iter().map(|child| child.args_json().to_string()).collect();
        assert_eq!(pages, ["[0]", "[1]"]);
        assert_eq!(TestRun::attempt(1).run(&Fan, (2,)).await.unwrap(), ids);
    }

    #[tokio::test]
    async fn a_call_checks_the_arguments() {
        let error = TestRun::new().call(Fan, "[300]", "{}").await.unwrap_err();
        assert!(matches!(&error, TaskError::Fail { error } if error.kind == "InvalidArguments"), "{error:?}");
    }
}
