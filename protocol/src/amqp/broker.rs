//! One broker: its address, and the pool that its connections come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use deadpool_lapin::{Manager, Pool, PoolError, Runtime};
use lapin::{Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::declare::declare_on;
use super::fault::Fault;
use super::url::AmqpUrl;
use crate::topology::Table;

/// A protocol header, to which any AMQP 0-9-1 server answers (specification 4.2.2).
const AMQP_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Leaked threads that a process lives with before it asks to be restarted.
const HANDSHAKE_TIMEOUTS: u32 = 32;
/// Publisher, consumers and one for whatever is short-lived.
const POOL_SIZE: usize = 8;

/// The broker as a source of connections. Long-lived ones are taken out of the pool; what is short-lived borrows.
#[derive(Clone)]
pub struct Broker {
    url: AmqpUrl,
    pool: Pool,
    handshake_timeouts: Arc<AtomicU32>,
}

impl Broker {
    /// Names the broker; connects to nothing yet. `name` is shown in the management UI's list of connections.
    ///
    /// Must run inside the multi-thread runtime, which the connections then use.
    ///
    /// # Errors
    /// The pool could not be built.
    pub fn new(url: AmqpUrl, name: &str) -> Result<Self, Fault> {
        let name = name.to_owned();
        let properties = move || ConnectionProperties::default().with_connection_name(name.clone().into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| Fault::Pool(error.to_string()))?;
        let manager = Manager::new(url.expose(), properties, runtime);
        let pool = Pool::builder(manager)
            .max_size(POOL_SIZE)
            .wait_timeout(Some(HANDSHAKE_DEADLINE))
            .create_timeout(Some(HANDSHAKE_DEADLINE))
            .recycle_timeout(Some(PROBE_DEADLINE))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Fault::Pool(error.to_string()))?;
        Ok(Self { url, pool, handshake_timeouts: Arc::default() })
    }

    /// The broker's address, without credentials.
    #[must_use]
    pub fn url(&self) -> &AmqpUrl {
        &self.url
    }

    /// Declares the table over a pooled connection.
    ///
    /// # Errors
    /// See [`Fault`]; [`Fault::Mismatch`] names the object.
    pub async fn declare(&self, table: &Table) -> Result<(), Fault> {
        let connection = self.pooled().await?;
        declare_on(&connection, table).await
    }

    /// A connection of one's own, taken out of the pool.
    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        Ok(deadpool_lapin::Object::take(self.pooled().await?))
    }

    async fn pooled(&self) -> Result<deadpool_lapin::Object, Fault> {
        self.probe().await?;
        match self.pool.get().await {
            Ok(connection) => Ok(connection),
            Err(PoolError::Backend(error)) => Err(error.into()),
            Err(PoolError::Timeout(deadpool_lapin::TimeoutType::Create)) => Err(self.handshake_timed_out()),
            Err(error) => Err(Fault::Pool(error.to_string())),
        }
    }

    fn handshake_timed_out(&self) -> Fault {
        let count = self.handshake_timeouts.fetch_add(1, Ordering::Relaxed) + 1;
        if count >= HANDSHAKE_TIMEOUTS {
            return Fault::TooManyHandshakeTimeouts(count);
        }
        Fault::HandshakeTimeout(HANDSHAKE_DEADLINE)
    }

    /// Asks the peer for a sign of life first: lapin ignores its own connection timeout, so a silent peer would hang it
    /// for ever. Over TLS only the port is tried, since the AMQP header would be a broken handshake.
    async fn probe(&self) -> Result<(), Fault> {
        let (host, port) = self.url.address();
        let address = format!("{host}:{port}");
        let silent = || Fault::Silent { address: address.clone() };
        let connect = timeout(PROBE_DEADLINE, TcpStream::connect((host, port)));
        let mut stream = connect
            .await
            .map_err(|_| silent())?
            .map_err(|source| Fault::Unreachable { address: address.clone(), source })?;
        if self.url.is_tls() {
            return Ok(());
        }
        let exchange = async {
            stream.write_all(AMQP_HEADER).await?;
            stream.read(&mut [0; 8]).await
        };
        match timeout(PROBE_DEADLINE, exchange).await {
            Ok(Ok(read)) if read > 0 => Ok(()),
            Ok(Err(source)) => Err(Fault::Unreachable { address, source }),
            _ => Err(silent()),
        }
    }
}
