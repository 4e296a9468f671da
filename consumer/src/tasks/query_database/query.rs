//! One query that an operator allows, whatever database it asks.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::handler::TaskError;

/// A query, checked.
pub(super) struct Query {
    pub(super) sql: Arc<str>,
    pub(super) params: Vec<String>,
    pub(super) max_rows: usize,
}

impl Query {
    /// The values in the order of the query's parameters.
    pub(super) fn arguments(&self, mut given: Map<String, Value>) -> Result<Vec<Value>, TaskError> {
        let invalid = |what: String| TaskError::fail("InvalidArguments", format!("argument `params`: {what}"));
        let take = |name: &String| given.remove(name).ok_or_else(|| invalid(format!("missing `{name}`")));
        let values = self.params.iter().map(take).collect::<Result<_, _>>()?;
        match given.keys().next() {
            Some(name) => Err(invalid(format!("unexpected `{name}`"))),
            None => Ok(values),
        }
    }

    /// Whether the statement has as many parameters as it was given names for.
    pub(super) fn expects(&self, parameters: usize) -> Result<(), TaskError> {
        if parameters == self.params.len() {
            return Ok(());
        }
        let named = self.params.len();
        let message = format!("the query has {parameters} parameters, its `params` in QUERIES_FILE name {named}");
        Err(TaskError::fail("QueryFailed", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_put_in_order_and_none_is_missing_or_left_over() {
        let params = ["b", "a"].map(str::to_owned).to_vec();
        let query = Query { sql: "select $1, $2".into(), params, max_rows: 1 };
        let arguments = |given: Value| query.arguments(serde_json::from_value(given).unwrap());
        assert_eq!(arguments(json!({"a": 1, "b": null})).unwrap(), [json!(null), json!(1)]);
        for (given, why) in [(json!({"a": 1}), "missing `b`"), (json!({"a": 1, "b": 2, "c": 3}), "unexpected `c`")] {
            let error = arguments(given).unwrap_err();
            assert!(error.error().kind == "InvalidArguments" && error.error().message.contains(why), "{error:?}");
        }
    }
}
