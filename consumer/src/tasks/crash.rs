//! `crash()`: a fault task that takes the worker's whole process with it.

use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct Crash;

impl Handler for Crash {
    const NAME: &'static str = "crash";
    type Args = ();
    type Output = ();

    async fn run(&self, (): (), _: Context) -> Result<(), TaskError> {
        std::process::abort();
    }
}
