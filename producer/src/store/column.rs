//! What more than one statement reads from columns and puts into parameters.

use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::Parent;

/// The one parameter of a bulk statement.
pub(super) fn json<T: serde::Serialize>(rows: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// A JSON column as it stands.
pub(super) fn raw(row: &SqliteRow, column: &str) -> Result<Box<RawValue>, sqlx::Error> {
    let text: String = row.try_get(column)?;
    RawValue::from_string(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// A JSON column that may be null.
pub(super) fn optional_raw(row: &SqliteRow, column: &str) -> Result<Option<Box<RawValue>>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(RawValue::from_string).transpose().map_err(|error| sqlx::Error::Decode(error.into()))
}

/// Whose child the row is.
pub(super) fn parent(row: &SqliteRow) -> Result<Option<Parent>, sqlx::Error> {
    let ids: (Option<String>, Option<String>) = (row.try_get("parent_id")?, row.try_get("root_id")?);
    Ok(ids.0.zip(ids.1).map(|(id, root_id)| Parent { id, root_id }))
}

/// Decodes a JSON column.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(raw: &RawValue) -> Result<T, sqlx::Error> {
    serde_json::from_str(raw.get()).map_err(|error| sqlx::Error::Decode(error.into()))
}
