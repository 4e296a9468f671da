//! `echo(value)`: returns any JSON as it came.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct Echo;

/// Returns its argument, to the digit.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    /// Any JSON.
    // The text itself: parsed, an integer over 64 bits would lose digits.
    value: Box<RawValue>,
}

impl Handler for Echo {
    const NAME: &'static str = "echo";
    type Args = Args;
    type Output = Box<RawValue>;

    async fn run(&self, Args { value }: Args, _: Context) -> Result<Box<RawValue>, TaskError> {
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::from_call;
    use crate::testing::TestRun;

    #[tokio::test]
    async fn every_digit_comes_back() {
        for json in ["1180591620717411303424", "1.10", "null", r#"{"b": [1], "a": "é"}"#] {
            let raw = |json: String| RawValue::from_string(json).unwrap();
            let args = from_call(&raw(format!("[{json}]")), &raw("{}".to_owned())).unwrap();
            let value = Echo.run(args, TestRun::new().context()).await.unwrap();
            assert_eq!(value.get(), json);
        }
    }
}
