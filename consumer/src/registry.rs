//! Which handler runs which task, and the erasure of their types.
//!
//! It neither catches panics nor keeps time: both are the worker's.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use protocol::heartbeat::TaskType;
use schemars::schema_for;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::args::{InvalidArguments, fields, from_call};
use crate::context::Context;
use crate::handler::{Handler, TaskError};
use crate::options::{Execution, TaskOptions};

/// A [`Handler`] without its types. Every handler is one.
pub trait ErasedHandler: Send + Sync {
    /// Where it runs, its limits, its retries.
    fn options(&self) -> TaskOptions;

    /// What others are told of it.
    fn task_type(&self) -> TaskType;

    /// Runs one attempt, from JSON to JSON. The arguments are parsed when the future is first polled, so that a panic
    /// in parsing them is the run's.
    fn call(
        self: Arc<Self>,
        args: Box<RawValue>,
        kwargs: Box<RawValue>,
        ctx: Context,
    ) -> BoxFuture<'static, Result<Box<RawValue>, CallError>>;
}

impl<H: Handler> ErasedHandler for H {
    fn options(&self) -> TaskOptions {
        H::OPTIONS
    }

    fn task_type(&self) -> TaskType {
        let options = H::OPTIONS;
        let arguments = schema_for!(H::Args).to_value();
        let (positional, aliases) = names(&arguments, fields::<H::Args>());
        TaskType {
            name: H::NAME.to_owned(),
            arguments,
            positional,
            aliases,
            result: schema_for!(H::Output).to_value(),
            execution: match options.execution {
                Execution::Async => "async",
                Execution::Blocking => "blocking",
                Execution::Isolated(_) => "isolated",
            }
            .to_owned(),
            retry: options.retry.unwrap_or_default(),
            time_limit: options.time_limit.map(|limit| limit.as_secs_f64()),
            soft_time_limit: options.soft_time_limit.map(|limit| limit.as_secs_f64()),
            concurrency_limit: options.concurrency_limit.map(std::num::NonZeroU32::get),
            rate_limit: options.rate_limit.map(|limit| limit.to_string()),
            redacted: options.redacted.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    fn call(
        self: Arc<Self>,
        args: Box<RawValue>,
        kwargs: Box<RawValue>,
        ctx: Context,
    ) -> BoxFuture<'static, Result<Box<RawValue>, CallError>> {
        Box::pin(async move {
            let parsed =
                from_call(&args, &kwargs).map_err(|error| CallError::InvalidArguments(redacted::<H>(error)))?;
            // A run may last; what it was called with is not held twice meanwhile.
            drop((args, kwargs));
            let output = self.run(parsed, ctx).await.map_err(CallError::Task)?;
            to_raw_value(&output).map_err(CallError::Unserializable)
        })
    }
}

/// Splits the names of a struct's fields by the schema of its type: those that it knows, in order, and the others, which
/// are aliases. When the schema knows more than the struct does, whoever wrote it knows better which is which.
fn names(schema: &Value, fields: Option<&[&str]>) -> (Option<Vec<String>>, Vec<String>) {
    let Some(fields) = fields else { return (None, Vec::new()) };
    let known = schema["properties"].as_object();
    if known.is_none() && !fields.is_empty() {
        return (None, Vec::new());
    }
    let is_known = |name: &&str| known.is_some_and(|known| known.contains_key(*name));
    let (own, aliases): (Vec<&str>, Vec<&str>) = fields.iter().partition(|name| is_known(name));
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    if own.len() == known.map_or(0, serde_json::Map::len) {
        (Some(owned(own)), owned(aliases))
    } else {
        (None, Vec::new())
    }
}

/// The error without what is shown to nobody. Where a field has two names, or none, an error may name it by another than
/// the handler does, and then no value is shown.
fn redacted<H: Handler>(error: InvalidArguments) -> InvalidArguments {
    let names = H::OPTIONS.redacted;
    if names.is_empty() {
        return error;
    }
    let (positional, aliases) = self::names(&schema_for!(H::Args).to_value(), fields::<H::Args>());
    error.redacted(names, positional.is_none() || !aliases.is_empty())
}

/// Why a call has no result.
#[derive(Debug)]
pub enum CallError {
    /// The arguments do not fit the handler's; it was not run.
    InvalidArguments(InvalidArguments),
    /// The handler said so.
    Task(TaskError),
    /// What the handler returned is not JSON, for instance a map whose keys are not strings.
    Unserializable(serde_json::Error),
}

impl From<CallError> for TaskError {
    /// What is not the handler's own decision fails at once: the next attempt would meet the same.
    fn from(error: CallError) -> Self {
        match error {
            CallError::Task(error) => error,
            CallError::InvalidArguments(error) => Self::fail("InvalidArguments", error.to_string()),
            CallError::Unserializable(error) => Self::fail("UnserializableResult", error.to_string()),
        }
    }
}

/// The tasks that a worker knows.
#[derive(Default)]
pub struct Registry {
    handlers: BTreeMap<&'static str, Arc<dyn ErasedHandler>>,
    duplicates: Vec<&'static str>,
}

impl Registry {
    /// No task yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more task. When its name is taken, the earlier handler stays, and the name is one of the
    /// [`duplicates`](Self::duplicates).
    #[must_use]
    pub fn register<H: Handler>(mut self, handler: H) -> Self {
        if self.handlers.contains_key(H::NAME) {
            self.duplicates.push(H::NAME);
        } else {
            self.handlers.insert(H::NAME, Arc::new(handler));
        }
        self
    }

    /// The handler of the task of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<dyn ErasedHandler>> {
        self.handlers.get(name).cloned()
    }

    /// What others are told of every task, sorted by name.
    #[must_use]
    pub fn task_types(&self) -> Vec<TaskType> {
        self.handlers.values().map(|handler| handler.task_type()).collect()
    }

    /// Every task's name and options.
    pub(crate) fn options(&self) -> impl Iterator<Item = (&'static str, TaskOptions)> {
        self.handlers.iter().map(|(name, handler)| (*name, handler.options()))
    }

    /// The names of all tasks, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.handlers.keys().copied()
    }

    /// Names that were registered again. A worker refuses to start when there are any: which handler was meant is
    /// anyone's guess.
    #[must_use]
    pub fn duplicates(&self) -> &[&'static str] {
        &self.duplicates
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("tasks", &self.handlers.keys()).field("duplicates", &self.duplicates).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRun;
    use schemars::JsonSchema;
    use serde::Deserialize;
    use std::collections::HashMap;

    struct Greet(&'static str);

    impl Handler for Greet {
        const NAME: &'static str = "greet";
        type Args = (String,);
        type Output = String;

        async fn run(&self, (name,): (String,), ctx: Context) -> Result<String, TaskError> {
            if name.is_empty() {
                return Err(TaskError::fail("NoName", "nobody to greet"));
            }
            Ok(format!("{} {name}, attempt {}", self.0, ctx.attempt()))
        }
    }

    struct Pairs;

    impl Handler for Pairs {
        const NAME: &'static str = "pairs";
        type Args = ();
        type Output = HashMap<(u8, u8), u8>;

        async fn run(&self, (): (), _: Context) -> Result<Self::Output, TaskError> {
            Ok(HashMap::from([((1, 2), 3)]))
        }
    }

    async fn call(registry: &Registry, name: &str, args: &str) -> Result<String, CallError> {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        let result = registry.get(name).unwrap().call(raw(args), raw("{}"), TestRun::attempt(1).context()).await?;
        Ok(result.get().to_owned())
    }

    #[tokio::test]
    async fn a_call_goes_from_json_to_json() {
        let registry = Registry::new().register(Greet("hello"));
        assert_eq!(call(&registry, "greet", r#"["Ada"]"#).await.unwrap(), r#""hello Ada, attempt 1""#);
    }

    #[tokio::test]
    async fn a_call_without_a_result_says_whose_fault_it_is() {
        let registry = Registry::new().register(Greet("hello")).register(Pairs);
        for (name, args, kind) in [
            ("greet", r#"[""]"#, "NoName"),
            ("greet", "[1]", "InvalidArguments"),
            ("pairs", "[]", "UnserializableResult"),
        ] {
            let error = TaskError::from(call(&registry, name, args).await.unwrap_err());
            assert!(matches!(&error, TaskError::Fail { error } if error.kind == kind), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_name_registered_twice_is_told_and_the_first_stays() {
        let registry = Registry::new().register(Greet("hello")).register(Pairs).register(Greet("bye"));
        assert_eq!(registry.duplicates(), ["greet"]);
        assert_eq!(registry.names().collect::<Vec<_>>(), ["greet", "pairs"]);
        assert!(call(&registry, "greet", r#"["Ada"]"#).await.unwrap().contains("hello"));
        assert!(registry.get("nobody").is_none());
    }

    /// Charges a card.
    #[derive(Deserialize, JsonSchema)]
    struct Charge {
        /// In cents.
        amount: u32,
        #[serde(default)]
        card: u64,
    }

    struct Pay;

    impl Handler for Pay {
        const NAME: &'static str = "pay";
        const OPTIONS: TaskOptions = TaskOptions::new().concurrency_limit(2).redact(&["card"]);
        type Args = Charge;
        type Output = u64;

        async fn run(&self, Charge { amount, card }: Charge, _: Context) -> Result<u64, TaskError> {
            Ok(u64::from(amount) + card)
        }
    }

    #[test]
    fn a_task_type_says_what_it_takes_and_how_it_is_limited() {
        let pay = Registry::new().register(Pay).task_types().remove(0);
        assert_eq!(pay.arguments["description"], "Charges a card.");
        assert_eq!(pay.arguments["properties"]["amount"]["description"], "In cents.");
        assert_eq!(pay.arguments["required"], serde_json::json!(["amount"]));
        assert_eq!(pay.positional, Some(vec!["amount".to_owned(), "card".to_owned()]), "in the order of the struct");
        assert_eq!(
            (pay.concurrency_limit, pay.execution.as_str(), pay.redacted),
            (Some(2), "async", vec!["card".to_owned()])
        );
    }

    #[test]
    fn aliases_are_told_from_the_fields_and_stand_in_no_place() {
        let schema = serde_json::json!({"properties": {"amount": {}, "card": {}}});
        let own = Some(vec!["card".to_owned(), "amount".to_owned()]);
        assert_eq!(names(&schema, Some(&["account", "card", "amount"])), (own, vec!["account".to_owned()]));
        assert_eq!(names(&schema, Some(&["card"])), (None, vec![]), "the schema knows another");
        assert_eq!(names(&serde_json::json!({"$ref": "x"}), Some(&["card"])), (None, vec![]));
        assert_eq!(names(&schema, None), (None, vec![]));
    }

    #[tokio::test]
    async fn an_error_about_a_redacted_argument_does_not_show_it() {
        let registry = Registry::new().register(Pay);
        for args in [r#"[1, "4242-4242"]"#, r#"["many", "4242-4242"]"#] {
            let error = TaskError::from(call(&registry, "pay", args).await.unwrap_err()).error().message.clone();
            assert!(error.starts_with("argument `") && !error.contains("4242"), "{error}");
        }
    }

    #[derive(Deserialize, JsonSchema)]
    struct Transfer {
        #[serde(alias = "a_sum")]
        sum: u32,
        #[serde(alias = "pan")]
        card: u64,
    }

    struct Send;

    impl Handler for Send {
        const NAME: &'static str = "send";
        const OPTIONS: TaskOptions = TaskOptions::new().redact(&["card"]);
        type Args = Transfer;
        type Output = u64;

        async fn run(&self, Transfer { sum, card }: Transfer, _: Context) -> Result<u64, TaskError> {
            Ok(u64::from(sum) + card)
        }
    }

    #[tokio::test]
    async fn an_argument_of_two_names_is_redacted_by_each() {
        for (args, kwargs) in [(r#"[1, "4242"]"#, "{}"), ("[1]", r#"{"pan": "4242"}"#), ("[1]", r#"{"card": "4242"}"#)]
        {
            let error = TestRun::new().call(Send, args, kwargs).await.unwrap_err();
            assert!(error.error().kind == "InvalidArguments" && !error.error().message.contains("4242"), "{error:?}");
        }
    }
}
