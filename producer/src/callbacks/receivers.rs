//! Who may be called back: any public address over https, and what the operator lists, over http too. Pure.

use std::net::SocketAddr;

use fetch::{Allow, BadEntry, BadNameserver, FetchError, Fetcher};
use protocol::state::State;

use crate::store::Callback;

/// The longest URL of a callback.
pub const MAX_URL_BYTES: usize = 2_048;

/// Who may be called back.
#[derive(Debug, Clone, Default)]
pub struct Receivers {
    https: Allow,
    http: Allow,
}

/// The clients that reach them.
pub(super) struct Fetchers {
    https: Fetcher,
    http: Fetcher,
}

impl Receivers {
    /// From the entries of `CALLBACK_ALLOW`.
    ///
    /// # Errors
    /// One of them is no host name, address or network.
    pub fn parse(entries: &[String]) -> Result<Self, BadEntry> {
        let https = Allow::parse(entries)?;
        Ok(Self { http: https.clone().listed_only(), https })
    }

    /// A callback to that URL, which is checked as far as it can be before its name is looked up.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn callback(&self, url: &str, events: Vec<State>) -> Result<Callback, String> {
        let is_http = url.starts_with("https://") || url.starts_with("http://");
        if !is_http || url.len() > MAX_URL_BYTES || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("must be an http or https URL of at most {MAX_URL_BYTES} visible ASCII characters"));
        }
        let allow = if is_plain(url) { &self.http } else { &self.https };
        let mut url = allow.check(url).map_err(|error| refusal(&error, is_plain(url)))?;
        url.set_fragment(None);
        let receiver = url.host_str().unwrap_or_default().to_owned();
        Ok(Callback { url: url.into(), events, receiver })
    }

    pub(super) fn fetchers(self, nameservers: &[SocketAddr]) -> Result<Fetchers, BadNameserver> {
        Ok(Fetchers { https: Fetcher::new(self.https, nameservers)?, http: Fetcher::new(self.http, nameservers)? })
    }
}

impl Fetchers {
    pub(super) fn of(&self, url: &str) -> &Fetcher {
        if is_plain(url) { &self.http } else { &self.https }
    }
}

/// Whether its messages could be read on their way.
fn is_plain(url: &str) -> bool {
    url.starts_with("http:")
}

fn refusal(error: &FetchError, is_plain: bool) -> String {
    match error {
        FetchError::AddressRefused { .. } if is_plain => format!("{error}: http is for CALLBACK_ALLOW only"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allow: &[&str], url: &str) -> Result<Callback, String> {
        let entries: Vec<String> = allow.iter().map(|&entry| entry.to_owned()).collect();
        Receivers::parse(&entries).unwrap().callback(url, vec![State::Success])
    }

    #[test]
    fn what_leads_inside_or_shows_its_messages_is_refused_unless_it_is_listed() {
        for url in [
            "https://127.0.0.1/",
            "https://[::ffff:10.0.0.1]/",
            "https://0x7f.1/",
            "https://169.254.169.254/latest/meta-data/",
            "http://1.1.1.1/",
            "http://example.com/",
            "HTTPS://example.com/",
            "https:example.com",
            "https://exa\tmple.com/",
            "https://user@example.com/",
            "https://:pw@example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "/hook",
            "https://",
            "",
        ] {
            let error = check(&[], url).unwrap_err();
            assert!(!error.contains("pw") && !error.contains("meta-data"), "{error}");
        }
        assert!(check(&[], "https://example.com/hook?x=1").is_ok());
        assert!(check(&["10.0.0.0/8"], "https://10.0.0.1/").is_ok());
        assert!(check(&["10.0.0.0/8"], "http://10.0.0.1/").is_ok());
        assert!(check(&["wiki.internal"], "http://wiki.internal/").is_ok());
        assert!(check(&["wiki.internal"], "http://other.internal/").is_err());
        assert!(check(&[], &format!("https://example.com/{}", "x".repeat(MAX_URL_BYTES))).is_err());
    }

    #[test]
    fn a_receiver_is_a_host() {
        let callback = check(&[], "https://Example.COM:443/hook?key=1#top").unwrap();
        assert_eq!(callback.url, "https://example.com/hook?key=1");
        assert_eq!(callback.receiver, "example.com");
        assert_eq!(check(&[], "https://example.com:8443/").unwrap().receiver, "example.com", "whatever its port");
    }
}
