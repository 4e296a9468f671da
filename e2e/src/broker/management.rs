//! Owns what is asked of a node through its management API: virtual hosts, queues, bindings, messages.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::{client, until};

/// How long the API may take to tell of a policy.
const POLICY: Duration = Duration::from_secs(30);

/// A node's management API.
#[derive(Debug, Clone)]
pub struct Management {
    base: Url,
    credentials: (String, String),
    http: reqwest::Client,
}

/// A message as it lies in a queue.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its application headers, `x-death` and the like included.
    pub headers: Value,
    /// Its AMQP properties, `headers` included.
    pub properties: Value,
    /// Its body; base64 if it is not UTF-8.
    pub payload: String,
    /// The key it was last published or dead-lettered with.
    pub routing_key: String,
    /// The exchange it last came through.
    pub exchange: String,
}

impl Management {
    pub(super) fn new(port: u16, (user, password): &(String, String)) -> Result<Self> {
        Ok(Self {
            base: Url::parse(&format!("http://127.0.0.1:{port}/"))?,
            credentials: (user.clone(), password.clone()),
            http: client::http()?,
        })
    }

    /// The address of its UI.
    #[must_use]
    pub fn url(&self) -> String {
        self.base.to_string()
    }

    /// The user and the password.
    #[must_use]
    pub fn credentials(&self) -> (&str, &str) {
        (&self.credentials.0, &self.credentials.1)
    }

    /// Calls the API: `path` is what follows `/api/`, not yet percent-encoded. The answer is null where there is none.
    pub async fn call(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<Value> {
        let mut url = self.base.clone();
        url.path_segments_mut().ok().context("a URL without a path")?.push("api").extend(path);
        let (user, password) = self.credentials();
        let mut request = self.http.request(method.clone(), url).basic_auth(user, Some(password));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            bail!("{method} {path:?}: {status} {text}");
        }
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }

    pub(super) async fn is_up(&self) -> bool {
        self.call(Method::GET, &["overview"], None).await.is_ok()
    }

    /// Creates a virtual host in which this user may do everything.
    pub async fn add_vhost(&self, vhost: &str) -> Result<()> {
        self.call(Method::PUT, &["vhosts", vhost], None).await?;
        self.allow(vhost, &self.credentials.0).await
    }

    /// Makes a user, or gives one another password. Its connections stay.
    pub async fn set_password(&self, user: &str, password: &str) -> Result<()> {
        let wish = json!({"password": password, "tags": ""});
        self.call(Method::PUT, &["users", user], Some(&wish)).await.map(drop)
    }

    /// Lets a user do everything in a virtual host.
    pub async fn allow(&self, vhost: &str, user: &str) -> Result<()> {
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.call(Method::PUT, &["permissions", vhost, user], Some(&all)).await.map(drop)
    }

    /// Takes a user's permissions in a virtual host away. Its connections stay.
    pub async fn forbid(&self, vhost: &str, user: &str) -> Result<()> {
        self.call(Method::DELETE, &["permissions", vhost, user], None).await.map(drop)
    }

    /// Bounds a queue to about so many messages, by a policy, and waits until it is in force.
    pub async fn limit_length(&self, vhost: &str, queue: &str, length: u32) -> Result<()> {
        let pattern = format!("^{}$", queue.replace('.', "\\."));
        let policy = json!({"pattern": pattern, "apply-to": "queues", "definition": {"max-length": length}});
        self.call(Method::PUT, &["policies", vhost, "length"], Some(&policy)).await?;
        until("the policy", POLICY, async || {
            let found = self.queue(vhost, queue).await?;
            ensure!(found["policy"] == "length", "{}", found["policy"]);
            Ok(())
        })
        .await
    }

    /// What the API says about a queue. Its counts lag by up to ten seconds: see [`super::Endpoint::depth`].
    pub async fn queue(&self, vhost: &str, queue: &str) -> Result<Value> {
        self.call(Method::GET, &["queues", vhost, queue], None).await
    }

    /// The names of a virtual host's queues.
    pub async fn queues(&self, vhost: &str) -> Result<Vec<String>> {
        let list = self.call(Method::GET, &["queues", vhost], None).await?;
        let names = list.as_array().into_iter().flatten().filter_map(|queue| queue["name"].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    /// Deletes an exchange with its bindings.
    pub async fn delete_exchange(&self, vhost: &str, exchange: &str) -> Result<()> {
        self.call(Method::DELETE, &["exchanges", vhost, exchange], None).await.map(drop)
    }

    /// Deletes a queue with its messages.
    pub async fn delete_queue(&self, vhost: &str, queue: &str) -> Result<()> {
        self.call(Method::DELETE, &["queues", vhost, queue], None).await.map(drop)
    }

    /// Deletes the messages of a queue that are ready.
    pub async fn purge_queue(&self, vhost: &str, queue: &str) -> Result<()> {
        self.call(Method::DELETE, &["queues", vhost, queue, "contents"], None).await.map(drop)
    }

    /// Binds a queue to an exchange.
    pub async fn bind(&self, vhost: &str, exchange: &str, queue: &str, key: &str, arguments: &Value) -> Result<()> {
        let binding = json!({"routing_key": key, "arguments": arguments});
        self.call(Method::POST, &["bindings", vhost, "e", exchange, "q", queue], Some(&binding)).await.map(drop)
    }

    /// Deletes every binding between an exchange and a queue; returns them for [`Management::restore`].
    pub async fn unbind(&self, vhost: &str, exchange: &str, queue: &str) -> Result<Vec<Value>> {
        let path = ["bindings", vhost, "e", exchange, "q", queue];
        let bindings = self.call(Method::GET, &path, None).await?.as_array().cloned().unwrap_or_default();
        for binding in &bindings {
            let key = binding["properties_key"].as_str().context("a binding without a key")?;
            self.call(Method::DELETE, &[&path[..], &[key]].concat(), None).await?;
        }
        Ok(bindings)
    }

    /// Makes the bindings again that [`Management::unbind`] deleted.
    pub async fn restore(&self, bindings: &[Value]) -> Result<()> {
        for binding in bindings {
            let text = |field: &str| binding[field].as_str().unwrap_or_default();
            let (vhost, exchange) = (text("vhost"), text("source"));
            self.bind(vhost, exchange, text("destination"), text("routing_key"), &binding["arguments"]).await?;
        }
        Ok(())
    }

    /// Looks at the first messages of a queue and puts them back, which counts as a delivery of each. Payloads are cut off
    /// after 100 kB.
    pub async fn peek(&self, vhost: &str, queue: &str, count: usize) -> Result<Vec<Message>> {
        let wish = json!({"count": count, "ackmode": "ack_requeue_true", "encoding": "auto", "truncate": 100_000});
        let list = self.call(Method::POST, &["queues", vhost, queue, "get"], Some(&wish)).await?;
        Ok(list.as_array().into_iter().flatten().map(message).collect())
    }

    /// Publishes a message as an operator would by hand; whether it was routed.
    pub async fn publish(
        &self,
        vhost: &str,
        exchange: &str,
        key: &str,
        properties: &Value,
        body: &str,
    ) -> Result<bool> {
        let message = json!({
            "properties": properties, "routing_key": key, "payload": body, "payload_encoding": "string"
        });
        let exchange = if exchange.is_empty() { "amq.default" } else { exchange };
        let answer = self.call(Method::POST, &["exchanges", vhost, exchange, "publish"], Some(&message)).await?;
        Ok(answer["routed"] == true)
    }

    /// Waits until a queue exists.
    pub async fn await_queue(&self, vhost: &str, queue: &str, deadline: Duration) -> Result<()> {
        until(queue, deadline, async || self.queue(vhost, queue).await).await.map(drop)
    }
}

fn message(value: &Value) -> Message {
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    Message {
        headers: value["properties"]["headers"].clone(),
        properties: value["properties"].clone(),
        payload: text("payload"),
        routing_key: text("routing_key"),
        exchange: text("exchange"),
    }
}
