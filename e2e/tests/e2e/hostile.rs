//! Clients that are slow, greedy or no HTTP clients at all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::load::Connection;
use e2e::{Client, Pair, Service, broker, procfs, until};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::life::SOON;

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

/// What a producer has before it is attacked.
struct Before {
    files: usize,
    memory: u64,
}

impl Before {
    fn of(producer: &Service) -> Result<Self> {
        Ok(Self { files: procfs::open_files(producer.pid())?, memory: procfs::peak_rss(producer.pid())? })
    }

    /// Waits until the producer has closed every connection; the most memory that it took meanwhile.
    async fn await_freed(&self, producer: &Service) -> Result<u64> {
        until("the end of every connection", SOON, async || {
            let files = procfs::open_files(producer.pid())?;
            ensure!(files <= self.files + 5, "{files} files are open, {} were", self.files);
            Ok(())
        })
        .await?;
        Ok(procfs::peak_rss(producer.pid())?.saturating_sub(self.memory))
    }
}

/// Submits on connections of its own, twenty a second, beside that work, each of which must be accepted: what the work
/// came to and the 99th percentile of their times.
async fn beside_a_good_client<T>(client: &Client, work: impl Future<Output = Result<T>>) -> Result<(T, Duration)> {
    let address = client.address();
    let submits = async {
        let (mut tick, mut times) = (interval(Duration::from_millis(50)), Vec::new());
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done.map(|done| (done, times)),
                _ = tick.tick() => {}
            }
            let submit = async {
                let start = Instant::now();
                let task = json!({"task": "echo", "args": [1], "countdown": 600});
                Connection::open(address).await?.submit(&task).await.map(|_| start.elapsed())
            };
            tokio::select! {
                done = &mut work => return done.map(|done| (done, times)),
                time = timeout(SOON, submit) => times.push(time.context("a submit hangs")??),
            }
        }
    };
    let (done, mut times) = submits.await?;
    times.sort_unstable();
    ensure!(times.len() >= 20, "only {} submits", times.len());
    Ok((done, times[times.len() * 99 / 100]))
}

/// Connects so often, sends these bytes and holds the connections.
async fn hold(client: &Client, count: usize, bytes: &[u8]) -> Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(client.address()).await?;
        stream.write_all(bytes).await?;
        held.push(stream);
    }
    Ok(held)
}

/// Sends a byte on each of them twice a second until the server has ended all: the statuses of its answers.
async fn drip(held: Vec<TcpStream>, byte: u8) -> Result<Vec<String>> {
    let mut drips = JoinSet::new();
    for mut stream in held {
        drips.spawn(async move {
            let mut answer = [0; 12];
            loop {
                match timeout(Duration::from_millis(500), stream.read_exact(&mut answer)).await {
                    Ok(Ok(_)) => return String::from_utf8_lossy(&answer[9..]).into_owned(),
                    Ok(Err(_)) => return String::new(),
                    Err(_) => drop(stream.write_all(&[byte]).await),
                }
            }
        });
    }
    let all = timeout(SOON, drips.join_all()).await.context("the server waits for ever")?;
    Ok(all)
}

/// Connections that this process may hold.
fn idle() -> Result<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let hard = getrlimit(Resource::RLIMIT_NOFILE)?.1;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(usize::try_from(hard)?.saturating_sub(4_000).clamp(100, 5_000))
}

#[tokio::test]
async fn slow_and_idle_clients_keep_nobody_out() -> Result<()> {
    const SLOW: usize = 300;
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let client = pair.client();
    let ((), alone) = beside_a_good_client(client, async {
        sleep(Duration::from_secs(3)).await;
        Ok(())
    })
    .await?;
    let before = Before::of(&pair.producer)?;
    let get = b"GET /livez HTTP/1.1\r\nhost: a\r\nx: ";
    let post = b"POST /v1/tasks HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let batch = b"POST /nowhere HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let slow = async {
        let idle = hold(client, idle()?, b"").await?;
        let count = idle.len();
        let (heads, bodies) = (hold(client, SLOW, get).await?, hold(client, SLOW, post).await?);
        let unread = hold(client, SLOW, batch).await?;
        let all = tokio::try_join!(drip(heads, b'x'), drip(bodies, b' '), drip(unread, b'0'), drip(idle, b'G'));
        all.map(|statuses| (count, statuses))
    };
    let ((idle, (heads, bodies, unread, _)), beside) = beside_a_good_client(client, slow).await?;
    let taken = before.await_freed(&pair.producer).await?;
    println!("{idle} idle and {SLOW} slow with their heads, with their bodies and with what nobody reads:");
    println!("a submit takes {alone:?} alone, {beside:?} beside them (p99); {} KiB", taken / 1024);
    assert_eq!(heads, vec!["408"; SLOW]);
    assert_eq!(bodies, vec!["408"; SLOW]);
    assert_eq!(unread, vec!["404"; SLOW]);
    assert!(beside < Duration::from_secs(5), "{beside:?}");
    assert!(taken < 256 << 20, "{taken} bytes");
    pair.stop().await
}

/// Sends this again and again until the server ends the connection or has answered: the answer's status.
async fn flood(client: &Client, head: String, block: Vec<u8>) -> Result<String> {
    let stream = TcpStream::connect(client.address()).await?;
    let (mut answers, mut sender) = stream.into_split();
    let send = async {
        let _ = sender.write_all(head.as_bytes()).await;
        while sender.write_all(&block).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    tokio::select! {
        () = send => {}
        read = timeout(SOON, answers.read_exact(&mut answer)) => drop(read.context("no answer")?),
    }
    Ok(String::from_utf8_lossy(&answer[9..]).into_owned())
}

#[tokio::test]
async fn floods_are_refused_in_little_memory() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let client = pair.client();
    let before = Before::of(&pair.producer)?;
    let post = "POST /v1/tasks HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let batch = "POST /v1/tasks/batch HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let chunk = [b"10000\r\n".as_slice(), &vec![b'['; 65536], b"\r\n"].concat();
    let kinds = [
        (format!("{post}transfer-encoding: chunked\r\n\r\n"), chunk.clone(), "413"),
        (format!("{batch}transfer-encoding: chunked\r\n\r\n"), chunk.clone(), "413"),
        (format!("{post}content-length: 99999999999\r\n\r\n"), vec![b'['; 65536], "413"),
        (format!("{post}content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"), chunk.clone(), "415"),
        (format!("{post}content-encoding: zstd\r\ntransfer-encoding: chunked\r\n\r\n"), chunk, "415"),
        ("GET /livez HTTP/1.1\r\nhost: a\r\n".to_owned(), b"x: y\r\n".repeat(10_000), "431"),
        ("GET /".to_owned(), vec![b'x'; 65536], "400"),
    ];
    let floods = kinds.iter().cycle().take(10 * kinds.len());
    let floods = floods.map(async |(head, block, status)| {
        let answered = flood(client, head.clone(), block.clone()).await?;
        ensure!(answered == *status || (*status == "400" && answered == "431"), "{head}: {answered}, not {status}");
        Ok(())
    });
    let (_, beside) = beside_a_good_client(client, try_join_all(floods)).await?;
    let taken = before.await_freed(&pair.producer).await?;
    println!("beside 70 floods a submit takes {beside:?} (p99); {} KiB", taken / 1024);
    assert!(beside < Duration::from_secs(5), "{beside:?}");
    assert!(taken < 128 << 20, "{taken} bytes");
    pair.stop().await
}

/// Of a CPU, beside the good client: who answers those that do not read takes a whole one, until no buffer has room.
const IDLE: f64 = 0.4;

/// The share of a CPU that a producer takes in the first second in which that is little, or in the last of these.
async fn until_idle(producer: &Service, within: Duration) -> Result<f64> {
    let start = Instant::now();
    loop {
        let (since, cpu) = (Instant::now(), producer.cpu_time()?);
        sleep(Duration::from_secs(1)).await;
        let busy = producer.cpu_time()?.saturating_sub(cpu).as_secs_f64() / since.elapsed().as_secs_f64();
        if busy < IDLE || start.elapsed() > within {
            return Ok(busy);
        }
    }
}

#[tokio::test]
async fn clients_that_do_not_read_hold_little_and_not_for_ever() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let client = pair.client();
    let large = json!({"task": "echo", "args": ["x".repeat(8_000)], "countdown": 600, "queue": "default"});
    let tasks = client.send(client.request(reqwest::Method::POST, "/v1/tasks/batch").json(&vec![large; 950])).await?;
    ensure!(tasks.status == 202, "{}", tasks.text);
    let id = tasks.body["tasks"][0]["task_id"].as_str().context("no id")?;
    let before = Before::of(&pair.producer)?;
    let list = b"GET /v1/tasks?limit=1000 HTTP/1.1\r\nhost: a\r\n\r\n";
    let events = format!("GET /v1/tasks/{id}/events HTTP/1.1\r\nhost: a\r\n\r\n");
    let one = format!("GET /v1/tasks/{id} HTTP/1.1\r\nhost: a\r\n\r\n");
    let deaf = async {
        let lists = hold(client, 100, list).await?;
        let listeners = hold(client, 200, events.as_bytes()).await?;
        let mut pipelines = hold(client, 4, b"").await?;
        for pipeline in &mut pipelines {
            // As much as the server takes of thousands of requests on each.
            let _ = timeout(Duration::from_millis(200), pipeline.write_all(one.repeat(5_000).as_bytes())).await;
        }
        let refused = client.get_path("/v1/tasks?limit=1000").await?;
        assert!(refused.status == 503 && refused.header("retry-after").is_some(), "{}", refused.status);
        assert_eq!(client.get_path("/v1/tasks?limit=2").await?.status, 200, "small answers have room always");
        // Sooner than they are given up.
        let busy = until_idle(&pair.producer, Duration::from_secs(12)).await?;
        drop(listeners);
        Ok((lists, pipelines, busy))
    };
    let ((lists, pipelines, busy), beside) = beside_a_good_client(client, deaf).await?;
    let taken = before.await_freed(&pair.producer).await?;
    println!("beside clients that do not read a submit takes {beside:?} (p99); {} KiB, {busy:.2} CPUs", taken / 1024);
    drop((lists, pipelines));
    assert!(beside < Duration::from_secs(5), "{beside:?}");
    assert!(taken < 256 << 20, "{taken} bytes");
    assert!(busy < IDLE, "{busy} CPUs for those who do nothing");
    assert_eq!(client.get_path("/v1/tasks?limit=1000").await?.status, 200, "there is room again");
    pair.stop().await
}
