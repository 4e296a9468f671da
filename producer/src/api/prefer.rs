//! The preference `wait` of a request's `Prefer` header (RFC 7240).

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// What was asked for.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The longest wait in seconds that is honoured.
pub const LONGEST_S: u64 = 60;

/// A wait that is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(u64);

impl Wait {
    /// `None` when there is no such preference or it cannot be honoured, and is then ignored: a wait is a whole number
    /// of seconds, 1 to 60. Of several the first counts.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        Self::read(request.headers())
    }

    fn read(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(PREFER).filter_map(|line| line.to_str().ok());
        let mut preferences = lines.flat_map(unquoted_commas);
        let value = preferences.find_map(|preference| {
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            name.trim().eq_ignore_ascii_case("wait").then_some(value.trim())
        })?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = value.parse().ok().filter(|_| digits)?;
        (1..=LONGEST_S).contains(&seconds).then_some(Self(seconds))
    }

    /// How long.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// The header that says that it was honoured.
    pub fn applied(self) -> (HeaderName, HeaderValue) {
        let value = format!("wait={}", self.0);
        (PREFERENCE_APPLIED, HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("wait")))
    }
}

/// The parts of a list; a comma within a quoted string divides nothing (RFC 9110, section 5.6.4).
fn unquoted_commas(line: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |sign| {
        let divides = sign == ',' && !quoted;
        quoted ^= sign == '"' && !escaped;
        escaped = quoted && sign == '\\' && !escaped;
        divides
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(lines: &[&str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PREFER, HeaderValue::from_str(line).unwrap());
        }
        Wait::read(&headers).map(|wait| wait.0)
    }

    #[test]
    fn a_wait_is_found_however_it_is_written() {
        for lines in [
            &["wait=10"][..],
            &["respond-async, wait=10"],
            &["Wait = \"10\"; x=y"],
            &["handling=lenient", "wait=10, wait=20"],
            &["foo=\"a, wait=5, \\\" , wait=6\", wait=10"],
        ] {
            assert_eq!(wait(lines), Some(10), "{lines:?}");
        }
    }

    #[test]
    fn one_that_cannot_be_honoured_is_ignored() {
        for line in ["", "wait", "wait=", "wait=0", "wait=61", "wait=1.5", "wait=-1", "wait=+1", "waits=5", "wait=\"5"]
        {
            assert_eq!(wait(&[line]), None, "{line:?}");
        }
        assert_eq!(wait(&["wait=99999999999999999999"]), None);
        assert_eq!(wait(&["wait=60"]), Some(60));
    }
}
