//! Name lookups for the client. What comes out of here is connected to, so nothing is looked up twice.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::timeout;

use super::allow::Allow;

/// One question to one server, and the whole lookup with its repetitions.
const QUERY: Duration = Duration::from_secs(2);
const LOOKUP: Duration = Duration::from_secs(8);

/// Resolves names, to public addresses and those that are allowed.
pub(super) struct CheckedResolver {
    allow: Arc<Allow>,
    dns: TokioResolver,
}

/// Why a name has no address for the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    /// One of its addresses may not be connected to. Then none is: the others are there to get past a check.
    #[error("the name leads to {0}")]
    Refused(&'static str),
    /// The name servers do not answer.
    #[error("the name servers did not answer in time")]
    Timeout,
    /// They answer that there is nothing.
    #[error("the name has no address")]
    NoAddress,
    /// Any other failure.
    #[error(transparent)]
    Dns(NetError),
}

impl From<NetError> for LookupError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Timeout => Self::Timeout,
            error if error.is_no_records_found() => Self::NoAddress,
            error => Self::Dns(error),
        }
    }
}

impl CheckedResolver {
    /// Asks these servers and nothing else, or what the system's configuration says.
    pub(super) fn new(allow: Arc<Allow>, nameservers: &[SocketAddr]) -> Result<Self, NetError> {
        let mut builder = if nameservers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = nameservers.iter().map(server).collect();
            let config = ResolverConfig::from_name_servers(servers);
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        };
        builder.options_mut().timeout = QUERY;
        Ok(Self { allow, dns: builder.build()? })
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow, dns) = (Arc::clone(&self.allow), self.dns.clone());
        Box::pin(async move {
            let addresses = lookup(&allow, &dns, name.as_str()).await?;
            // The client puts the URL's port in place of 0.
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

async fn lookup(allow: &Allow, dns: &TokioResolver, name: &str) -> Result<Vec<IpAddr>, LookupError> {
    let found = timeout(LOOKUP, dns.lookup_ip(name)).await.map_err(|_| LookupError::Timeout)??;
    let addresses: Vec<IpAddr> = found.iter().collect();
    if addresses.is_empty() {
        return Err(LookupError::NoAddress);
    }
    if !allow.host(name) {
        for address in &addresses {
            allow.check_address(*address).map_err(LookupError::Refused)?;
        }
    }
    Ok(addresses)
}
