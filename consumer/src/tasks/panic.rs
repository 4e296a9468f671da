//! `panic()`: a fault task whose handler panics.

use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct Panic;

impl Handler for Panic {
    const NAME: &'static str = "panic";
    type Args = ();
    type Output = ();

    #[expect(clippy::panic, reason = "this is what the task is for")]
    async fn run(&self, (): (), _: Context) -> Result<(), TaskError> {
        panic!("the task asked for it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;

    #[tokio::test]
    #[should_panic(expected = "the task asked for it")]
    async fn it_panics() {
        let _ = Panic.run((), TestRun::new().context()).await;
    }
}
