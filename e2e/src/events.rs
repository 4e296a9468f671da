//! Owns a listener's end of a stream of server-sent events. HTTP by hand, so that a thousand of them cost little.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The stream of a task's events. Dropping it closes its connection.
#[derive(Debug)]
pub struct Events {
    connection: BufReader<TcpStream>,
    head: String,
    received: String,
    comments: usize,
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its `id`.
    pub id: String,
    /// Its `event`.
    pub name: String,
    /// Its `data`, null if that is not JSON.
    pub data: Value,
}

impl Events {
    /// Asks for the events of a task, after those up to `last` if that is given, and reads the head of the answer.
    pub async fn open(address: SocketAddr, id: &str, last: Option<&str>) -> Result<Self> {
        Self::open_with(address, id, last, None).await
    }

    /// The same with an API key.
    pub async fn open_with(address: SocketAddr, id: &str, last: Option<&str>, key: Option<&str>) -> Result<Self> {
        let last = last.map(|last| format!("last-event-id: {last}\r\n")).unwrap_or_default();
        let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        let request = format!("GET /v1/tasks/{id}/events HTTP/1.1\r\nhost: e2e\r\n{key}{last}\r\n");
        let mut connection = BufReader::with_capacity(1024, TcpStream::connect(address).await?);
        connection.write_all(request.as_bytes()).await?;
        let mut head = String::new();
        while connection.read_line(&mut head).await? > 2 {}
        Ok(Self { connection, head: head.to_ascii_lowercase(), received: String::new(), comments: 0 })
    }

    /// The status of the answer.
    pub fn status(&self) -> Result<u16> {
        let status = self.head.split(' ').nth(1).and_then(|code| code.parse().ok());
        status.with_context(|| format!("no status line: {:?}", self.head))
    }

    /// Whether the answer has this header, in lower case.
    #[must_use]
    pub fn has_header(&self, header: &str) -> bool {
        self.head.lines().any(|line| line == header)
    }

    /// Comments so far.
    #[must_use]
    pub fn comments(&self) -> usize {
        self.comments
    }

    /// The next event, `None` when the server has ended the stream. That neither comes in time is an error.
    pub async fn next(&mut self, deadline: Duration) -> Result<Option<Event>> {
        timeout(deadline, self.read_event()).await.with_context(|| format!("no event within {deadline:?}"))?
    }

    /// The events up to the end of the stream.
    pub async fn rest(&mut self, deadline: Duration) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next(deadline).await? {
            events.push(event);
        }
        Ok(events)
    }

    async fn read_event(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some((block, rest)) = self.received.split_once("\n\n") {
                let (event, rest) = (parse(block), rest.to_owned());
                self.comments += usize::from(block.starts_with(':'));
                self.received = rest;
                match event {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                }
            }
            if !self.read_chunk().await? {
                ensure!(self.received.is_empty(), "cut in the middle of an event: {:?}", self.received);
                return Ok(None);
            }
        }
    }

    /// One chunk of the answer (RFC 9112, section 7.1); `false` at its end.
    async fn read_chunk(&mut self) -> Result<bool> {
        let mut line = String::new();
        if self.connection.read_line(&mut line).await? == 0 {
            bail!("the connection is cut");
        }
        let length = usize::from_str_radix(line.trim_end(), 16).with_context(|| format!("no chunk: {line:?}"))?;
        let mut chunk = vec![0; length + 2];
        self.connection.read_exact(&mut chunk).await?;
        self.received.push_str(std::str::from_utf8(&chunk[..length])?);
        Ok(length > 0)
    }
}

/// `None` for a block without data: a comment, or when to come again.
fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| {
        let values: Vec<&str> = block.lines().filter_map(|line| line.strip_prefix(name)).collect();
        (!values.is_empty()).then(|| values.join("\n"))
    };
    let data = serde_json::from_str(&field("data: ")?).unwrap_or_default();
    Some(Event { id: field("id: ")?, name: field("event: ")?, data })
}
