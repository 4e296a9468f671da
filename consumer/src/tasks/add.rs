//! `add(x, y)`: the sum of two numbers.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Number;

use crate::context::Context;
use crate::handler::{Handler, TaskError};

pub(crate) struct Add;

/// Adds two numbers. Integers stay integers as long as 64 bits hold the sum.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Args {
    x: Number,
    y: Number,
}

impl Handler for Add {
    const NAME: &'static str = "add";
    type Args = Args;
    type Output = Number;

    async fn run(&self, Args { x, y }: Args, _: Context) -> Result<Number, TaskError> {
        sum(&x, &y)
    }
}

/// Integers stay integers as long as 64 bits hold the sum; beyond that, and with a fraction, it is a float.
pub(crate) fn sum(x: &Number, y: &Number) -> Result<Number, TaskError> {
    let exact = x.as_i128().zip(y.as_i128()).and_then(|(x, y)| Number::from_i128(x.checked_add(y)?));
    let float = || x.as_f64().zip(y.as_f64()).and_then(|(x, y)| Number::from_f64(x + y));
    exact.or_else(float).ok_or_else(|| TaskError::fail("Overflow", format!("{x} + {y} is no number JSON can hold")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;
    use serde_json::json;

    async fn add(args: serde_json::Value) -> Result<String, TaskError> {
        let args = serde_json::from_value(args).unwrap();
        Ok(Add.run(args, TestRun::new().context()).await?.to_string())
    }

    #[tokio::test]
    async fn integers_stay_integers_and_floats_floats() {
        for (x, y, sum) in [
            (json!(40), json!(2), "42"),
            (json!(-3), json!(1), "-2"),
            (json!(0.5), json!(1), "1.5"),
            (json!(1.0), json!(1), "2.0"),
            (json!(i64::MAX), json!(1), "9223372036854775808"),
            (json!(u64::MAX), json!(-1), "18446744073709551614"),
            (json!(u64::MAX), json!(1), "1.8446744073709552e+19"),
        ] {
            assert_eq!(add(json!({"x": x, "y": y})).await.unwrap(), sum);
        }
    }

    #[tokio::test]
    async fn an_infinite_sum_fails_at_once() {
        let error = add(json!({"x": f64::MAX, "y": f64::MAX})).await.unwrap_err();
        assert!(matches!(error, TaskError::Fail { error } if error.kind == "Overflow"));
    }
}
