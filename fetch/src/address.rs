//! Which addresses are public. Pure: tables from IANA's special-purpose address registries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// The first three groups are all that the table below needs, but for the networks at zero.
const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

const IPV4: [(Ipv4Net, &str); 17] = [
    (v4(0, 0, 0, 0, 8), "an unspecified address"),
    (v4(10, 0, 0, 0, 8), "a private address"),
    (v4(100, 64, 0, 0, 10), "a shared address (carrier-grade NAT)"),
    (v4(127, 0, 0, 0, 8), "a loopback address"),
    // No host's but the cloud's own: it answers on every virtual machine there.
    (v4(168, 63, 129, 16, 32), "a cloud platform's own address"),
    (v4(169, 254, 0, 0, 16), "a link-local address"),
    (v4(172, 16, 0, 0, 12), "a private address"),
    (v4(192, 0, 0, 0, 24), "an address for protocol assignments"),
    (v4(192, 0, 2, 0, 24), "a documentation address"),
    (v4(192, 88, 99, 0, 24), "a 6to4 relay's address"),
    (v4(192, 168, 0, 0, 16), "a private address"),
    (v4(198, 18, 0, 0, 15), "a benchmarking address"),
    (v4(198, 51, 100, 0, 24), "a documentation address"),
    (v4(203, 0, 113, 0, 24), "a documentation address"),
    (v4(224, 0, 0, 0, 4), "a multicast address"),
    (v4(255, 255, 255, 255, 32), "the broadcast address"),
    (v4(240, 0, 0, 0, 4), "a reserved address"),
];

const IPV6: [(Ipv6Net, &str); 15] = [
    (v6(0, 0, 0, 128), "an unspecified address"),
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), "a loopback address"),
    (v6(0, 0, 0, 96), "an IPv4-compatible address"),
    (v6(0x64, 0xff9b, 1, 48), "a local NAT64 address"),
    (v6(0x100, 0, 0, 64), "a discard-only address"),
    (v6(0x2001, 0, 0, 32), "a Teredo address"),
    (v6(0x2001, 0, 0, 23), "an address for protocol assignments"),
    (v6(0x2001, 0xdb8, 0, 32), "a documentation address"),
    (v6(0x2002, 0, 0, 16), "a 6to4 address"),
    (v6(0x3fff, 0, 0, 20), "a documentation address"),
    (v6(0x5f00, 0, 0, 16), "a segment routing address"),
    (v6(0xfc00, 0, 0, 7), "a private address (unique local)"),
    (v6(0xfe80, 0, 0, 10), "a link-local address"),
    (v6(0xfec0, 0, 0, 10), "a private address (site-local)"),
    (v6(0xff00, 0, 0, 8), "a multicast address"),
];

const GLOBAL_UNICAST: Ipv6Net = v6(0x2000, 0, 0, 3);
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);

/// What it is that is not public, `None` of a globally routable unicast address.
///
/// IPv6 addresses behind which an IPv4 host is reached (mapped, NAT64, ISATAP) are judged by that host's; those of
/// tunnels that nobody should meet any more (compatible, 6to4, Teredo) are refused whatever is inside.
pub(super) fn refusal(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => refusal_v4(address),
        IpAddr::V6(address) => refusal_v6(address),
    }
}

fn refusal_v4(address: Ipv4Addr) -> Option<&'static str> {
    IPV4.iter().find(|(network, _)| network.contains(&address)).map(|(_, reason)| *reason)
}

fn refusal_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some((_, reason)) = IPV6.iter().find(|(network, _)| network.contains(&address)) {
        return Some(reason);
    }
    let nat64 = NAT64.contains(&address);
    if !nat64 && !GLOBAL_UNICAST.contains(&address) {
        return Some("not a global unicast address");
    }
    if nat64 || is_isatap(address) { refusal_v4(last_32_bits(address)) } else { None }
}

/// RFC 5214: the interface identifier is `[00-00 or 02-00]-5E-FE` and the IPv4 address.
fn is_isatap(address: Ipv6Addr) -> bool {
    let groups = address.segments();
    groups[4] & !0x0200 == 0 && groups[5] == 0x5efe
}

fn last_32_bits(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(address: &str) -> Option<&'static str> {
        refusal(address.parse().unwrap())
    }

    #[test]
    fn public_addresses_pass() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450:4001:80b::200e",
            "2001:200::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2a00::5efe:101:101",
        ] {
            assert_eq!(of(address), None, "{address}");
        }
    }

    #[test]
    fn every_other_network_is_refused_from_its_first_address_to_its_last() {
        for (first, last, reason) in [
            ("0.0.0.0", "0.255.255.255", "unspecified"),
            ("10.0.0.0", "10.255.255.255", "private"),
            ("100.64.0.0", "100.127.255.255", "shared"),
            ("127.0.0.0", "127.255.255.255", "loopback"),
            ("168.63.129.16", "168.63.129.16", "cloud"),
            ("169.254.0.0", "169.254.255.255", "link-local"),
            ("172.16.0.0", "172.31.255.255", "private"),
            ("192.0.0.0", "192.0.0.255", "protocol"),
            ("192.0.2.0", "192.0.2.255", "documentation"),
            ("192.168.0.0", "192.168.255.255", "private"),
            ("198.18.0.0", "198.19.255.255", "benchmarking"),
            ("198.51.100.0", "198.51.100.255", "documentation"),
            ("203.0.113.0", "203.0.113.255", "documentation"),
            ("224.0.0.0", "239.255.255.255", "multicast"),
            ("240.0.0.0", "255.255.255.254", "reserved"),
            ("255.255.255.255", "255.255.255.255", "broadcast"),
            ("::", "::", "unspecified"),
            ("::1", "::1", "loopback"),
            ("::2", "::ffff:ffff", "compatible"),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "NAT64"),
            ("100::", "100::ffff:ffff:ffff:ffff", "discard"),
            ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "Teredo"),
            ("2001:1::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "protocol"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
            ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "6to4"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "documentation"),
            ("4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not a global"),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private"),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "link-local"),
            ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "private"),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "multicast"),
        ] {
            for address in [first, last] {
                assert!(of(address).is_some_and(|told| told.contains(reason)), "{address}: {:?}", of(address));
            }
        }
    }

    #[test]
    fn an_embedded_address_is_what_counts() {
        for address in [
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::808:808",
            "2002:7f00:1::",
            "2001:0:4136:e378:8000:63bf:80ff:fffe",
            "2a00::5efe:7f00:1",
            "2a00::200:5efe:c0a8:1",
            "fe80::5efe:101:101",
        ] {
            assert!(of(address).is_some(), "{address}");
        }
    }

    /// The standard library's opinion, as far as it has one.
    fn known_by_std(address: Ipv4Addr) -> bool {
        address.is_loopback()
            || address.is_private()
            || address.is_link_local()
            || address.is_documentation()
            || address.is_multicast()
            || address.is_broadcast()
            || address.is_unspecified()
    }

    proptest! {
        #[test]
        fn an_ipv4_address_is_judged_the_same_in_any_dress(bits: u32, prefix in 0x2a00_0000_u32..0x2aff_ffff) {
            let plain = Ipv4Addr::from_bits(bits);
            let told = refusal(plain.into());
            prop_assert!(!known_by_std(plain) || told.is_some());
            prop_assert_eq!(refusal(plain.to_ipv6_mapped().into()), told);
            let nat64 = Ipv6Addr::from_bits(0x0064_ff9b_u128 << 96 | u128::from(bits));
            prop_assert_eq!(refusal(nat64.into()), told);
            let isatap = Ipv6Addr::from_bits(u128::from(prefix) << 96 | 0x5efe_u128 << 32 | u128::from(bits));
            prop_assert_eq!(refusal(isatap.into()), told);
            let sixtofour = Ipv6Addr::from_bits(0x2002_u128 << 112 | u128::from(bits) << 80);
            prop_assert!(refusal(sixtofour.into()).is_some());
        }

        #[test]
        fn outside_global_unicast_only_what_leads_to_ipv4_can_pass(bits: u128) {
            let address = Ipv6Addr::from_bits(bits);
            let passes = refusal(address.into()).is_none();
            let leads_to_ipv4 = address.to_ipv4_mapped().is_some() || NAT64.contains(&address);
            prop_assert!(!passes || leads_to_ipv4 || GLOBAL_UNICAST.contains(&address));
        }

        #[test]
        fn private_networks_never_pass(host: u32) {
            for network in [v4(10, 0, 0, 0, 8), v4(127, 0, 0, 0, 8), v4(169, 254, 0, 0, 16), v4(192, 168, 0, 0, 16)] {
                let address = Ipv4Addr::from_bits(network.network().to_bits() | host & network.hostmask().to_bits());
                prop_assert!(refusal(address.into()).is_some());
            }
        }
    }
}
