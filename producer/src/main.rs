//! The producer: accepts tasks over HTTP and sees to their ends.

use std::process::ExitCode;

fn main() -> ExitCode {
    producer::run()
}
