//! Owns one kept connection. HTTP by hand: on few cores a general client would take the time that is to be measured.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What most answers fit into.
const READ_BYTES: usize = 4 * 1024;

/// One connection that is kept open.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer, as long as nothing else is sent.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: &'a [u8],
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Submits a task that must be accepted: its id.
    pub async fn submit(&mut self, task: &Value) -> Result<String> {
        match self.exchange("POST", "/v1/tasks", &task.to_string()).await? {
            (202, answer) => Ok(answer["task_id"].as_str().context("accepted without an id")?.to_owned()),
            (status, answer) => bail!("{task} is answered {status}: {answer}"),
        }
    }

    /// Waits for the end of a task, for a minute at most, and reads it as it stands then.
    pub async fn wait(&mut self, id: &str, limit: Duration) -> Result<(u16, Value)> {
        let prefer = format!("prefer: wait={}\r\n", limit.as_secs().clamp(1, 60));
        self.ask("GET", &format!("/v1/tasks/{id}"), &prefer, "").await
    }

    /// One request and its answer: status and JSON body.
    pub async fn exchange(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
        self.ask(method, path, "content-type: application/json\r\n", body).await
    }

    /// The same with header lines, each with its line's end.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Result<(u16, Value)> {
        let Answer { status, body } = self.send(&request(method, path, headers, body)).await?;
        Ok((status, serde_json::from_slice(body)?))
    }

    /// One request, as [`request`] writes it, and its answer, which must say how long it is.
    pub async fn send(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.received.clear();
        self.stream.write_all(request).await?;
        let head = loop {
            let seen = self.received.len();
            self.receive(READ_BYTES).await?;
            // The blank line may have begun in what had come before.
            let from = seen.saturating_sub(3);
            if let Some(at) = self.received[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break from + at + 4;
            }
        };
        let (status, length) = read_head(&self.received[..head])?;
        while self.received.len() < head + length {
            self.receive(head + length - self.received.len()).await?;
        }
        ensure!(self.received.len() == head + length, "an answer that goes on after its end");
        Ok(Answer { status, body: &self.received[head..] })
    }

    async fn receive(&mut self, room: usize) -> Result<()> {
        self.received.reserve(room);
        ensure!(self.stream.read_buf(&mut self.received).await? > 0, "the connection is cut");
        Ok(())
    }
}

/// The bytes of a request; `headers` are lines, each with its line's end.
#[must_use]
pub fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: e2e\r\n{headers}content-length: {length}\r\n\r\n{body}").into_bytes()
}

fn read_head(head: &[u8]) -> Result<(u16, usize)> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.with_context(|| format!("no status line: {head:?}"))?;
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length =
        length.and_then(|(_, value)| value.trim().parse().ok()).context("an answer without a content-length")?;
    Ok((status, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_status_and_length_in_any_case() {
        let head = b"HTTP/1.1 202 Accepted\r\nlocation: /v1/tasks/a\r\nContent-Length: 17\r\n\r\n";
        assert_eq!(read_head(head).unwrap(), (202, 17));
        assert!(read_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(read_head(b"nonsense\r\ncontent-length: 1\r\n\r\n").is_err());
    }
}
