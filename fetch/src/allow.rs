//! Which addresses may be reached: the public ones, and the exceptions that an operator lists.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

use super::FetchError;
use super::address::refusal;

/// What may be reached.
#[derive(Debug, Clone, Default)]
pub struct Allow {
    /// Lower-case, without the root's dot.
    hosts: HashSet<String>,
    networks: Vec<IpNet>,
    /// Whether nothing else may be reached, public or not.
    listed_only: bool,
}

/// An entry that lists nothing.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no host name, address or network")]
pub struct BadEntry(String);

impl Allow {
    /// Public addresses, and these hosts and networks though they are not public. Blank entries count as none: that is
    /// how an empty variable arrives.
    ///
    /// # Errors
    /// An entry is no host name, address or network.
    pub fn parse(entries: &[String]) -> Result<Self, BadEntry> {
        let mut allow = Self::default();
        for entry in entries.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty()) {
            allow.add(entry).ok_or_else(|| BadEntry(entry.to_owned()))?;
        }
        Ok(allow)
    }

    /// Only what was listed, nothing public.
    #[must_use]
    pub fn listed_only(self) -> Self {
        Self { listed_only: true, ..self }
    }

    /// `None` for an entry that is none.
    fn add(&mut self, entry: &str) -> Option<()> {
        if let Ok(address) = entry.parse::<IpAddr>() {
            self.networks.push(address.to_canonical().into());
        } else if entry.contains('/') {
            self.networks.push(entry.parse().ok()?);
        } else {
            // A name stands for itself, not for a pattern.
            match Host::parse(entry).ok().filter(|_| !entry.contains('*'))? {
                Host::Domain(name) => drop(self.hosts.insert(without_root(&name).to_owned())),
                Host::Ipv4(address) => self.networks.push(IpAddr::from(address).into()),
                Host::Ipv6(address) => self.networks.push(IpAddr::from(address).to_canonical().into()),
            }
        }
        Some(())
    }

    /// Reads a URL and refuses what can be refused before a name is looked up.
    ///
    /// # Errors
    /// Not a URL, none of http or https, one with a user or a password, or an address that is not allowed.
    pub fn check(&self, url: &str) -> Result<Url, FetchError> {
        let url = Url::parse(url).map_err(FetchError::InvalidUrl)?;
        self.check_url(&url)?;
        Ok(url)
    }

    /// The same of one that was read. An address in the URL never reaches the resolver.
    pub(super) fn check_url(&self, url: &Url) -> Result<(), FetchError> {
        if !matches!(url.scheme(), "http" | "https") {
            let reason = "only http and https URLs are fetched";
            return Err(FetchError::AddressRefused { what: url.scheme().to_owned(), reason });
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::refused(url, "a URL that holds a user or a password is not fetched"));
        }
        let checked = match url.host() {
            Some(Host::Ipv4(address)) => self.check_address(address.into()),
            Some(Host::Ipv6(address)) => self.check_address(address.into()),
            // Whatever it resolves to, nothing is listed.
            Some(Host::Domain(name)) if self.listed_only && self.networks.is_empty() && !self.host(name) => {
                Err(NOT_LISTED)
            }
            _ => Ok(()),
        };
        checked.map_err(|reason| FetchError::refused(url, reason))
    }

    /// Whether this name may resolve to anything.
    pub(super) fn host(&self, name: &str) -> bool {
        self.hosts.contains(&without_root(name).to_ascii_lowercase())
    }

    /// Whether this address may be connected to, and if not, why.
    pub(super) fn check_address(&self, address: IpAddr) -> Result<(), &'static str> {
        // The host behind a mapped address is the IPv4 host itself.
        let address = address.to_canonical();
        if self.networks.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        let refused = refusal(address).or(self.listed_only.then_some(NOT_LISTED));
        refused.map_or(Ok(()), Err)
    }
}

const NOT_LISTED: &str = "not among the hosts and networks that are allowed";

fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(entries: &[&str]) -> Result<Allow, BadEntry> {
        Allow::parse(&entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_private_is_allowed_unless_it_is_listed() {
        let allow = allow(&[]).unwrap();
        assert!(allow.check_address("1.1.1.1".parse().unwrap()).is_ok());
        assert_eq!(allow.check_address("127.0.0.1".parse().unwrap()), Err("a loopback address"));
        assert!(!allow.host("localhost"));
    }

    #[test]
    fn networks_and_addresses_are_allowed() {
        let allow = allow(&[" 10.1.0.0/16", "127.0.0.1", "::1", "fd00::/8", ""]).unwrap();
        for (address, allowed) in [
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
            ("::1", true),
            ("fd00::1", true),
            ("fe80::1", false),
            ("64:ff9b::7f00:1", false),
        ] {
            assert_eq!(allow.check_address(address.parse().unwrap()).is_ok(), allowed, "{address}");
        }
    }

    #[test]
    fn a_host_is_its_exact_name() {
        let allow = allow(&["Wiki.Internal", "bücher.example."]).unwrap();
        for (name, allowed) in [
            ("wiki.internal", true),
            ("WIKI.internal.", true),
            ("xn--bcher-kva.example", true),
            ("a.wiki.internal", false),
            ("internal", false),
        ] {
            assert_eq!(allow.host(name), allowed, "{name}");
        }
    }

    #[test]
    fn where_only_the_list_counts_nothing_public_is_reached() {
        let check = |allow: &Allow, url: &str| allow.check_url(&url.parse().unwrap()).is_ok();
        let some = allow(&["10.0.0.0/8", "wiki.internal"]).unwrap().listed_only();
        for (url, allowed) in [
            ("http://10.1.1.1/", true),
            ("http://wiki.internal/", true),
            ("http://1.1.1.1/", false),
            ("http://127.0.0.1/", false),
            // It may resolve into the network.
            ("http://example.com/", true),
        ] {
            assert_eq!(check(&some, url), allowed, "{url}");
        }
        assert!(!check(&Allow::default().listed_only(), "http://example.com/"));
        assert!(
            some.check_address("1.1.1.1".parse().unwrap()).is_err()
                && some.check_address("10.0.0.1".parse().unwrap()).is_ok()
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        for entry in ["10.0.0.0/33", "http://wiki", "wiki:80", "*.internal", "a b", "[::1"] {
            let error = allow(&["wiki.internal", entry]).unwrap_err().to_string();
            assert!(error.contains(entry), "{error}");
        }
    }
}
