//! One broker: its address, and the pool that its connections come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{Object, Pool, PoolError, TimeoutType};
use lapin::Connection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use super::connector::Connector;
use super::declare::declare_on;
use super::fault::Fault;
use super::tls;
use super::url::{Address, AmqpUrl};
use crate::topology::Table;

/// A protocol header, to which any AMQP 0-9-1 server answers (specification 4.2.2).
const AMQP_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
/// The first byte of what an AMQP server answers to it: a method frame, or a header of its own when it refuses.
const AMQP_ANSWERS: [u8; 2] = [1, b'A'];
/// The first byte of a TLS alert.
const TLS_ALERT: u8 = 0x15;
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Leaked threads that a process lives with before it asks to be restarted.
const HANDSHAKE_TIMEOUTS: u32 = 32;
/// Publisher, consumers and one for whatever is short-lived.
const POOL_SIZE: usize = 8;

/// The broker as a source of connections. Long-lived ones are taken out of the pool; what is short-lived borrows.
#[derive(Clone)]
pub struct Broker {
    address: Address,
    pool: Pool<Connector>,
    handshake_timeouts: Arc<AtomicU32>,
}

impl Broker {
    /// Names the broker; connects to nothing yet. `name` is shown in the management UI's list of connections.
    ///
    /// Must run inside the multi-thread runtime, which the connections then use.
    ///
    /// # Errors
    /// The pool could not be built.
    pub fn new(address: Address, name: &str) -> Result<Self, Fault> {
        let pool = Pool::builder(Connector::new(address.clone(), name)?)
            .max_size(POOL_SIZE)
            .wait_timeout(Some(HANDSHAKE_DEADLINE))
            .create_timeout(Some(HANDSHAKE_DEADLINE))
            .recycle_timeout(Some(PROBE_DEADLINE))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Fault::Pool(error.to_string()))?;
        Ok(Self { address, pool, handshake_timeouts: Arc::default() })
    }

    /// The broker's address, without credentials.
    #[must_use]
    pub fn url(&self) -> &AmqpUrl {
        &self.address.url
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
        Ok(Object::take(self.pooled().await?))
    }

    async fn pooled(&self) -> Result<Object<Connector>, Fault> {
        self.probe().await?;
        match self.pool.get().await {
            Ok(connection) => Ok(connection),
            Err(PoolError::Backend(error)) => Err(error.into()),
            Err(PoolError::Timeout(TimeoutType::Create)) => Err(self.handshake_timed_out()),
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
    /// for ever. Over TLS the certificates of both are checked here, where what is wrong with them can be said.
    async fn probe(&self) -> Result<(), Fault> {
        let (host, port) = self.address.url.host_and_port();
        let address = format!("{host}:{port}");
        // A TLS stream is large, and this is part of every future that connects.
        match timeout(PROBE_DEADLINE, Box::pin(self.exchange(host, port, &address))).await {
            Ok(Ok(answer)) if AMQP_ANSWERS.contains(&answer) => Ok(()),
            Ok(Ok(TLS_ALERT)) => Err(Fault::TlsPort { address }),
            Ok(Err(fault)) => Err(fault),
            _ => Err(Fault::Silent { address }),
        }
    }

    /// The first byte that the peer answers, over TLS if that is wanted; 0 when it answers nothing.
    async fn exchange(&self, host: &str, port: u16, address: &str) -> Result<u8, Fault> {
        let unreachable = |source| Fault::Unreachable { address: address.to_owned(), source };
        let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
        let Some(tls) = &self.address.tls else { return first_byte(stream).await.map_err(unreachable) };
        let secured = tls.connector().connect_async(host, stream.compat()).await;
        let answer = match secured {
            Ok(stream) => first_byte(stream.compat()).await,
            Err(error) => Err(error),
        };
        answer.map_err(|error| tls::explain(address, error))
    }
}

async fn first_byte(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<u8> {
    stream.write_all(AMQP_HEADER).await?;
    stream.flush().await?;
    let mut answer = [0; 8];
    let read = stream.read(&mut answer).await?;
    Ok(answer[..read].first().copied().unwrap_or_default())
}
