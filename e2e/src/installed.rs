//! Owns where `deploy/install` and cargo put what tests start: in the build's directory.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// What was installed there under this name. `how` is said when it was not: the command that installs it.
pub fn installed(name: &str, how: &str) -> Result<PathBuf> {
    let current = std::env::current_exe()?;
    let found = current.ancestors().map(|dir| dir.join(name)).take(5).find(|path| path.exists());
    found.with_context(|| format!("no {name} near {}: run `{how}` first", current.display()))
}
