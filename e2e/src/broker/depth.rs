//! Owns one AMQP question: what a passive declare answers about a queue.
//!
//! Written by hand on a socket. The management API is no substitute, its counts lag; and a client library would be a
//! second place that names one.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

const START: (u16, u16) = (10, 10);
const TUNE: (u16, u16) = (10, 30);
const OPEN_OK: (u16, u16) = (10, 41);
const CHANNEL_OPEN_OK: (u16, u16) = (20, 11);
const DECLARE_OK: (u16, u16) = (50, 11);

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages ready for delivery, without those delivered and not yet acknowledged.
    pub ready: u32,
    /// Consumers.
    pub consumers: u32,
}

pub(super) async fn query(address: SocketAddr, credentials: (&str, &str), vhost: &str, queue: &str) -> Result<Depth> {
    timeout(DEADLINE, ask(address, credentials, vhost, queue))
        .await?
        .with_context(|| format!("a passive declare of {queue}"))
}

async fn ask(address: SocketAddr, (user, password): (&str, &str), vhost: &str, queue: &str) -> Result<Depth> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    expect(&mut stream, START).await?;
    let login = Method::new(10, 11).table().short("PLAIN").long(&format!("\0{user}\0{password}")).short("en_US");
    login.send(&mut stream, 0).await?;
    let limits = expect(&mut stream, TUNE).await?;
    let (channels_and_frame, _heartbeat) = limits.split_at_checked(6).context("a short tune")?;
    Method::new(10, 31).bytes(channels_and_frame).bytes(&[0, 0]).send(&mut stream, 0).await?;
    Method::new(10, 40).short(vhost).short("").bytes(&[0]).send(&mut stream, 0).await?;
    expect(&mut stream, OPEN_OK).await?;
    Method::new(20, 10).short("").send(&mut stream, 1).await?;
    expect(&mut stream, CHANNEL_OPEN_OK).await?;
    let passive = 1;
    Method::new(50, 10).bytes(&[0, 0]).short(queue).bytes(&[passive]).table().send(&mut stream, 1).await?;
    let answer = expect(&mut stream, DECLARE_OK).await?;
    let depth = counts(&answer).context("a short declare-ok")?;
    Method::new(10, 50).bytes(&[0, 200]).short("").bytes(&[0; 4]).send(&mut stream, 0).await?;
    Ok(depth)
}

/// Past the queue's name: two 32-bit numbers.
fn counts(answer: &[u8]) -> Option<Depth> {
    let numbers = answer.get(1 + usize::from(*answer.first()?)..)?;
    let number = |at: usize| Some(u32::from_be_bytes(numbers.get(at..at + 4)?.try_into().ok()?));
    Some(Depth { ready: number(0)?, consumers: number(4)? })
}

/// Reads one method frame and returns its arguments. Anything but the wanted method is an error with its text.
async fn expect(stream: &mut TcpStream, wanted: (u16, u16)) -> Result<Vec<u8>> {
    let kind = stream.read_u8().await?;
    let _channel = stream.read_u16().await?;
    let size = stream.read_u32().await?;
    let mut payload = vec![0; usize::try_from(size)? + 1];
    stream.read_exact(&mut payload).await?;
    payload.pop();
    let method =
        payload.first_chunk().map(|&[a, b, c, d]: &[u8; 4]| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
    if kind != 1 || method != Some(wanted) {
        bail!("{method:?} instead of {wanted:?}: {}", String::from_utf8_lossy(&payload));
    }
    Ok(payload.split_off(4))
}

struct Method(Vec<u8>);

impl Method {
    fn new(class: u16, method: u16) -> Self {
        Self([class.to_be_bytes(), method.to_be_bytes()].concat())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// An empty table.
    fn table(self) -> Self {
        self.bytes(&[0; 4])
    }

    fn short(mut self, text: &str) -> Self {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes(text.as_bytes())
    }

    fn long(self, text: &str) -> Self {
        self.bytes(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes()).bytes(text.as_bytes())
    }

    async fn send(self, stream: &mut TcpStream, channel: u16) -> Result<()> {
        let size = u32::try_from(self.0.len())?;
        let head = [&[1], &channel.to_be_bytes()[..], &size.to_be_bytes()].concat();
        stream.write_all(&[head, self.0, vec![0xCE]].concat()).await?;
        Ok(())
    }
}
