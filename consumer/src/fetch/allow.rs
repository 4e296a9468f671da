//! The exceptions from "public addresses only": `FETCH_ALLOW`.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use url::Host;

use super::address::refusal;

/// Hosts and networks that may be reached though they are not public.
#[derive(Debug, Default)]
pub(super) struct Allow {
    /// Lower-case, without the root's dot.
    hosts: HashSet<String>,
    networks: Vec<IpNet>,
}

impl Allow {
    /// Blank entries count as none: that is how an empty variable arrives.
    pub(super) fn parse(entries: &[String]) -> anyhow::Result<Self> {
        let mut allow = Self::default();
        for entry in entries.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty()) {
            allow.add(entry).with_context(|| format!("FETCH_ALLOW: `{entry}` is no host name, address or network"))?;
        }
        Ok(allow)
    }

    fn add(&mut self, entry: &str) -> anyhow::Result<()> {
        if let Ok(address) = entry.parse::<IpAddr>() {
            self.networks.push(address.to_canonical().into());
            return Ok(());
        }
        if entry.contains('/') {
            self.networks.push(entry.parse()?);
            return Ok(());
        }
        ensure!(!entry.contains('*'), "a name stands for itself, not for a pattern");
        match Host::parse(entry)? {
            Host::Domain(name) => {
                self.hosts.insert(without_root(&name).to_owned());
            }
            Host::Ipv4(address) => self.networks.push(IpAddr::from(address).into()),
            Host::Ipv6(address) => self.networks.push(IpAddr::from(address).to_canonical().into()),
        }
        Ok(())
    }

    /// Whether this name may resolve to anything.
    pub(super) fn host(&self, name: &str) -> bool {
        self.hosts.contains(&without_root(name).to_ascii_lowercase())
    }

    /// Whether this address may be connected to, and if not, why.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), &'static str> {
        // The host behind a mapped address is the IPv4 host itself.
        let address = address.to_canonical();
        match refusal(address) {
            Some(reason) if !self.networks.iter().any(|network| network.contains(&address)) => Err(reason),
            _ => Ok(()),
        }
    }
}

fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(entries: &[&str]) -> anyhow::Result<Allow> {
        Allow::parse(&entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn nothing_private_is_allowed_unless_it_is_listed() {
        let allow = allow(&[]).unwrap();
        assert!(allow.check("1.1.1.1".parse().unwrap()).is_ok());
        assert_eq!(allow.check("127.0.0.1".parse().unwrap()), Err("a loopback address"));
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
            assert_eq!(allow.check(address.parse().unwrap()).is_ok(), allowed, "{address}");
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
    fn what_cannot_be_meant_is_refused_by_its_name() {
        for entry in ["10.0.0.0/33", "http://wiki", "wiki:80", "*.internal", "a b", "[::1"] {
            let error = format!("{:#}", allow(&["wiki.internal", entry]).unwrap_err());
            assert!(error.starts_with("FETCH_ALLOW: ") && error.contains(entry), "{error}");
        }
    }
}
