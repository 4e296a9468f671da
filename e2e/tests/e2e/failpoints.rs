//! The narrow windows: a service is killed exactly there, under tasks, and started again. No accepted task is lost, each
//! ends as it should, and no more of them ran twice than were in flight.

mod rounds;

use std::process::Command;

use anyhow::{Result, ensure};
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
