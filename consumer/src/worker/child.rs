//! Runs one task in a process of its own.

use crate::registry::Registry;

/// Runs the task that the worker sends over standard input.
pub(crate) fn serve(_: &Registry) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
