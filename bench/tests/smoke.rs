//! The benchmark itself, in small.

use std::process::Command;

#[test]
fn a_flood_is_measured_and_every_task_of_it_checked() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(["--tasks", "200", "flood-32"]).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let row: Vec<&str> =
        text.lines().find(|line| line.starts_with("| flood-32 ")).unwrap().split('|').map(str::trim).collect();
    assert_eq!(row[1..3], ["flood-32", "100"], "{text}");
    for figure in &row[3..9] {
        assert!(figure.parse::<f64>().unwrap() > 0.0, "{figure} in {text}");
    }
}
