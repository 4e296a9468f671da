//! Owns what makes a machine's clock wrong: Debian's `faketime`, preloaded into a service.

use std::env::consts::ARCH;
use std::path::Path;

use anyhow::{Result, ensure};

/// The environment of a service whose wall clock is off by so much, as `faketime` has it: `+1h`, `-1h`. How it measures
/// durations is left alone, as it is on such a machine.
pub fn off(by: &str) -> Result<[(&'static str, String); 3]> {
    let library = format!("/usr/lib/{ARCH}-linux-gnu/faketime/libfaketimeMT.so.1");
    ensure!(Path::new(&library).exists(), "no {library}: run `deploy/install --test` first");
    Ok([("LD_PRELOAD", library), ("FAKETIME", by.to_owned()), ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned())])
}
