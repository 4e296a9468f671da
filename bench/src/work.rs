//! Owns what the tasks of a run are: the request that submits the n-th, and what must come of it.

use anyhow::{Result, ensure};
use e2e::load::request;

/// Digits of a task's number within its payload.
const DIGITS: usize = 16;
/// Where the number goes in a request that is made once for all.
const PLACE: &str = "################";

/// Tasks of one kind.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// `echo` of a string of so many bytes, each time another.
    Echo(usize),
    /// `flaky`: the first attempt fails, the second is due a second later.
    Flaky,
}

impl Work {
    /// The body of the n-th submit is this with n at [`PLACE`].
    fn body(self) -> String {
        match self {
            Self::Echo(bytes) => format!(r#"{{"task":"echo","args":["{PLACE}{}"]}}"#, filler(bytes)),
            Self::Flaky => {
                r#"{"task":"flaky","args":[1],"retry":{"max_retries":1,"backoff":1,"jitter":false}}"#.to_owned()
            }
        }
    }

    /// Bytes of what is sent and comes back.
    #[must_use]
    pub fn payload(self) -> usize {
        match self {
            Self::Echo(bytes) => bytes,
            Self::Flaky => 1,
        }
    }

    /// How often an attempt of each fails.
    #[must_use]
    pub fn retries(self) -> u32 {
        match self {
            Self::Echo(_) => 0,
            Self::Flaky => 1,
        }
    }

    /// Whether this result, as JSON, is that of the n-th task.
    ///
    /// # Errors
    /// What it is instead.
    pub fn check(self, number: usize, result: &str) -> Result<()> {
        let is_right = match self {
            Self::Flaky => result == "1",
            Self::Echo(bytes) => {
                let inner = result.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default();
                inner.len() == bytes.max(DIGITS)
                    && inner.get(..DIGITS) == Some(&*digits(number))
                    && inner.bytes().skip(DIGITS).all(|byte| byte == b'x')
            }
        };
        ensure!(is_right, "the result of task {number} is {result:.100}");
        Ok(())
    }
}

fn digits(number: usize) -> String {
    format!("{number:0DIGITS$x}")
}

fn filler(bytes: usize) -> String {
    "x".repeat(bytes.saturating_sub(DIGITS))
}

/// A submit that is written once, and then differs in the task's number only.
#[derive(Debug, Clone)]
pub struct Submit {
    bytes: Vec<u8>,
    place: Option<usize>,
}

impl Submit {
    /// Submits such tasks; `headers` are lines, each with its line's end.
    #[must_use]
    pub fn of(work: Work, headers: &str) -> Self {
        let headers = format!("content-type: application/json\r\n{headers}");
        let bytes = request("POST", "/v1/tasks", &headers, &work.body());
        let place = bytes.windows(DIGITS).position(|bytes| bytes == PLACE.as_bytes());
        Self { bytes, place }
    }

    /// The request of the n-th.
    pub fn nth(&mut self, number: usize) -> &[u8] {
        if let Some(place) = self.place {
            self.bytes[place..place + DIGITS].copy_from_slice(digits(number).as_bytes());
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_carries_its_number_and_its_result_is_known() {
        let mut submit = Submit::of(Work::Echo(20), "prefer: wait=60\r\n");
        for number in [0, 0xabc] {
            let text = String::from_utf8(submit.nth(number).to_vec()).unwrap();
            let payload = format!("{number:016x}xxxx");
            assert!(text.contains("\r\nprefer: wait=60\r\n") && text.contains(&payload), "{text}");
            assert!(Work::Echo(20).check(number, &format!("\"{payload}\"")).is_ok());
        }
    }

    #[test]
    fn a_wrong_result_is_refused() {
        let right = format!("\"{:016x}xxxx\"", 7);
        for (number, wrong) in [(8, &right[..]), (7, "null"), (7, &right[..20]), (7, &right.replace("xx\"", "xy\""))] {
            assert!(Work::Echo(20).check(number, wrong).is_err(), "{wrong}");
        }
        assert!(Work::Flaky.check(0, "1").is_ok());
        assert!(Work::Flaky.check(0, "0").is_err());
    }
}
