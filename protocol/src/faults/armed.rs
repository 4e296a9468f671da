//! Faults as the environment chooses them, once a process.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use rustix::process::{Signal, getpid, kill_process};
use tokio::time::sleep;

use super::{Bug, Point};
use crate::settings::duration;

static ARMED: OnceLock<Armed> = OnceLock::new();

/// What is to go wrong.
#[derive(Args, Clone)]
pub struct FaultSettings {
    /// What happens at which failpoint, semicolon-separated and in this order: `relay.confirmed=kill@3` at the third pass,
    /// `settle.confirmed=pause:500ms` at every one
    #[arg(long, env = "FAULTS", value_delimiter = ';', value_parser = Fault::parse)]
    faults: Vec<Fault>,

    /// A rule to break
    #[arg(long, env = "SEEDED_BUG")]
    seeded_bug: Option<Bug>,
}

impl FaultSettings {
    /// Makes them those of the process. Call once.
    pub fn arm(&self) {
        if self.faults.is_empty() && self.seeded_bug.is_none() {
            return;
        }
        tracing::warn!(faults = ?self.faults, bug = ?self.seeded_bug, "this process goes wrong on purpose");
        let faults = self.faults.iter().map(|fault| (*fault, AtomicU64::new(0))).collect();
        // An error means that it was called twice, and the first call stands.
        let _ = ARMED.set(Armed { faults, bug: self.seeded_bug });
    }
}

/// The faults, each with how often its point was passed.
struct Armed {
    faults: Vec<(Fault, AtomicU64)>,
    bug: Option<Bug>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Fault {
    point: Point,
    action: Action,
    /// The pass at which it happens, from 1; at each when `None`.
    pass: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// SIGKILL, to this process.
    Kill,
    /// Who passes is held.
    Pause(Duration),
}

impl Fault {
    fn parse(text: &str) -> Result<Self, String> {
        let (point, what) = text.split_once('=').ok_or("must be like relay.confirmed=kill@3")?;
        let (action, pass) = what.split_once('@').map_or((what, None), |(action, pass)| (action, Some(pass)));
        let pass = pass.map(|pass| pass.parse().ok().filter(|pass| *pass > 0).ok_or("the pass must be 1 or more"));
        Ok(Self {
            point: Point::from_str(point, false).map_err(|_| format!("no such point; there are {}", points()))?,
            action: Action::parse(action)?,
            pass: pass.transpose()?,
        })
    }
}

impl Action {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kill" => Ok(Self::Kill),
            Some(("pause", span)) => duration(span).map(Self::Pause).map_err(|error| error.to_string()),
            _ => Err("must be kill or pause:<duration>".to_owned()),
        }
    }
}

/// Derived, it would name the fields of every one.
impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.point, self.action)?;
        self.pass.map_or(Ok(()), |pass| write!(f, " at pass {pass}"))
    }
}

fn points() -> String {
    let names =
        Point::value_variants().iter().filter_map(|point| Some(point.to_possible_value()?.get_name().to_owned()));
    names.collect::<Vec<_>>().join(" ")
}

/// Passes a window: what is to happen there happens.
pub async fn point(point: Point) {
    let Some(armed) = ARMED.get() else { return };
    for (fault, passes) in armed.faults.iter().filter(|(fault, _)| fault.point == point) {
        let pass = passes.fetch_add(1, Ordering::Relaxed) + 1;
        if fault.pass.is_some_and(|at| at != pass) {
            continue;
        }
        match fault.action {
            Action::Pause(span) => sleep(span).await,
            Action::Kill => {
                tracing::warn!(?point, pass, "killed on purpose");
                // Nothing of this process runs after it.
                let _ = kill_process(getpid(), Signal::KILL);
            }
        }
    }
}

/// Whether this rule is to be broken.
#[must_use]
pub fn bug(bug: Bug) -> bool {
    ARMED.get().is_some_and(|armed| armed.bug == Some(bug))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_where_what_and_when() {
        let killed = Fault { point: Point::RelayConfirmed, action: Action::Kill, pass: Some(3) };
        assert_eq!(Fault::parse("relay.confirmed=kill@3"), Ok(killed));
        let held = Action::Pause(Duration::from_millis(500));
        let held = Fault { point: Point::SettleConfirmed, action: held, pass: None };
        assert_eq!(Fault::parse("settle.confirmed=pause:500ms"), Ok(held));
        for bad in ["", "relay.confirmed", "relay.confirmed=stop", "relay.confirmed=kill@0", "relay.confirmed=pause:x"]
        {
            assert!(Fault::parse(bad).is_err(), "{bad:?}");
        }
        let unknown = Fault::parse("nowhere=kill").unwrap_err();
        assert!(unknown.contains("relay.confirmed") && unknown.contains("callback.posted"), "{unknown}");
    }
}
