//! From a batch's body to its tasks, and what is wrong with the others.

use std::collections::{BTreeMap, HashSet};

use actix_web::http::StatusCode;
use serde::Deserialize;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::super::fields;
use super::super::problem::{FieldError, Problem};
use super::wrong_count;
use crate::rules::{Limits, MAX_BYTES};
use crate::store::{NewTask, Placed, UnixMs};

/// The most tasks of a batch.
pub const MAX_TASKS: usize = 1_000;
/// The errors that are told of one task: its fields can be a thousand times as many as it has.
const MAX_ERRORS: usize = 10;

/// How the tasks are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A JSON array.
    Array,
    /// NDJSON: one a line.
    Lines,
}

/// A batch whose tasks were looked at one by one.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// The tasks that can be accepted.
    pub(super) tasks: Vec<NewTask>,
    /// Where each of them stood in the batch.
    pub(super) places: Vec<usize>,
    /// What is wrong with the others, by where they stood.
    pub(super) rejected: BTreeMap<usize, Vec<FieldError>>,
}

/// Reads the body and checks every task.
///
/// # Errors
/// 400 for what is not JSON, 422 for what is no array or has too many tasks or none.
pub(super) fn check(body: &[u8], format: Format, limits: &Limits, now: UnixMs) -> Result<Checked, Problem> {
    let mut checked = Checked::default();
    let mut ids = HashSet::new();
    for (place, raw) in split(body, format)?.into_iter().enumerate() {
        let task = raw.and_then(|raw| fields::check(raw, limits, now)).and_then(|task| {
            if ids.insert(task.id.clone()) { Ok(task) } else { Err(vec![id_error("is given twice in this batch")]) }
        });
        match task {
            Ok(task) => {
                checked.tasks.push(task);
                checked.places.push(place);
            }
            Err(errors) => checked.refuse(place, errors),
        }
    }
    Ok(checked)
}

impl Checked {
    /// Takes out the tasks that the store did not take.
    pub(super) fn reject(&mut self, placed: &[Placed]) {
        let standing = std::mem::take(&mut self.tasks).into_iter().zip(std::mem::take(&mut self.places));
        for ((task, place), placed) in standing.zip(placed) {
            match placed {
                Placed::Stored => {
                    self.tasks.push(task);
                    self.places.push(place);
                }
                Placed::Taken => self.refuse(place, vec![id_error("is taken by another task")]),
                Placed::Beyond(excess) => self.refuse(place, whole(excess.to_string())),
            }
        }
    }

    /// Rejects what no living worker would take.
    pub(super) fn reject_arguments(&mut self, faults: impl Fn(&NewTask) -> Vec<FieldError>) {
        let standing = std::mem::take(&mut self.tasks).into_iter().zip(std::mem::take(&mut self.places));
        for (task, place) in standing {
            let errors = faults(&task);
            if errors.is_empty() {
                self.tasks.push(task);
                self.places.push(place);
            } else {
                self.refuse(place, errors);
            }
        }
    }

    fn refuse(&mut self, place: usize, mut errors: Vec<FieldError>) {
        errors.truncate(MAX_ERRORS);
        for error in &mut errors {
            error.pointer.insert_str(0, &format!("/{place}"));
        }
        self.rejected.insert(place, errors);
    }
}

fn id_error(detail: &str) -> FieldError {
    FieldError { pointer: "/task_id".to_owned(), detail: detail.to_owned() }
}

fn whole(detail: String) -> Vec<FieldError> {
    vec![FieldError { pointer: String::new(), detail }]
}

type Element<'a> = Result<&'a RawValue, Vec<FieldError>>;

fn split(body: &[u8], format: Format) -> Result<Vec<Element<'_>>, Problem> {
    let elements: Vec<Element<'_>> = match format {
        Format::Array => array(body)?.into_iter().map(Ok).collect(),
        Format::Lines => lines(body)?,
    };
    let bounded = |element: Element<'_>| match element {
        Ok(raw) if raw.get().len() > MAX_BYTES => Err(whole(format!("is larger than {MAX_BYTES} bytes"))),
        _ => Ok(()),
    };
    Ok(elements.into_iter().map(|element| bounded(element.clone()).and(element)).collect())
}

fn array(body: &[u8]) -> Result<Vec<&RawValue>, Problem> {
    let not_json = |error: serde_json::Error| {
        Problem::new(StatusCode::BAD_REQUEST, "not-json", format!("the body is not JSON: {error}"))
    };
    // Checked as a whole first: bad syntax is told apart from what is no array.
    let raw: &RawValue = serde_json::from_slice(body).map_err(not_json)?;
    let Ok(Elements { kept, count }) = serde_json::from_str(raw.get()) else {
        let detail = "must be an array of tasks";
        return Err(Problem::batch(whole(detail.to_owned()), format!("the body {detail}")));
    };
    if (1..=MAX_TASKS).contains(&count) { Ok(kept) } else { Err(wrong_count(count)) }
}

/// Blank lines count for nothing.
fn lines(body: &[u8]) -> Result<Vec<Element<'_>>, Problem> {
    let lines = || body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let count = lines().count();
    if !(1..=MAX_TASKS).contains(&count) {
        return Err(wrong_count(count));
    }
    Ok(lines()
        .map(|line| serde_json::from_slice(line).map_err(|error| whole(format!("is not JSON: {error}"))))
        .collect())
}

/// The elements of an array, of which no more are kept than a batch has.
struct Elements<'a> {
    kept: Vec<&'a RawValue>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Elements<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = Elements<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
                let mut kept = Vec::new();
                while kept.len() < MAX_TASKS
                    && let Some(element) = seq.next_element()?
                {
                    kept.push(element);
                }
                let mut count = kept.len();
                while count >= MAX_TASKS && seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Elements { kept, count })
            }
        }
        deserializer.deserialize_seq(Bounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: UnixMs = 1_800_000_000_000;

    fn limits() -> Limits {
        Limits { queues: vec!["default".into()], max_time_limit: Duration::from_mins(15), ..Limits::default() }
    }

    fn array_of(body: &str) -> Result<Checked, Problem> {
        super::check(body.as_bytes(), Format::Array, &limits(), NOW)
    }

    fn lines_of(body: &str) -> Result<Checked, Problem> {
        super::check(body.as_bytes(), Format::Lines, &limits(), NOW)
    }

    fn pointers(checked: &Checked) -> Vec<&str> {
        checked.rejected.values().flatten().map(|error| error.pointer.as_str()).collect()
    }

    fn status(refused: Result<Checked, Problem>) -> u16 {
        actix_web::ResponseError::status_code(&refused.unwrap_err()).as_u16()
    }

    #[test]
    fn both_formats_give_the_same_tasks() {
        let one = r#"{"task": "add", "args": [1, 2], "task_id": "a"}"#;
        let two = r#"{"task": "add", "args": [3, 4], "task_id": "b"}"#;
        let both = [array_of(&format!("[{one},\n{two}]")), lines_of(&format!("\n{one}\r\n\n  {two}"))];
        for checked in both.map(Result::unwrap) {
            let ids: Vec<&str> = checked.tasks.iter().map(|task| task.id.as_str()).collect();
            assert_eq!((ids, checked.places, checked.rejected.len()), (vec!["a", "b"], vec![0, 1], 0));
        }
    }

    #[test]
    fn every_bad_task_is_named_by_its_place() {
        let ok = r#"{"task": "a", "task_id": "x"}"#;
        let checked = array_of(&format!(r#"[{ok}, {{"task": "a", "priority": 10, "b": 1}}, 7, {ok}, {{}}]"#)).unwrap();
        assert_eq!(pointers(&checked), ["/1/priority", "/1/b", "/2", "/3/task_id", "/4/task"]);
        assert_eq!(checked.places, [0]);
        let checked = lines_of(&format!("{ok}\n{{\"task\": \n{{}}")).unwrap();
        assert_eq!(pointers(&checked), ["/1", "/2/task"]);
    }

    #[test]
    fn a_task_is_no_larger_than_alone_and_its_errors_are_bounded() {
        let large = format!(r#"[{{"task": "a", "args": ["{}"]}}]"#, "x".repeat(MAX_BYTES));
        assert_eq!(pointers(&array_of(&large).unwrap()), ["/0"]);
        let many: Vec<String> = (0..1_000).map(|number| format!(r#""f{number}": 0"#)).collect();
        assert_eq!(pointers(&array_of(&format!("[{{{}}}]", many.join(","))).unwrap()).len(), MAX_ERRORS);
    }

    #[test]
    fn a_batch_has_a_thousand_tasks_and_one_at_least() {
        let many = |count: usize| vec![r#"{"task": "a"}"#; count];
        assert_eq!(array_of(&format!("[{}]", many(1_000).join(","))).unwrap().tasks.len(), 1_000);
        assert_eq!(lines_of(&many(1_000).join("\n")).unwrap().tasks.len(), 1_000);
        assert_eq!(status(array_of(&format!("[{}]", many(1_001).join(",")))), 422);
        assert_eq!(status(lines_of(&many(1_001).join("\n"))), 422);
        assert_eq!([status(array_of("[]")), status(lines_of("\n \n")), status(array_of("{}"))], [422; 3]);
        assert_eq!([status(array_of("")), status(array_of("[{}")), status(array_of(&"[".repeat(100_000)))], [400; 3]);
    }
}
