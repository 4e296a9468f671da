//! Measures what a task costs.

mod figures;

fn main() {}
