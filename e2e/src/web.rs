//! Owns a web server that a worker is sent to: plain answers, redirects, and answers that never end.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::ports;

const GIGABYTE: u64 = 1 << 30;
const BLOCK: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<BTreeMap<String, Arc<[u8]>>>,
    connections: AtomicUsize,
    sent: AtomicU64,
    requests: Mutex<BTreeMap<String, usize>>,
}

/// A web server. Each connection gets one answer, so each request is one connection:
///
/// | path | answer |
/// | --- | --- |
/// | `/json`, `/text`, `/binary` | a body of that kind |
/// | `/echo` | the request's head as text |
/// | `/status/503` | that status |
/// | `/redirect/URL` | 302 to that URL |
/// | `/told`, `/chunked` | 1 GiB, with its length or without |
/// | `/endless` | a body without end |
/// | `/after/SECONDS/NAME` | a body after that long |
/// | `/silent` | nothing, and the connection stays open |
/// | `/endless-head` | headers without end |
/// | what was [put](Web::put) there | that |
#[derive(Debug)]
pub struct Web {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

impl Web {
    /// Listens on a port of its own.
    pub async fn start() -> Result<Self> {
        Self::at(Ipv4Addr::LOCALHOST, ports::free()?).await
    }

    /// Listens there.
    pub async fn at(ip: Ipv4Addr, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((ip, port)).await?;
        let (address, shared) = (listener.local_addr()?, Arc::<Shared>::default());
        let mut task = JoinSet::new();
        task.spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _task: task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The URL of a path under another name for the host.
    #[must_use]
    pub fn url_as(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.address.port())
    }

    /// Has this body at a path from now on.
    pub fn put(&self, path: &str, body: impl Into<Arc<[u8]>>) {
        self.shared.files().insert(path.to_owned(), body.into());
    }

    /// How many connections were made to it.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How often each path was asked for: an account of what ran, kept outside whatever ran it.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, usize> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many bytes it could send of bodies and heads without end.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<[u8]>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, path: &str) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry(path.to_owned()).or_default() += 1;
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        open.spawn(async move {
            // Who goes away in the middle has seen enough.
            let _ = answer(stream, &shared).await;
        });
        while open.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let head = read_head(&mut stream).await?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    let ip = stream.local_addr()?.ip();
    shared.count(path);
    if let Some(seconds) = path.strip_prefix("/after/").and_then(|rest| rest.split_once('/')?.0.parse().ok()) {
        sleep(Duration::from_secs_f64(seconds)).await;
    }
    let file = shared.files().get(path).cloned();
    if let Some(body) = file {
        let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(start.as_bytes()).await?;
        stream.write_all(&body).await?;
        return stream.shutdown().await;
    }
    if let Some(canned) = canned(path, &head, ip) {
        stream.write_all(&canned).await?;
        return stream.shutdown().await;
    }
    let start = match path {
        "/told" => format!("HTTP/1.1 200 OK\r\nContent-Length: {GIGABYTE}\r\n\r\n"),
        "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "/endless" => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
        "/endless-head" => "HTTP/1.1 200 OK\r\n".to_owned(),
        _ => return wait_for_end(&mut stream).await,
    };
    stream.write_all(start.as_bytes()).await?;
    let block = match path {
        "/chunked" => format!("{BLOCK:x}\r\n{}\r\n", "x".repeat(BLOCK)),
        "/endless-head" => "X-Pad: x\r\n".repeat(BLOCK / 10),
        _ => "x".repeat(BLOCK),
    };
    let blocks = if path.starts_with("/endless") { u64::MAX } else { GIGABYTE / BLOCK as u64 };
    for _ in 0..blocks {
        stream.write_all(block.as_bytes()).await?;
        shared.sent.fetch_add(block.len() as u64, Ordering::SeqCst);
    }
    stream.shutdown().await
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await? == 1 {
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn wait_for_end(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.read(&mut [0]).await.map(|_| ())
}

/// A whole answer. Its header `Server` tells which server it was.
fn canned(path: &str, head: &str, ip: IpAddr) -> Option<Vec<u8>> {
    let (status, header, body): (&str, String, &[u8]) = match path {
        "/json" => ("200", "Content-Type: application/json".to_owned(), br#"{"n": 1180591620717411303424}"#),
        "/text" => ("200", "Content-Type: text/plain; charset=utf-8".to_owned(), "größer".as_bytes()),
        "/binary" => ("200", "Content-Type: image/png".to_owned(), b"\x89PNG"),
        "/echo" => ("200", "Content-Type: text/plain".to_owned(), head.as_bytes()),
        _ => match path.split_once('/')?.1.split_once('/')? {
            ("after", _) => ("200", "Content-Type: text/plain".to_owned(), b"late"),
            ("status", status) => (status, "Retry-After: 7".to_owned(), b"no"),
            ("redirect", location) => ("302", format!("Location: {location}"), b""),
            _ => return None,
        },
    };
    let length = body.len();
    let start = format!(
        "HTTP/1.1 {status} As Asked\r\nServer: {ip}\r\n{header}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let body = if head.starts_with("HEAD ") { &[] } else { body };
    Some([start.as_bytes(), body].concat())
}
