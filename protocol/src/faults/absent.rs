//! What is left of faults in a build without them: nothing.
#![expect(clippy::inline_always, reason = "there is nothing to call")]

use clap::Args;

use super::{Bug, Point};

/// No settings.
#[derive(Args, Clone)]
pub struct FaultSettings {}

impl FaultSettings {
    /// Does nothing.
    #[inline(always)]
    pub fn arm(&self) {}
}

/// Does nothing.
#[inline(always)]
pub async fn point(_: Point) {}

/// `false`.
#[inline(always)]
#[must_use]
pub const fn bug(_: Bug) -> bool {
    false
}
