//! Owns a receiver of callbacks: it keeps what is posted to it, answers as it is told, and has it verified by another
//! program.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{mail, ports};

const VERIFY: &str = include_str!("verify_webhooks.py");
const VERIFIED: Duration = Duration::from_secs(30);

/// How a post is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// With this status.
    Status(u16),
    /// With a redirect to this URL, which keeps method and body.
    Redirect(String),
    /// Not at all; the connection stays open.
    Silence,
    /// With a body that has no end.
    Endless,
}

/// What was posted.
#[derive(Debug, Clone)]
pub struct Posted {
    /// The path and query.
    pub path: String,
    /// The headers by their lower-case names.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
    /// When it was there.
    pub at: Instant,
}

impl Posted {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body as JSON, null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Shared {
    answers: Mutex<HashMap<String, VecDeque<Answer>>>,
    posts: watch::Sender<Vec<Posted>>,
}

/// A receiver. Each connection takes one post.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

impl Receiver {
    /// Listens on a port of its own.
    pub async fn start() -> Result<Self> {
        Self::at(Ipv4Addr::LOCALHOST.into(), ports::free()?).await
    }

    /// Listens there.
    pub async fn at(ip: IpAddr, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((ip, port)).await?;
        let (address, shared) = (listener.local_addr()?, Arc::<Shared>::default());
        let mut task = JoinSet::new();
        task.spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _task: task })
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

    /// From now on posts to the path are answered like this, the last one for good; 204 where nothing was said.
    pub fn answer(&self, path: &str, answers: &[Answer]) {
        let mut all = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(path.to_owned(), answers.iter().cloned().collect());
    }

    /// What was posted to the path so far.
    #[must_use]
    pub fn posts(&self, path: &str) -> Vec<Posted> {
        self.shared.posts.borrow().iter().filter(|post| post.path == path).cloned().collect()
    }

    /// How much was posted, wherever to.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.posts.borrow().len()
    }

    /// Waits for so many posts to the path.
    pub async fn await_posts(&self, path: &str, count: usize, deadline: Duration) -> Result<Vec<Posted>> {
        let mut news = self.shared.posts.subscribe();
        let is_enough = |posts: &Vec<Posted>| posts.iter().filter(|post| post.path == path).count() >= count;
        let there = timeout(deadline, news.wait_for(is_enough)).await.is_ok();
        let posts = self.posts(path);
        ensure!(there, "after {deadline:?} there are {} of {count} posts to {path}", posts.len());
        Ok(posts)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        open.spawn(async move {
            // Who goes away in the middle has seen enough.
            let _ = take(stream, &shared).await;
        });
        while open.try_join_next().is_some() {}
    }
}

async fn take(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    let post = read(&mut stream).await?;
    let answer = {
        let mut all = shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&post.path) {
            Some(answers) if answers.len() > 1 => answers.pop_front(),
            Some(answers) => answers.front().cloned(),
            None => None,
        }
    };
    shared.posts.send_modify(|posts| posts.push(post));
    let head = match answer.as_ref().unwrap_or(&Answer::Status(204)) {
        Answer::Status(status) => {
            format!("HTTP/1.1 {status} As Told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Answer::Redirect(url) => format!("HTTP/1.1 307 Away\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n"),
        Answer::Silence => String::new(),
        Answer::Endless => "HTTP/1.1 200 Endless\r\n\r\n".to_owned(),
    };
    stream.write_all(head.as_bytes()).await?;
    match answer {
        Some(Answer::Silence) => drop(stream.read(&mut [0]).await?),
        Some(Answer::Endless) => loop {
            stream.write_all(&[b'x'; 8 * 1024]).await?;
        },
        _ => stream.shutdown().await?,
    }
    Ok(())
}

async fn read(stream: &mut TcpStream) -> Result<Posted> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(stream.read(&mut byte).await? == 1, "the head ends early");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap_or_default();
    let path = line.strip_prefix("POST ").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    let path = path.with_context(|| format!("not a POST: {line}"))?.to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<String, String> =
        headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let length = headers.get("content-length").context("no length")?.parse()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Posted { path, headers, body: String::from_utf8(body)?, at: Instant::now() })
}

/// Has the messages verified, each with this secret, by the package that Standard Webhooks gives to receivers.
pub async fn verify(secret: &str, posts: &[Posted]) -> Result<Vec<bool>> {
    let messages: Vec<_> = posts.iter().map(|post| (secret, &post.headers, &post.body)).collect();
    let mut child = Command::new(mail::python()?)
        .args(["-I", "-B", "-c", VERIFY])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    child.stdin.take().context("standard input")?.write_all(&serde_json::to_vec(&messages)?).await?;
    let output = timeout(VERIFIED, child.wait_with_output()).await.context("the verifier does not end")??;
    ensure!(output.status.success(), "the verifier ended: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}
