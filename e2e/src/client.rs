//! Owns the view of a client: submit, look, wait, and the bytes that no proper client would send.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use reqwest::header::{CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const REQUEST: Duration = Duration::from_secs(30);
/// Less than that of a request, and the longest that a producer waits.
const WAIT: Duration = Duration::from_secs(20);

/// An HTTP client that keeps no connection: one that a killed or restarted service left behind would fail the next
/// request, and one that another test's runtime drove would never answer.
#[expect(clippy::disallowed_methods, reason = "the tests' own, for servers that they started")]
pub fn http() -> Result<reqwest::Client> {
    // Built beside the worker's client, this one has TLS too, though it never uses it. An error means that it is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(REQUEST).build()?)
}

/// A producer's HTTP API.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    http: reqwest::Client,
    key: Option<String>,
}

/// An answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, null if it is not JSON.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Client {
    /// A client of the producer at `address`.
    pub fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self { address, http: http()?, key: None })
    }

    /// The same, with an API key in every request that [`Client::request`] begins.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// Where it sends.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request to be completed and then sent by [`Client::send`].
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.url(path));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends it and reads the answer to its end.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await?;
        Ok(Answer { status, headers, body: serde_json::from_str(&text).unwrap_or_default(), text })
    }

    /// `POST /v1/tasks` with what should be a task.
    pub async fn submit(&self, task: &Value) -> Result<Answer> {
        self.send(self.request(Method::POST, "/v1/tasks").json(task)).await
    }

    /// Submits a task that must be accepted: its id.
    pub async fn accepted(&self, task: &Value) -> Result<String> {
        let answer = self.submit(task).await?;
        match (answer.status, answer.body["task_id"].as_str()) {
            (202, Some(id)) => Ok(id.to_owned()),
            (status, _) => bail!("{task} is answered {status}: {}", answer.text),
        }
    }

    /// `POST /v1/tasks` with any bytes as any content type.
    pub async fn post(&self, content_type: &str, body: impl Into<Vec<u8>>) -> Result<Answer> {
        let request = self.request(Method::POST, "/v1/tasks").header(CONTENT_TYPE, content_type).body(body.into());
        self.send(request).await
    }

    /// `GET` of any path.
    pub async fn get_path(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    /// `GET /v1/tasks/{id}`: the task. Anything but 200 is an error.
    pub async fn get(&self, id: &str) -> Result<Value> {
        let answer = self.get_path(&format!("/v1/tasks/{id}")).await?;
        if answer.status != 200 {
            bail!("task {id} is answered {}: {}", answer.status, answer.text);
        }
        Ok(answer.body)
    }

    /// Looks at each change of the task, and each second, until it is as wanted, and returns it as it was then.
    pub async fn await_state(&self, id: &str, wanted: impl Fn(&Value) -> bool, deadline: Duration) -> Result<Value> {
        let start = Instant::now();
        let mut answer = self.send(self.read(id)).await?;
        let mut task = Value::Null;
        loop {
            match answer.status {
                200 => task = answer.body.clone(),
                304 => {}
                status => bail!("task {id} is answered {status}: {}", answer.text),
            }
            if wanted(&task) {
                return Ok(task);
            }
            if start.elapsed() > deadline {
                bail!("after {deadline:?} the task is still {task:#}");
            }
            let etag = answer.headers.get(ETAG).context("a task without an ETag")?.clone();
            answer = self.send(self.read(id).header("prefer", "wait=1").header(IF_NONE_MATCH, etag)).await?;
        }
    }

    /// Waits for SUCCESS, FAILURE or REVOKED.
    pub async fn await_terminal(&self, id: &str, deadline: Duration) -> Result<Value> {
        let start = Instant::now();
        loop {
            let wait = deadline.saturating_sub(start.elapsed()).clamp(Duration::from_secs(1), WAIT).as_secs();
            let answer = self.send(self.read(id).header("prefer", format!("wait={wait}"))).await?;
            if answer.status != 200 {
                bail!("task {id} is answered {}: {}", answer.status, answer.text);
            }
            if is_terminal(&answer.body) {
                return Ok(answer.body);
            }
            if start.elapsed() > deadline {
                bail!("after {deadline:?} the task is still {:#}", answer.body);
            }
        }
    }

    fn read(&self, id: &str) -> RequestBuilder {
        self.request(Method::GET, &format!("/v1/tasks/{id}"))
    }

    /// Writes bytes on a fresh connection and returns what comes back until the server closes it, or until nothing
    /// has come for `patience`.
    pub async fn raw(&self, bytes: &[u8], patience: Duration) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).await.context("connecting")?;
        // A server may answer and close before it has read everything: the answer counts.
        let _ = stream.write_all(bytes).await;
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(Ok(read @ 1..)) = timeout(patience, stream.read(&mut chunk)).await {
            answer.extend_from_slice(&chunk[..read]);
        }
        Ok(answer)
    }
}

/// Whether a task, as the API shows it, has ended.
#[must_use]
pub fn is_terminal(task: &Value) -> bool {
    matches!(task["state"].as_str(), Some("SUCCESS" | "FAILURE" | "REVOKED"))
}
