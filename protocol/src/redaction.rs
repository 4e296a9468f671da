//! What the headers `argsrepr` and `kwargsrepr` may show of a task's arguments: they stand in logs, events and UIs.
//!
//! The values themselves are in the body, for the worker.

use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::heartbeat::TaskType;
use crate::message::Headers;
use crate::python_repr::{MAX_CHARS, python_repr};

const HIDDEN: &str = "<redacted>";
const ARGS: &str = "argsrepr";
const KWARGS: &str = "kwargsrepr";

/// What is hidden of each task's arguments.
#[derive(Debug, Default)]
pub struct Redactions(HashMap<String, Redaction>);

/// What is hidden of one task's.
#[derive(Debug)]
struct Redaction {
    /// By name, aliases of any field included: which field they are of is not known.
    names: Vec<String>,
    /// By position; `None` when the names do not tell, and then all is hidden.
    positions: Option<Vec<bool>>,
}

impl Redactions {
    /// Of these tasks.
    pub fn of(tasks: impl IntoIterator<Item = TaskType>) -> Self {
        let redacted = tasks.into_iter().filter(|task| !task.redacted.is_empty());
        Self(redacted.map(|task| (task.name.clone(), Redaction::of(task))).collect())
    }

    /// Sets what a message's headers show of its task's arguments. What its sender said of them counts for a task of
    /// which nothing is hidden, and where it is no Python value but the sender's own words; it is cut when it is long.
    pub fn apply(&self, headers: &mut Headers, task: &str, args: &RawValue, kwargs: &RawValue) {
        let redaction = self.0.get(task);
        for (header, opening, shown) in [
            (ARGS, &['(', '['][..], redaction.map(|redaction| redaction.args(args))),
            (KWARGS, &['{'][..], redaction.map(|redaction| redaction.kwargs(kwargs))),
        ] {
            match (headers.get_mut(header), shown) {
                (Some(Value::String(said)), shown) => {
                    if let Some(shown) = shown.filter(|_| said.is_empty() || said.starts_with(opening)) {
                        *said = shown;
                    }
                    cut(said);
                }
                (Some(Value::Null) | None, _) => {}
                (Some(other), _) => *other = json!(HIDDEN),
            }
        }
    }
}

impl Redaction {
    fn of(task: TaskType) -> Self {
        let positions = task.positional.map(|names| names.iter().map(|name| task.redacted.contains(name)).collect());
        Self { names: [task.redacted, task.aliases].concat(), positions }
    }

    fn args(&self, args: &RawValue) -> String {
        let (Some(positions), Ok(args)) = (&self.positions, serde_json::from_str::<Vec<&RawValue>>(args.get())) else {
            return HIDDEN.to_owned();
        };
        let hidden = positions.iter().chain(std::iter::repeat(&true));
        let shown: Vec<String> = args.iter().zip(hidden).map(|(value, hidden)| shown(value, *hidden)).collect();
        repr(format!("[{}]", shown.join(", ")))
    }

    fn kwargs(&self, kwargs: &RawValue) -> String {
        let Ok(kwargs) = serde_json::from_str::<BTreeMap<String, &RawValue>>(kwargs.get()) else {
            return HIDDEN.to_owned();
        };
        let shown = kwargs.iter().map(|(name, value)| {
            let hidden = self.positions.is_none() || self.names.contains(name);
            format!("{}: {}", json!(name), shown(value, hidden))
        });
        repr(format!("{{{}}}", shown.collect::<Vec<_>>().join(", ")))
    }
}

fn shown(value: &RawValue, hidden: bool) -> String {
    if hidden { json!(HIDDEN).to_string() } else { value.to_string() }
}

fn repr(json: String) -> String {
    RawValue::from_string(json).map_or_else(|_| HIDDEN.to_owned(), |raw| python_repr(&raw, MAX_CHARS))
}

/// To the length of Celery's own.
fn cut(said: &mut String) {
    const ELLIPSIS: &str = "...";
    if said.chars().nth(MAX_CHARS).is_some() {
        let kept = MAX_CHARS - ELLIPSIS.len();
        let end = said.char_indices().nth(kept).map_or(said.len(), |(at, _)| at);
        said.truncate(end);
        said.push_str(ELLIPSIS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::RetryPolicy;

    fn task(positional: Option<&[&str]>, aliases: &[&str]) -> TaskType {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        TaskType {
            name: "pay".to_owned(),
            arguments: Value::Null,
            positional: positional.map(owned),
            aliases: owned(aliases),
            result: Value::Null,
            execution: "async".to_owned(),
            retry: RetryPolicy::default(),
            time_limit: None,
            soft_time_limit: None,
            concurrency_limit: None,
            rate_limit: None,
            redacted: owned(&["card"]),
        }
    }

    fn applied(task: TaskType, said: (&str, &str), args: &str, kwargs: &str) -> (String, String) {
        let mut headers = json!({"argsrepr": said.0, "kwargsrepr": said.1}).as_object().cloned().unwrap();
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        Redactions::of([task]).apply(&mut headers, "pay", &raw(args), &raw(kwargs));
        let text = |header: &str| headers[header].as_str().unwrap().to_owned();
        (text("argsrepr"), text("kwargsrepr"))
    }

    const NAMES: Option<&[&str]> = Some(&["amount", "card"]);
    const SAID: (&str, &str) = ("(1, 4242)", "{'card': 4242}");

    #[test]
    fn a_redacted_argument_is_shown_neither_by_position_nor_by_any_of_its_names() {
        let pair = |args: &str, kwargs: &str| (args.to_owned(), kwargs.to_owned());
        let kwargs = r#"{"amount": 1, "card": 4242, "pan": 4242}"#;
        assert_eq!(
            applied(task(NAMES, &["pan"]), SAID, "[1, 4242, 3]", kwargs),
            pair("[1, '<redacted>', '<redacted>']", "{'amount': 1, 'card': '<redacted>', 'pan': '<redacted>'}")
        );
        assert_eq!(
            applied(task(None, &[]), SAID, "[1, 4242]", r#"{"amount": 1}"#),
            pair("<redacted>", "{'amount': '<redacted>'}")
        );
    }

    #[test]
    fn the_senders_own_words_stay_and_what_is_long_is_cut() {
        let own = applied(task(NAMES, &[]), ("secret", "<hidden>"), "[1, 4242]", "{}");
        assert_eq!(own, ("secret".to_owned(), "<hidden>".to_owned()));
        let long = format!("({})", "é".repeat(5000));
        let (args, _) = applied(TaskType { name: "other".to_owned(), ..task(NAMES, &[]) }, (&long, "{}"), "[]", "{}");
        assert!(args.chars().count() == MAX_CHARS && args.ends_with("..."));
        let wide = format!(r#"["{}"]"#, "x".repeat(5000));
        assert_eq!(applied(task(NAMES, &[]), SAID, &wide, "{}").0.chars().count(), MAX_CHARS);
    }

    #[test]
    fn what_cannot_be_read_is_not_shown() {
        let shown = applied(task(NAMES, &[]), SAID, "[1]", r#"{"\ud800": 4242}"#);
        assert_eq!(shown, ("[1]".to_owned(), "<redacted>".to_owned()));
        let mut headers = json!({"argsrepr": [4242], "kwargsrepr": null}).as_object().cloned().unwrap();
        Redactions::default().apply(&mut headers, "pay", RawValue::NULL, RawValue::NULL);
        assert_eq!(json!(headers), json!({"argsrepr": "<redacted>", "kwargsrepr": null}));
    }
}
