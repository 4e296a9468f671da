//! What the next request after a response is. Pure: sending it, and how often, is the fetcher's.

use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Method, StatusCode};

use super::{FetchError, Hop, headers};

/// The request that a redirect asks for, `None` when the response is the answer. A redirect without a `Location` is
/// one, as in browsers.
pub(super) fn next(hop: &Hop, status: StatusCode, response: &HeaderMap) -> Result<Option<Hop>, FetchError> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.get(LOCATION) else { return Ok(None) };
    let invalid = || FetchError::InvalidRedirect { host: hop.url.host_str().unwrap_or_default().to_owned() };
    let location = std::str::from_utf8(location.as_bytes()).map_err(|_| invalid())?;
    let url = hop.url.join(location).map_err(|_| invalid())?;
    let same_server = url.origin() == hop.url.origin();
    let headers = if same_server { hop.headers.clone() } else { headers::harmless(&hop.headers) };
    Ok(Some(Hop { method: method(&hop.method, status), url, headers }))
}

/// As the Fetch standard has it: 303 asks for a look at something else, and clients have always taken 301 and 302
/// after a POST for that too.
fn method(method: &Method, status: StatusCode) -> Method {
    let looks = matches!(*method, Method::GET | Method::HEAD);
    let becomes_get = match status.as_u16() {
        303 => !looks,
        301 | 302 => *method == Method::POST,
        _ => false,
    };
    if becomes_get { Method::GET } else { method.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{AUTHORIZATION, HeaderValue};

    fn hop(method: Method) -> Hop {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Bearer x"))]);
        Hop { method, url: "https://a.example/dir/page?q=1".parse().unwrap(), headers }
    }

    fn follow(hop: &Hop, status: u16, location: &str) -> Result<Option<Hop>, FetchError> {
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_bytes(location.as_bytes()).unwrap())]);
        next(hop, StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn methods_change_as_in_browsers() {
        for (from, status, to) in [
            (Method::GET, 301, Method::GET),
            (Method::HEAD, 303, Method::HEAD),
            (Method::POST, 301, Method::GET),
            (Method::POST, 302, Method::GET),
            (Method::DELETE, 303, Method::GET),
            (Method::DELETE, 302, Method::DELETE),
            (Method::POST, 307, Method::POST),
            (Method::PUT, 308, Method::PUT),
        ] {
            assert_eq!(follow(&hop(from), status, "/x").unwrap().unwrap().method, to, "{status}");
        }
    }

    #[test]
    fn only_the_same_server_sees_the_credentials_again() {
        for (location, url, credentials) in [
            ("other", "https://a.example/dir/other", true),
            ("//a.example:443/x", "https://a.example/x", true),
            ("http://a.example/x", "http://a.example/x", false),
            ("https://a.example:8443/x", "https://a.example:8443/x", false),
            ("https://b.example/x", "https://b.example/x", false),
        ] {
            let next = follow(&hop(Method::GET), 302, location).unwrap().unwrap();
            assert_eq!((next.url.as_str(), next.headers.contains_key(AUTHORIZATION)), (url, credentials));
        }
    }

    #[test]
    fn what_is_no_redirect_is_the_answer() {
        for status in [200, 300, 304, 404, 500] {
            assert!(follow(&hop(Method::GET), status, "/x").unwrap().is_none(), "{status}");
        }
        assert!(next(&hop(Method::GET), StatusCode::FOUND, &HeaderMap::new()).unwrap().is_none());
        assert!(matches!(follow(&hop(Method::GET), 302, "http://["), Err(FetchError::InvalidRedirect { .. })));
    }
}
