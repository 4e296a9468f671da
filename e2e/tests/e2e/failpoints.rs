//! The narrow windows: a service is killed exactly there, under tasks, and started again. No accepted task is lost, each
//! ends as it should, and no more of them ran twice than were in flight.

mod rounds;
mod scenes;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::service::{self, FAULTS};

#[test]
fn plain_binaries_know_no_faults() -> Result<()> {
    for binary in ["producer", "consumer"] {
        for (build, knows) in [(binary.to_owned(), false), (format!("{FAULTS}/{binary}"), true)] {
            let program = service::built(&build)?;
            let run = |args: &[&str]| Command::new(&program).env_clear().args(args).output();
            let help = String::from_utf8(run(&["--help"])?.stdout)?;
            ensure!(help.contains("AMQP_URL"), "{help}");
            for name in ["[env: FAULTS=", "[env: SEEDED_BUG="] {
                ensure!(help.contains(name) == knows, "{build}: {name} in its help should be {knows}");
            }
            let refused = String::from_utf8(run(&["--faults", "nowhere=kill"])?.stderr)?;
            ensure!(refused.contains("no such point") == knows, "{refused}");
        }
    }
    Ok(())
}

#[test]
fn every_window_has_a_test_that_kills_there() -> Result<()> {
    let tests = [include_str!("failpoints/rounds.rs"), include_str!("failpoints/scenes.rs")].concat();
    let refused = Command::new(service::built(&format!("{FAULTS}/producer"))?)
        .env_clear()
        .args(["--faults", "nowhere=kill"])
        .output()?;
    let refused = String::from_utf8(refused.stderr)?;
    let (_, points) = refused.split_once("there are ").context("no list of points")?;
    let points: Vec<&str> = points.lines().next().into_iter().flat_map(str::split_whitespace).collect();
    ensure!(points.len() > 10, "{refused}");
    for point in points {
        ensure!(tests.contains(&format!("\"{point}=kill")), "no test kills at {point}");
    }
    Ok(())
}
