//! From a request's body to what a replay is to call its task with.

use serde_json::value::RawValue;

use super::value::{array, object};
use super::{Fields, json};
use crate::api::problem::{FieldError, Problem};
use crate::store::Edit;

/// Every field of an edit.
pub const KNOWN: [&str; 2] = ["args", "kwargs"];

/// Checks the body of a replay. `None` when it is empty or names nothing to be changed.
///
/// # Errors
/// 400 for what is not JSON, 422 for what is no edit, or for one that was not announced by `edit=true`.
pub fn edit(body: &[u8], is_edit: bool) -> Result<Option<Edit>, Problem> {
    let edit = if body.is_empty() { None } else { read(json(body)?, is_edit).map_err(Problem::edit)? };
    if is_edit && edit.is_none() {
        let detail = "must name args or kwargs, since edit=true".to_owned();
        return Err(Problem::edit(vec![FieldError { pointer: String::new(), detail }]));
    }
    Ok(edit)
}

fn read(raw: &RawValue, is_edit: bool) -> Result<Option<Edit>, Vec<FieldError>> {
    let mut fields = Fields::of(raw, 0)?;
    let (args, kwargs) = (fields.field("args", array), fields.field("kwargs", object));
    for (name, _) in [("args", &args), ("kwargs", &kwargs)].into_iter().filter(|(_, value)| value.is_some() && !is_edit)
    {
        fields.refuse(name, "is changed by a replay with edit=true only");
    }
    fields.end(&KNOWN, "an edit")?;
    Ok((args.is_some() || kwargs.is_some()).then_some(Edit { args, kwargs }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str, is_edit: bool) -> (u64, Vec<String>) {
        let problem = serde_json::to_value(edit(body.as_bytes(), is_edit).unwrap_err()).unwrap();
        let errors = problem["errors"].as_array().into_iter().flatten();
        let pointers = errors.map(|error| error["pointer"].as_str().unwrap().to_owned()).collect();
        (problem["status"].as_u64().unwrap(), pointers)
    }

    #[test]
    fn what_is_changed_must_be_announced_and_what_is_announced_changed() {
        let deep = format!(r#"{{"args": {}{}}}"#, "[".repeat(100), "]".repeat(100));
        for (body, is_edit, status, pointers) in [
            (r#"{"args": [1]}"#, false, 422, vec!["/args"]),
            (r#"{"args": [1], "kwargs": {}}"#, false, 422, vec!["/args", "/kwargs"]),
            (r#"{"args": {}, "kwargs": [], "queue": "mail"}"#, true, 422, vec!["/args", "/kwargs", "/queue"]),
            (r#"{"args": [], "args": []}"#, true, 422, vec!["/args"]),
            (&deep, true, 422, vec!["/args"]),
            ("{}", true, 422, vec![""]),
            ("", true, 422, vec![""]),
            ("[]", true, 422, vec![""]),
            ("{", true, 400, vec![]),
        ] {
            assert_eq!(refused(body, is_edit), (status, pointers.into_iter().map(str::to_owned).collect()), "{body}");
        }
        for body in ["", "{}", r#"{"args": null}"#] {
            assert!(edit(body.as_bytes(), false).unwrap().is_none(), "{body}");
        }
        let some = edit(br#"{"kwargs": {"a": 1}}"#, true).unwrap().unwrap();
        assert_eq!((some.args.is_none(), some.kwargs.unwrap().get()), (true, r#"{"a": 1}"#));
    }
}
