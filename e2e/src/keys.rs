//! Owns API keys as an operator does: made, listed and revoked by the producer's own command on its store.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};

use crate::service::built;

/// A key as it was shown.
#[derive(Debug, Clone)]
pub struct Key {
    /// Names it.
    pub id: String,
    /// The whole of it.
    pub token: String,
}

/// `producer keys` with these arguments on the store of that file.
pub fn command(store: &Path, arguments: &[&str]) -> Result<Output> {
    let url = format!("sqlite:{}", store.display());
    let mut command = Command::new(built("producer")?);
    Ok(command.arg("keys").args(arguments).env_clear().env("DATABASE_URL", url).output()?)
}

/// Makes a key with these scopes and further flags.
pub fn create(store: &Path, scopes: &str, flags: &[&str]) -> Result<Key> {
    let token = said(store, &[&["create", "--name", "test", "--scope", scopes], flags].concat())?.trim().to_owned();
    let id = token.split('_').nth(1).unwrap_or_default().to_owned();
    ensure!(token.starts_with("errand_") && !id.is_empty(), "no key: {token:?}");
    Ok(Key { id, token })
}

/// Revokes a key.
pub fn revoke(store: &Path, id: &str) -> Result<()> {
    said(store, &["revoke", id]).map(drop)
}

/// What the command prints. That it fails is an error.
pub fn said(store: &Path, arguments: &[&str]) -> Result<String> {
    let output = command(store, arguments)?;
    ensure!(output.status.success(), "keys {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
