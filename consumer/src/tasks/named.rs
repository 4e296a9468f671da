//! Files of named entries: the queries and the commands that an operator allows.
//!
//! They may hold passwords, so an error shows no value of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a JSON object of objects. `variable` is the setting that names the file, `entry` says what is in it.
pub(super) fn read<T: DeserializeOwned>(
    variable: &str,
    entry: &str,
    path: &Path,
) -> anyhow::Result<BTreeMap<String, T>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{variable}: cannot read {}", path.display()))?;
    let entries: BTreeMap<String, Value> = serde_json::from_str(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        anyhow!("{variable}: {} is no JSON object, see line {line} column {column}", path.display())
    })?;
    let parse = |(name, value): (String, Value)| {
        ensure!(value.is_object(), "{variable}: {entry} `{name}`: not an object");
        let parsed = serde_json::from_value(value)
            .map_err(|error| anyhow!("{variable}: {entry} `{name}`: {}", without_value(&error.to_string())))?;
        Ok((name, parsed))
    };
    entries.into_iter().map(parse).collect()
}

/// `invalid type: string "…", expected u8` quotes the value.
fn without_value(message: &str) -> String {
    match message.split_once(", expected ") {
        Some((what, expected)) if what.starts_with("invalid ") => format!("a value is not {expected}"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        size: u8,
    }

    fn parse(text: &str) -> Result<BTreeMap<String, Entry>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read("THE_FILE", "entry", file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn an_error_names_the_variable_and_the_entry_and_no_value() {
        assert_eq!(parse(r#"{"a": {"size": 1}}"#).unwrap()["a"].size, 1);
        for (text, named) in [
            ("{", "line 1 column 1"),
            (r#""s3cret""#, "no JSON object"),
            (r#"{"a": "s3cret"}"#, "entry `a`: not an object"),
            (r#"{"a": {}}"#, "entry `a`: missing field `size`"),
            (r#"{"a": {"size": "s3cret"}}"#, "entry `a`: a value is not u8"),
            (r#"{"a": {"size": 1, "s": "s3cret"}}"#, "entry `a`: unknown field `s`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("THE_FILE: ") && error.contains(named) && !error.contains("s3cret"), "{error}");
        }
        let error = read::<Entry>("THE_FILE", "entry", Path::new("/nowhere/x")).unwrap_err().to_string();
        assert!(error.contains("THE_FILE: cannot read /nowhere/x"), "{error}");
    }
}
