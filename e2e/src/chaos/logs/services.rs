//! What the services leave behind beside their tasks: how each process ended, and what the producer took for lost.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::UNIX_EPOCH;

use nix::sys::signal::Signal;

use super::Ms;

/// What the reconciler says of each part of what it gives back.
const PRESUMED: &str = "the broker has lost tasks";

/// A process that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// The service's name.
    pub service: String,
    /// The process.
    pub pid: u32,
    /// The last signal that the run had sent to end it.
    pub told: Option<Signal>,
    /// How it ended.
    pub status: ExitStatus,
}

impl Death {
    /// Whether it ended as it was told to.
    #[must_use]
    pub fn was_told(&self) -> bool {
        match self.told {
            // It may just have been started and not listen to signals yet.
            Some(Signal::SIGTERM) => self.status.code() == Some(0) || self.status.signal() == Some(15),
            Some(signal) => self.status.signal() == Some(signal as i32),
            None => false,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, pid, told, status } = self;
        write!(f, "{service}, process {pid}, told {told:?}: {status}")
    }
}

/// Tasks that the reconciler took for lost at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presumed {
    /// When.
    pub at: Ms,
    /// How many.
    pub count: usize,
}

impl Presumed {
    /// From a line of the producer's log; `None` if it tells something else. A line that cannot be read counts as one task
    /// at the beginning of time, where no fault explains it.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.split_once(PRESUMED)?;
        let time = head.split(' ').next().and_then(|time| humantime::parse_rfc3339(time).ok());
        let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let count = tail.rsplit_once("count=").and_then(|(_, count)| count.trim().parse().ok()).unwrap_or(1);
        Some(Self { at: u64::try_from(since.as_millis()).unwrap_or(0), count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_producer_took_for_lost_is_read_from_its_log() {
        let line = "1970-01-01T00:00:36.380269Z  WARN producer::reconciler: the broker has lost tasks; they are published \
                    again queue=\"default\" count=816";
        assert_eq!(Presumed::parse(line), Some(Presumed { at: 36_380, count: 816 }));
        assert_eq!(Presumed::parse("{\"message\": \"the broker has lost tasks\"}"), Some(Presumed { at: 0, count: 1 }));
        assert_eq!(Presumed::parse("1970-01-01T00:00:36Z  INFO producer: ready count=1"), None);
    }

    #[test]
    fn who_was_told_to_end_must_do_so() {
        let told = |told, status| {
            let status = ExitStatus::from_raw(status);
            Death { service: "producer".to_owned(), pid: 1, told, status }.was_told()
        };
        assert!(told(Some(Signal::SIGTERM), 0) && told(Some(Signal::SIGTERM), 15) && told(Some(Signal::SIGKILL), 9));
        assert!(!told(None, 0) && !told(None, 9) && !told(Some(Signal::SIGTERM), 1 << 8));
        assert!(!told(Some(Signal::SIGTERM), 6) && !told(Some(Signal::SIGKILL), 0));
    }
}
