//! The client against servers on loopback, which it reaches through its list only.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::dns::Resolve;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::*;

fn fetcher(allow: &[&str], nameservers: &[SocketAddr]) -> Fetcher {
    let entries: Vec<String> = allow.iter().map(|&entry| entry.to_owned()).collect();
    Fetcher::new(Allow::parse(&entries).unwrap(), nameservers).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Answers every connection with these bytes and holds it open. It counts connections.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (count, mut tasks) = (Arc::clone(&connections), JoinSet::new());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            let answer = Arc::new(answer);
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = Arc::clone(&answer);
                open.spawn(async move {
                    let mut head = vec![0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut head).await {
                        let answer = answer(&String::from_utf8_lossy(&head[..read]));
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                });
            }
        });
        Self { address, connections, _tasks: tasks }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn found(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
}

/// A name server that answers each question for an A record with the next of these lists, and then with the last.
async fn name_server(answers: &'static [&'static [[u8; 4]]]) -> (SocketAddr, JoinSet<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, mut tasks) = (socket.local_addr().unwrap(), JoinSet::new());
    tasks.spawn(async move {
        let (mut asked, mut query) = (0, [0; 512]);
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let name = query[12..length].iter().position(|&byte| byte == 0).unwrap_or_default();
            let question = &query[12..12 + name + 5];
            let is_a = question[name + 1..name + 3] == [0, 1];
            let records = if is_a { answers[asked.min(answers.len() - 1)] } else { &[] };
            asked += usize::from(is_a);
            let count = u8::try_from(records.len()).unwrap();
            let mut answer = [&query[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0], question].concat();
            for record in records {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(record);
            }
            let _ = socket.send_to(&answer, from).await;
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn every_spelling_of_a_loopback_address_is_refused_and_meant() {
    let server = Server::start(|_| ok("here")).await;
    let port = server.address.port();
    for host in ["127.0.0.1", "127.0.0.1.", "127.1", "2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001"] {
        let get = |fetcher: Fetcher| async move {
            fetcher.send(Request::get(format!("http://{host}:{port}/"), soon())).await
        };
        assert_eq!(get(fetcher(&[], &[])).await.err().unwrap().kind(), "AddressRefused", "{host}");
        let allowed = get(fetcher(&["127.0.0.1"], &[])).await.unwrap();
        assert_eq!(allowed.bytes(10).await.unwrap(), "here", "{host}");
    }
    assert_eq!(server.connections(), 7);
}

#[tokio::test]
async fn no_url_to_another_network_or_of_another_kind_gets_anywhere() {
    for (url, refused) in [
        ("http://[::1]/", "AddressRefused"),
        ("http://[::ffff:127.0.0.1]/", "AddressRefused"),
        ("http://[::ffff:7f00:1]/", "AddressRefused"),
        ("http://[64:ff9b::7f00:1]/", "AddressRefused"),
        ("http://169.254.169.254/latest/meta-data/", "AddressRefused"),
        ("http://0/", "AddressRefused"),
        ("http://user:pw@127.0.0.1/", "AddressRefused"),
        ("http://user@example.com/", "AddressRefused"),
        ("http://:pw@example.com/", "AddressRefused"),
        ("file:///etc/passwd", "AddressRefused"),
        ("ftp://example.com/", "AddressRefused"),
        ("gopher://127.0.0.1:6379/_x", "AddressRefused"),
        ("data:text/plain,x", "AddressRefused"),
        ("/relative", "InvalidUrl"),
        ("http://", "InvalidUrl"),
        ("http://256.1.1.1/", "InvalidUrl"),
        ("http://a{b.test/", "InvalidUrl"),
    ] {
        let error = fetcher(&[], &[]).send(Request::get(url, soon())).await.err().unwrap();
        let message = error.to_string();
        assert_eq!(error.kind(), refused, "{url}");
        assert!(!message.contains("pw") && !message.contains("meta-data"), "{message}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_what_was_checked_is_connected_to() {
    let (dns, _running) = name_server(&[&[[1, 1, 1, 1]], &[[127, 0, 0, 1]], &[[1, 1, 1, 1], [10, 0, 0, 1]]]).await;
    let resolver = resolver::CheckedResolver::new(Arc::default(), &[dns]).unwrap();
    let resolve = || async { resolver.resolve("rebind.test".parse().unwrap()).await.map(Iterator::collect::<Vec<_>>) };
    assert_eq!(resolve().await.unwrap(), [SocketAddr::from(([1, 1, 1, 1], 0))]);
    assert_eq!(resolve().await.unwrap_err().to_string(), "the name leads to a loopback address");
    let mixed = resolve().await.unwrap_err().to_string();
    assert_eq!(mixed, "the name leads to a private address", "one address that is not public is enough");
}

#[tokio::test]
async fn a_name_that_leads_inside_is_refused_unless_it_is_allowed() {
    let server = Server::start(|_| ok("inside")).await;
    let (dns, _running) = name_server(&[&[[127, 0, 0, 1]]]).await;
    let url = format!("http://Wiki.Test:{}/?token=secret", server.address.port());
    let error = fetcher(&["other.test"], &[dns]).send(Request::get(&url, soon())).await.err().unwrap();
    assert_eq!(error.to_string(), "wiki.test: a loopback address");
    assert_eq!((error.kind(), server.connections()), ("AddressRefused", 0));
    let response = fetcher(&["wiki.test"], &[dns]).send(Request::get(&url, soon())).await.unwrap();
    assert_eq!(response.bytes(10).await.unwrap(), "inside");
}

#[tokio::test]
async fn redirects_are_checked_one_by_one_and_bounded() {
    let inside = Server::start(|_| ok("secret")).await;
    let to_inside = format!("http://127.0.0.1:{}/", inside.address.port());
    let to_inside_by_v6 = format!("http://[::ffff:127.0.0.1]:{}/", inside.address.port());
    let (dns, _running) = name_server(&[&[[127, 0, 0, 1]]]).await;
    let outside = Server::start(move |head| match head.split(' ').nth(1) {
        Some("/inside") => found(&to_inside),
        Some("/inside-v6") => found(&to_inside_by_v6),
        Some("/file") => found("file:///etc/passwd"),
        Some("/once") => found("/end"),
        Some("/end") => ok("end"),
        _ => found("/again"),
    })
    .await;
    let fetcher = fetcher(&["outside.test"], &[dns]);
    let get = |path: &str| {
        let request = Request::get(format!("http://outside.test:{}{path}", outside.address.port()), soon());
        fetcher.send(request)
    };
    for path in ["/inside", "/inside-v6", "/file"] {
        assert_eq!(get(path).await.err().unwrap().kind(), "AddressRefused", "{path}");
    }
    assert_eq!(get("/again").await.err().unwrap().kind(), "TooManyRedirects");
    let end = get("/once").await.unwrap();
    assert_eq!(end.url().path(), "/end");
    assert_eq!(end.bytes(3).await.unwrap(), "end");
    assert_eq!((inside.connections(), outside.connections()), (0, 1), "and the connection was kept");
}

#[tokio::test]
async fn a_body_has_a_bound_whether_its_length_is_told_or_not() {
    let server = Server::start(|head| match head.split(' ').nth(1) {
        Some("/told") => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_owned(),
        Some("/chunked") => format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{:100}\r\n", "x"),
        _ => ok(&"x".repeat(99)),
    })
    .await;
    let fetcher = fetcher(&["127.0.0.1"], &[]);
    let get = |path: &str| fetcher.send(Request::get(server.url(path), soon()));
    for path in ["/told", "/chunked"] {
        assert_eq!(get(path).await.unwrap().bytes(99).await.unwrap_err().kind(), "ResponseTooLarge", "{path}");
    }
    let response = get("/").await.unwrap();
    assert_eq!(response.content_length(), Some(99));
    assert_eq!(response.bytes(99).await.unwrap().len(), 99);
    let head = Request { method: Method::HEAD, ..Request::get(server.url("/told"), soon()) };
    let head = fetcher.send(head).await.unwrap();
    assert_eq!(head.headers()["content-length"], "1000");
    assert_eq!(head.bytes(99).await.unwrap(), "", "a HEAD tells the length of what it does not send");
}

#[tokio::test]
async fn head_and_body_share_one_deadline() {
    let server = Server::start(|head| match head.split(' ').nth(1) {
        Some("/body") => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx".to_owned(),
        _ => "HTTP/1.1 200 OK\r\n".to_owned(),
    })
    .await;
    let fetcher = fetcher(&["127.0.0.1"], &[]);
    let brief = || Instant::now() + Duration::from_millis(100);
    let error = fetcher.send(Request::get(server.url("/head"), brief())).await.err().unwrap();
    assert!(error.is_transient() && error.kind() == "FetchTimeout");
    let response = fetcher.send(Request::get(server.url("/body"), brief())).await.unwrap();
    assert_eq!(response.bytes(10).await.unwrap_err().kind(), "FetchTimeout");
}

#[tokio::test]
async fn what_may_be_different_next_time_is_retried_and_tells_no_query() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let request = Request::get(format!("http://{closed}/?token=secret"), soon());
    let error = fetcher(&["127.0.0.1"], &[]).send(request).await.err().unwrap();
    assert!(error.is_transient() && error.kind() == "FetchFailed");
    let message = error.to_string();
    assert!(message.contains("127.0.0.1") && message.contains("refused") && !message.contains("secret"), "{message}");
}

#[test]
fn name_servers_are_checked_without_a_runtime() {
    let with = |address: &str| Fetcher::new(Allow::default(), &[address.parse().unwrap()]);
    assert!(with("127.0.0.1:53").is_ok());
    for address in ["127.0.0.1:0", "0.0.0.0:53", "224.0.0.251:5353"] {
        let error = with(address).err().unwrap().to_string();
        assert!(error.contains(address), "{error}");
    }
}

#[tokio::test]
async fn a_body_goes_to_the_first_server_only() {
    let inside = Server::start(|_| ok("secret")).await;
    let to_inside = inside.url("/");
    let outside = Server::start(move |request| match request.split(' ').nth(1) {
        Some("/away") => found(&to_inside).replace("302", "307"),
        _ => ok(if request.contains("content-length: 4") { "body" } else { "none" }),
    })
    .await;
    let fetcher = fetcher(&["127.0.0.1"], &[]);
    let post = |path: &str| {
        let (url, headers) = (outside.url(path), HeaderMap::new());
        let fetcher = fetcher.clone();
        async move { fetcher.post(&url, headers, Bytes::from_static(b"body"), soon()).await.unwrap() }
    };
    assert_eq!(post("/").await.bytes(10).await.unwrap(), "body");
    assert_eq!((post("/away").await.status().as_u16(), inside.connections()), (307, 0));
}

#[tokio::test]
async fn a_name_without_an_address_may_have_one_next_time() {
    let (dns, _running) = name_server(&[&[]]).await;
    let error = fetcher(&[], &[dns]).send(Request::get("http://nothing.test/", soon())).await.err().unwrap();
    assert_eq!(error.to_string(), "nothing.test: the name has no address");
    assert_eq!(error.kind(), "FetchFailed");
}
