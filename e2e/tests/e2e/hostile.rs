//! Clients that are slow, greedy or no HTTP clients at all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::{Client, Pair, broker};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More than the longest deadline of the server's, for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The last answer on a connection of its own that is sent these bytes and read to its end: status and problem type.
async fn refused(client: &Client, bytes: &[u8]) -> Result<(u16, String)> {
    let answers = String::from_utf8(client.raw(bytes, PATIENCE).await?)?;
    let place = answers.rfind("HTTP/1.1 ").with_context(|| format!("no answer: {answers:?}"))?;
    let (head, body) = answers[place..].split_once("\r\n\r\n").context("no end of the head")?;
    let status = head[9..12].parse()?;
    assert!(head.to_lowercase().contains("content-type: application/problem+json"), "{answers}");
    let problem: Value = serde_json::from_str(body).with_context(|| answers.clone())?;
    assert_eq!(problem["status"], status);
    Ok((status, problem["type"].as_str().context("no type")?.replace("urn:errand:problem:", "")))
}

#[tokio::test]
async fn a_head_that_is_refused_is_told_why() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let get = "GET /livez HTTP/1.1\r\nhost: a\r\n";
    let post = "POST /v1/tasks HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let malformed = (400, "malformed-request");
    let cases = [
        ("GET /livez HTTP/1.1\r\n\r\n".to_owned(), malformed),
        ("G\x01T /livez HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), malformed),
        ("GET /livez HTTP/3.7\r\nhost: a\r\n\r\n".to_owned(), malformed),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), malformed),
        (format!("{get}\r\nnonsense\r\n\r\n"), malformed),
        (format!("{get}x: a\0b\r\n\r\n"), malformed),
        (format!("{get}host: b\r\n\r\n"), malformed),
        (format!("{get}x: a\r\n folded\r\n\r\n"), malformed),
        // What might be read as two requests by one server and as one by another.
        (format!("{post}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), malformed),
        (format!("{post}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"), malformed),
        (format!("{post}content-length: 2\r\ncontent-length: 2\r\n\r\n{{}}"), malformed),
        (format!("{post}content-length: +2\r\n\r\n{{}}"), malformed),
        (format!("{post}content-length : 2\r\n\r\n{{}}"), malformed),
        (format!("{post}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"), malformed),
        (format!("{post}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), malformed),
        (format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), malformed),
        (post.replace("1.1", "1.0") + "transfer-encoding: chunked\r\n\r\n0\r\n\r\n", malformed),
        (format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n\r\n"), (400, "body-incomplete")),
        (format!("{get}{}\r\n", "x: y\r\n".repeat(96)), (431, "head-too-large")),
        (format!("{get}{}\r\n", "x: y\r\n".repeat(100_000)), (431, "head-too-large")),
        (format!("{get}x: {}\r\n\r\n", "y".repeat(2_000_000)), (431, "head-too-large")),
        (String::new(), (408, "head-too-slow")),
        ("GET /livez HT".to_owned(), (408, "head-too-slow")),
    ];
    // One that was served before may be as slow with its next head, and no slower.
    let mut second = TcpStream::connect(pair.client().address()).await?;
    second.write_all(format!("{get}\r\n").as_bytes()).await?;
    let mut answer = vec![0; 1000];
    let first = second.read(&mut answer).await?;
    assert!(answer[..first].starts_with(b"HTTP/1.1 200 "));
    second.write_all(b"GET /livez").await?;
    let start = Instant::now();
    let answers = cases.iter().map(|(bytes, _)| refused(pair.client(), bytes.as_bytes()));
    for ((bytes, expected), (status, kind)) in cases.iter().zip(try_join_all(answers).await?) {
        let shown: String = bytes.chars().take(200).collect();
        assert_eq!((status, kind.as_str()), *expected, "{shown:?}");
    }
    timeout(PATIENCE, second.read_to_end(&mut answer)).await??;
    assert!(answer[1000..].starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    println!("{} heads are refused within {:?}", cases.len(), start.elapsed());
    let long = format!("{get}x: {}\r\nconnection: close\r\n{}\r\n", "y".repeat(100_000), "x: y\r\n".repeat(90));
    assert!(pair.client().raw(long.as_bytes(), PATIENCE).await?.starts_with(b"HTTP/1.1 200 "));
    let body = r#"{"task": "echo", "args": [1]}"#;
    let expect =
        format!("{post}expect: 100-continue\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let answers = String::from_utf8(pair.client().raw(expect.as_bytes(), PATIENCE).await?)?;
    assert!(answers.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 "), "{answers}");
    pair.stop().await
}
