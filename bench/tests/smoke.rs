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

#[test]
fn every_part_of_the_floor_is_measured_and_loses_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).args(["--tasks", "300", "floor"]).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let rows = text.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split('|').map(str::trim).collect()).collect();
    let parts = |start: &str| rows.iter().filter(|row| row.len() == 7 && row[1].starts_with(start)).count();
    assert_eq!(["round trip", "backlog", "bare 202", "bare rows"].map(parts), [4, 4, 3, 2], "{text}");
    for row in rows.iter().filter(|row| row.len() == 7) {
        assert!(row[3].parse::<f64>().unwrap() > 0.0 && row[4].contains(' '), "{row:?}");
    }
}
