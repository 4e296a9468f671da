//! Owns the choice of ports.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Below Linux's range for outgoing connections (32768 and up): a port from that range can be taken by any client
/// between the moment it was found free and the moment the service binds it, above all while the service restarts.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
    // Test binaries that run at once start at different places.
    let seed = std::process::id().wrapping_mul(2_654_435_761) >> 16;
    AtomicU16::new(u16::try_from(seed % u32::from(COUNT)).unwrap_or_default())
});

/// A loopback port that nobody listens on, and that this process has not handed out before.
pub fn free() -> Result<u16> {
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// `preferred` if nobody listens on it, else any free port.
pub fn free_or(preferred: u16) -> Result<u16> {
    if is_free(preferred) { Ok(preferred) } else { free() }
}

/// Whether nobody listens on a loopback port.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_not_handed_out() {
        let port = free().unwrap();
        assert_eq!(free_or(port).unwrap(), port);
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_ne!(free_or(port).unwrap(), port);
    }
}
