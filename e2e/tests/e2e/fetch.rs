//! `fetch_url` over HTTP: URLs that lead inside, names that change their mind, answers without end, and plain ones.

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::{NameServer, Pair, Web, broker, ports, procfs};
use serde_json::{Value, json};

use crate::life::SOON;

/// Where tasks may not go.
const INSIDE: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Loopback too, so that no test leaves the machine; `FETCH_ALLOW` makes it the outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Nobody connects to it: a name that has this address and a private one is refused.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

const MAX_RSS: u64 = 300 << 20;

/// Runs `fetch_url` once: how it ended.
async fn fetch(pair: &Pair, kwargs: Value) -> Result<Value> {
    let wish = json!({"task": "fetch_url", "kwargs": kwargs, "retry": {"max_retries": 0}});
    let id = pair.client().accepted(&wish).await?;
    pair.client().await_terminal(&id, SOON).await
}

async fn get(pair: &Pair, url: &str) -> Result<Value> {
    fetch(pair, json!({"url": url})).await
}

/// URLs that are one and the same server's.
fn spellings(inside: &Web, outside: &Web) -> Vec<String> {
    let hosts = ["127.0.0.1", "2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "127.1", "inside.test"];
    let mut urls: Vec<String> = hosts.iter().map(|host| inside.url_as(host, "/text")).collect();
    urls.push(outside.url(&format!("/redirect/{}", inside.url("/text"))));
    urls.push(outside.url(&format!("/redirect/{}", inside.url_as("2130706433", "/text"))));
    urls
}

#[tokio::test]
async fn no_url_leads_inside_and_the_same_ones_do_when_it_is_allowed() -> Result<()> {
    let (inside, outside) = (Web::start().await?, Web::at(OUTSIDE, ports::free()?).await?);
    let names = NameServer::start().await?;
    names.set("inside.test", &[&[INSIDE]]);
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_NAMESERVERS", &names.address().to_string());
    let mut pair = pair.consumer_env("FETCH_ALLOW", &OUTSIDE.to_string()).start().await?;
    let never = [
        inside.url_as("[::1]", "/text"),
        inside.url_as("[::ffff:127.0.0.1]", "/text"),
        inside.url_as("[::ffff:7f00:1]", "/text"),
        inside.url_as("[64:ff9b::7f00:1]", "/text"),
        inside.url_as("localhost", "/text"),
        inside.url_as("user:pw@127.0.0.1", "/text"),
        outside.url(&format!("/redirect/{}", inside.url_as("[::ffff:127.0.0.1]", "/text"))),
        outside.url("/redirect/http://169.254.169.254/latest/meta-data/"),
        outside.url("/redirect/file:///etc/passwd"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://0.0.0.0/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1/".to_owned(),
        "gopher://127.0.0.1:6379/_FLUSHALL".to_owned(),
        "data:text/plain,x".to_owned(),
    ];
    for url in spellings(&inside, &outside).iter().chain(&never) {
        let ended = get(&pair, url).await?;
        assert_eq!((&ended["state"], &ended["error"]["type"]), (&json!("FAILURE"), &json!("AddressRefused")), "{url}");
        assert!(!ended["error"]["message"].to_string().contains("pw"), "{ended:#}");
    }
    assert_eq!((inside.connections(), outside.connections()), (0, 5), "of those only the redirects were asked for");

    pair.consumers[0].terminate(SOON).await?;
    pair.start_consumer(&[("FETCH_ALLOW", &format!("{OUTSIDE},{INSIDE}"))]).await?;
    let mut allowed = spellings(&inside, &outside);
    let mapped = inside.url_as("[::ffff:127.0.0.1]", "/text");
    // Not on a machine without IPv6.
    allowed.extend(tokio::net::UdpSocket::bind("[::]:0").await.map(|_| mapped));
    for url in &allowed {
        let ended = get(&pair, url).await?;
        assert_eq!((&ended["state"], &ended["result"]["text"]), (&json!("SUCCESS"), &json!("größer")), "{ended:#}");
        assert_eq!(ended["result"]["headers"]["server"], INSIDE.to_string());
    }
    assert_eq!(inside.connections(), allowed.len());
    pair.stop().await
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_that_is_connected_to() -> Result<()> {
    let names = NameServer::start().await?;
    let port = ports::free()?;
    let (inside, outside) = (Web::at(INSIDE, port).await?, Web::at(OUTSIDE, port).await?);
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_NAMESERVERS", &names.address().to_string());
    let pair = pair.consumer_env("FETCH_ALLOW", &OUTSIDE.to_string()).start().await?;
    let url = outside.url_as("rebind.test", "/text");
    names.set("rebind.test", &[&[OUTSIDE], &[INSIDE]]);
    let first = get(&pair, &url).await?;
    assert_eq!(first["result"]["headers"]["server"], OUTSIDE.to_string(), "{first:#}");
    assert_eq!(names.asked("rebind.test"), 1, "a second question would have been answered with the other address");
    assert_eq!(get(&pair, &url).await?["error"]["type"], "AddressRefused");
    assert_eq!(names.asked("rebind.test"), 2);

    for several in [[PUBLIC, INSIDE], [OUTSIDE, INSIDE]] {
        names.set("rebind.test", &[&several]);
        let ended = get(&pair, &url).await?;
        assert_eq!(ended["error"]["message"], "rebind.test: a loopback address", "{ended:#}");
    }
    // The name changes between the redirect and the request that follows it.
    names.set("rebind.test", &[&[OUTSIDE], &[INSIDE]]);
    let again = outside.url_as("rebind.test", &format!("/redirect/{url}"));
    assert_eq!(get(&pair, &again).await?["error"]["type"], "AddressRefused");
    assert_eq!((inside.connections(), outside.connections()), (0, 2));
    pair.stop().await
}

#[tokio::test]
async fn an_answer_without_end_costs_neither_memory_nor_time() -> Result<()> {
    let web = Web::start().await?;
    let mut pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1").start().await?;
    let start = Instant::now();
    let mut ids = Vec::new();
    for path in ["/told", "/chunked", "/endless"].repeat(8) {
        let wish = json!({"task": "fetch_url", "args": [web.url(path)]});
        ids.push(pair.client().accepted(&wish).await?);
    }
    for id in ids {
        let ended = pair.client().await_terminal(&id, SOON).await?;
        let expected = (&json!("FAILURE"), &json!("ResponseTooLarge"), &json!(0));
        assert_eq!((&ended["state"], &ended["error"]["type"], &ended["retries"]), expected, "{ended:#}");
    }
    let (elapsed, peak) = (start.elapsed(), procfs::peak_rss(pair.consumers[0].pid())?);
    writeln!(
        std::io::stderr(),
        "24 answers without end: refused after {elapsed:?} and {} MiB, the worker had at most {} MiB",
        web.sent() >> 20,
        peak >> 20,
    )?;
    assert!(peak < MAX_RSS, "{peak} bytes");
    assert!(web.sent() < 512 << 20, "{} bytes were taken", web.sent());

    let ended = fetch(&pair, json!({"url": web.url("/endless-head")})).await?;
    assert_eq!(ended["error"]["type"], "FetchFailed", "{ended:#}");
    let start = Instant::now();
    let ended = fetch(&pair, json!({"url": web.url("/silent"), "timeout": 0.5})).await?;
    assert_eq!(ended["error"]["type"], "FetchTimeout", "{ended:#}");
    assert!(start.elapsed() >= Duration::from_millis(500) && start.elapsed() < Duration::from_secs(20));
    assert!(procfs::peak_rss(pair.consumers[0].pid())? < MAX_RSS);
    pair.consumers[0].await_ready(Duration::ZERO).await?;
    assert_eq!(get(&pair, &web.url("/text")).await?["state"], "SUCCESS");
    pair.stop().await
}

#[tokio::test]
async fn an_answer_is_returned_whatever_its_status_and_kind() -> Result<()> {
    let web = Web::start().await?;
    let (here, there) = (web.url("/echo"), web.url_as("localhost", "/echo"));
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1,localhost").start().await?;
    let ended = get(&pair, &web.url("/json")).await?;
    let answer = &ended["result"];
    assert_eq!((&answer["status"], &answer["url"]), (&json!(200), &json!(web.url("/json"))));
    let shown = pair.client().get_path(&format!("/v1/tasks/{}", ended["task_id"].as_str().unwrap_or_default())).await?;
    assert!(shown.text.contains("1180591620717411303424"), "{}", shown.text);
    assert_eq!(get(&pair, &web.url("/binary")).await?["result"]["base64"], "iVBORw==");
    for status in [404, 429, 503] {
        let answer = get(&pair, &web.url(&format!("/status/{status}"))).await?["result"].take();
        assert_eq!((&answer["status"], &answer["headers"]["retry-after"]), (&json!(status), &json!("7")));
    }
    let head = fetch(&pair, json!({"url": web.url("/text"), "method": "HEAD"})).await?["result"].take();
    assert_eq!((&head["text"], &head["headers"]["content-length"]), (&json!(""), &json!("8")));

    let secret = json!({"Authorization": "Bearer abc", "X-Api-Key": "abc", "Accept": "text/plain"});
    let echo = |url: String, method: &str| fetch(&pair, json!({"url": url, "method": method, "headers": secret}));
    let direct = echo(web.url(&format!("/redirect/{here}")), "GET").await?["result"]["text"].take().to_string();
    assert!(direct.contains("abc") && direct.contains("text/plain"), "{direct}");
    let other = echo(web.url(&format!("/redirect/{there}")), "GET").await?["result"]["text"].take().to_string();
    assert!(!other.contains("abc") && other.contains("text/plain"), "{other}");
    let posted = echo(here, "POST").await?;
    let id = posted["task_id"].as_str().unwrap_or_default();
    let text = posted["result"]["text"].as_str().unwrap_or_default();
    assert!(text.starts_with("POST /echo ") && text.contains(&format!("idempotency-key: {id}\r\n")), "{text}");
    pair.stop().await
}
