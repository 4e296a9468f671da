//! Owns a conversation in AMQP 0-9-1, one method at a time: what a broker answers to what its user asks.
//!
//! Written by hand on a socket: a client library would be a second place that names one, and would hide refusals.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);
/// Of a body in one frame, bytes: less than the broker's limit.
const FRAME: usize = 100_000;
const FRAME_END: u8 = 0xCE;
const METHOD: u8 = 1;

const START: Id = (10, 10);
const TUNE: Id = (10, 30);
const OPEN_OK: Id = (10, 41);
const CONNECTION_CLOSE: Id = (10, 50);
const CHANNEL_OPEN_OK: Id = (20, 11);
const CHANNEL_CLOSE: Id = (20, 40);

/// A method's class and number.
pub type Id = (u16, u16);

/// The user, the password and the virtual host.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// The user.
    pub user: &'a str,
    /// The password.
    pub password: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
}

/// What the broker answers to a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A method, with its arguments.
    Method(Id, Vec<u8>),
    /// It closes the channel or the connection, with a code and a text.
    Refused(u16, String),
}

/// A connection with one open channel.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
}

impl Wire {
    /// Logs in and opens the channel.
    pub async fn open(address: SocketAddr, login: Login<'_>) -> Result<Self> {
        timeout(DEADLINE, Self::try_open(address, login)).await?
    }

    async fn try_open(address: SocketAddr, Login { user, password, vhost }: Login<'_>) -> Result<Self> {
        let mut wire = Self { stream: TcpStream::connect(address).await? };
        wire.stream.write_all(b"AMQP\0\0\x09\x01").await?;
        wire.expect(START).await?;
        let login = Method::new(10, 11).table().short("PLAIN").long(&format!("\0{user}\0{password}")).short("en_US");
        wire.send(login, 0).await?;
        let limits = wire.expect(TUNE).await?;
        let (channels_and_frame, _heartbeat) = limits.split_at_checked(6).context("a short tune")?;
        wire.send(Method::new(10, 31).bytes(channels_and_frame).bytes(&[0, 0]), 0).await?;
        wire.send(Method::new(10, 40).short(vhost).short("").bytes(&[0]), 0).await?;
        wire.expect(OPEN_OK).await?;
        wire.send(Method::new(20, 10).short(""), 1).await?;
        wire.expect(CHANNEL_OPEN_OK).await?;
        Ok(wire)
    }

    /// Asks on the channel and waits for the answer.
    pub async fn call(&mut self, method: Method) -> Result<Answer> {
        timeout(DEADLINE, async {
            self.send(method, 1).await?;
            self.answer().await
        })
        .await?
    }

    /// Publishes a message on the channel, which is in confirm mode, and waits for the answer.
    pub async fn publish(&mut self, exchange: &str, key: &str, body: &[u8]) -> Result<Answer> {
        let mut header = [60_u16.to_be_bytes(), [0, 0]].concat();
        header.extend((body.len() as u64).to_be_bytes());
        header.extend([0, 0]);
        timeout(DEADLINE, async {
            self.send(Method::new(60, 40).bytes(&[0, 0]).short(exchange).short(key).bytes(&[0]), 1).await?;
            self.frame(2, 1, &header).await?;
            for part in body.chunks(FRAME) {
                self.frame(3, 1, part).await?;
            }
            self.answer().await
        })
        .await?
    }

    /// Says goodbye, which the broker's log otherwise misses.
    pub async fn close(mut self) -> Result<()> {
        self.send(Method::new(10, 50).bytes(&[0, 200]).short("").bytes(&[0; 4]), 0).await
    }

    async fn send(&mut self, method: Method, channel: u16) -> Result<()> {
        self.frame(METHOD, channel, &method.0).await
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let size = u32::try_from(payload.len())?;
        let head = [&[kind], &channel.to_be_bytes()[..], &size.to_be_bytes()].concat();
        self.stream.write_all(&[&head[..], payload, &[FRAME_END]].concat()).await?;
        Ok(())
    }

    /// The arguments of the wanted method; anything else is an error with its text.
    async fn expect(&mut self, wanted: Id) -> Result<Vec<u8>> {
        match self.answer().await? {
            Answer::Method(id, arguments) if id == wanted => Ok(arguments),
            other => bail!("{other:?} instead of {wanted:?}"),
        }
    }

    /// The next method; contents in between are passed over.
    async fn answer(&mut self) -> Result<Answer> {
        loop {
            let kind = self.stream.read_u8().await?;
            let _channel = self.stream.read_u16().await?;
            let size = usize::try_from(self.stream.read_u32().await?)?;
            let mut payload = vec![0; size + 1];
            self.stream.read_exact(&mut payload).await?;
            payload.pop();
            if kind != METHOD {
                continue;
            }
            let &[a, b, c, d] = payload.first_chunk().context("a short method")?;
            let id = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let arguments = payload.split_off(4);
            if id == CHANNEL_CLOSE || id == CONNECTION_CLOSE {
                let code = arguments.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                let text = arguments.get(3..).unwrap_or_default();
                return Ok(Answer::Refused(code, String::from_utf8_lossy(text).into_owned()));
            }
            return Ok(Answer::Method(id, arguments));
        }
    }
}

/// A method with its arguments.
#[derive(Debug, Clone)]
pub struct Method(Vec<u8>);

impl Method {
    /// Without arguments so far.
    #[must_use]
    pub fn new(class: u16, method: u16) -> Self {
        Self([class.to_be_bytes(), method.to_be_bytes()].concat())
    }

    /// Adds bytes as they are.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds an empty table.
    #[must_use]
    pub fn table(self) -> Self {
        self.bytes(&[0; 4])
    }

    /// Adds a short string.
    #[must_use]
    pub fn short(mut self, text: &str) -> Self {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes(text.as_bytes())
    }

    /// Adds a long string.
    #[must_use]
    pub fn long(self, text: &str) -> Self {
        self.bytes(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes()).bytes(text.as_bytes())
    }
}
