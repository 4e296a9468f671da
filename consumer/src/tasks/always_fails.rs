//! `always_fails(message)`: every attempt fails with this message.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct AlwaysFails;

/// Fails in every attempt.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// What the error says.
    message: String,
}

impl Handler for AlwaysFails {
    const NAME: &'static str = "always_fails";
    type Args = Args;
    type Output = ();

    async fn run(&self, Args { message }: Args, _: Context) -> Result<(), TaskError> {
        Err(TaskError::retry("AlwaysFails", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;

    #[tokio::test]
    async fn it_fails_with_the_message_and_may_be_retried() {
        let args = Args { message: "as asked".to_owned() };
        let error = AlwaysFails.run(args, TestRun::attempt(7).context()).await.unwrap_err();
        assert!(matches!(&error, TaskError::Retry { delay: None, .. }));
        assert_eq!((error.error().kind.as_str(), error.error().message.as_str()), ("AlwaysFails", "as asked"));
    }
}
