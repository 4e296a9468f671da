//! Which headers a caller may send, and to whom.

use reqwest::header::{self, HeaderMap, HeaderName};

use super::FetchError;

/// What describes the connection or the message's frame, or makes the server wait for a body.
const OURS: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
];
const OURS_BY_NAME: [&str; 2] = ["keep-alive", "proxy-connection"];

/// What another server may see after a redirect: that a header is no credential cannot be told from its name, so only
/// what is known to be none goes on.
const HARMLESS: [HeaderName; 11] = [
    header::ACCEPT,
    header::ACCEPT_CHARSET,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::PRAGMA,
    header::RANGE,
    header::USER_AGENT,
];

/// Refuses headers that are the client's to set.
pub(super) fn check(headers: &HeaderMap) -> Result<(), FetchError> {
    match headers.keys().find(|name| OURS.contains(name) || OURS_BY_NAME.contains(&name.as_str())) {
        Some(name) => Err(FetchError::InvalidHeader(name.clone())),
        None => Ok(()),
    }
}

/// The headers for a server that the caller did not name.
pub(super) fn harmless(headers: &HeaderMap) -> HeaderMap {
    let harmless = headers.iter().filter(|(name, _)| HARMLESS.contains(name));
    harmless.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn headers(names: &[&str]) -> HeaderMap {
        let pair = |name: &&str| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("x"));
        names.iter().map(pair).collect()
    }

    #[test]
    fn the_clients_own_headers_are_refused_by_name() {
        for name in ["Host", "content-length", "Transfer-Encoding", "Connection", "Keep-Alive", "Upgrade", "Expect"] {
            let error = check(&headers(&["accept", name])).unwrap_err();
            assert!(error.to_string().contains(&name.to_lowercase()), "{error}");
        }
        assert!(check(&headers(&["Authorization", "Cookie", "X-Api-Key", "Accept"])).is_ok());
    }

    #[test]
    fn another_server_gets_what_is_no_credential() {
        let all = headers(&["Authorization", "Cookie", "X-Api-Key", "Proxy-Authorization", "Accept", "If-None-Match"]);
        let mut left: Vec<String> = harmless(&all).keys().map(ToString::to_string).collect();
        left.sort();
        assert_eq!(left, ["accept", "if-none-match"]);
    }
}
