//! Owns a TCP relay that can be told to misbehave: the network between a service and the broker.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{self, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::ports;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Stall,
    Refuse,
    Delay(Duration),
}

#[derive(Debug, Clone, Copy)]
struct Order {
    mode: Mode,
    /// Connections made under an earlier number are closed.
    cuts: u64,
}

/// A relay on a port of its own. It runs on the runtime of the test that started it, and ends with it or when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Order>,
    live: watch::Receiver<usize>,
    _task: JoinSet<()>,
}

impl Proxy {
    /// Relays to `target`, which need not listen yet.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let listener = TcpListener::bind(address).await?;
        let orders = watch::Sender::new(Order { mode: Mode::Pass, cuts: 0 });
        let (count, live) = watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(serve(listener, address, target, orders.subscribe(), count));
        Ok(Self { address, orders, live, _task: task })
    }

    /// Where to connect to instead of the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it relays now.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.live.borrow()
    }

    /// Closes every live connection, on both sides. New ones are relayed.
    pub fn cut(&self) {
        self.orders.send_modify(|order| order.cuts += 1);
    }

    /// Keeps connections open, accepts new ones, and passes nothing: a silent peer.
    pub fn stall(&self) {
        self.set(Mode::Stall);
    }

    /// Passes each piece that it reads, of at most 64 KiB, that much later, one after the other: a slow network.
    pub fn delay(&self, by: Duration) {
        self.set(Mode::Delay(by));
    }

    /// Relays again; what was held back while stalled arrives.
    pub fn resume(&self) {
        self.set(Mode::Pass);
    }

    /// Closes every live connection and refuses new ones, until [`Proxy::resume`].
    pub fn refuse(&self) {
        self.orders.send_modify(|order| *order = Order { mode: Mode::Refuse, cuts: order.cuts + 1 });
    }

    fn set(&self, mode: Mode) {
        self.orders.send_modify(|order| order.mode = mode);
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    mut orders: watch::Receiver<Order>,
    count: watch::Sender<usize>,
) {
    let mut listener = Some(listener);
    let mut relays = JoinSet::new();
    loop {
        let refused = orders.borrow_and_update().mode == Mode::Refuse;
        if refused {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        tokio::select! {
            Some(client) = accept(listener.as_ref()) => {
                relays.spawn(relay(client, target, orders.clone()));
            }
            changed = orders.changed() => if changed.is_err() { return },
            Some(_) = relays.join_next() => {}
        }
        count.send_replace(relays.len());
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Until either side ends or the connection is cut; then both sides are closed.
async fn relay(client: TcpStream, target: SocketAddr, mut orders: watch::Receiver<Order>) {
    let made_under = orders.borrow().cuts;
    let (upwards, downwards) = (orders.clone(), orders.clone());
    let passing = async {
        let server = TcpStream::connect(target).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client, server) = (client.into_split(), server.into_split());
        tokio::select! {
            end = pump(client.0, server.1, upwards) => end,
            end = pump(server.0, client.1, downwards) => end,
        }
    };
    tokio::select! {
        _ = passing => {}
        _ = orders.wait_for(|order| order.cuts > made_under) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut orders: watch::Receiver<Order>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        // Checked after the read: what arrives during a stall is held, the end of the stream included.
        let Ok(mode) = orders.wait_for(|order| order.mode != Mode::Stall).await.map(|order| order.mode) else {
            return Ok(());
        };
        if let Mode::Delay(by) = mode {
            sleep(by).await;
        }
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// A server that sends back what it gets, and a proxy before it.
    async fn echo() -> (JoinSet<()>, Proxy) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut echoes = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (mut from, mut to) = stream.into_split();
                echoes.spawn(async move { io::copy(&mut from, &mut to).await });
            }
        });
        (server, proxy)
    }

    async fn ping(stream: &mut TcpStream) -> io::Result<[u8; 4]> {
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.map(|_| answer)
    }

    #[tokio::test]
    async fn a_cut_closes_live_connections_and_spares_new_ones() {
        let (_server, proxy) = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(&ping(&mut stream).await.unwrap(), b"ping");
        proxy.cut();
        assert!(timeout(SOON, ping(&mut stream)).await.unwrap().is_err());
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(&ping(&mut stream).await.unwrap(), b"ping");
    }

    #[tokio::test]
    async fn what_a_stall_held_back_arrives_afterwards() {
        let (_server, proxy) = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(&ping(&mut stream).await.unwrap(), b"ping");
        proxy.stall();
        assert!(timeout(Duration::from_millis(200), ping(&mut stream)).await.is_err());
        proxy.resume();
        let mut answer = [0; 4];
        timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"ping");
    }

    #[tokio::test]
    async fn what_is_delayed_arrives_later() {
        let (_server, proxy) = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.delay(Duration::from_millis(100));
        let start = std::time::Instant::now();
        assert_eq!(&ping(&mut stream).await.unwrap(), b"ping");
        assert!(start.elapsed() >= Duration::from_millis(200), "both ways");
    }

    #[tokio::test]
    async fn a_refusing_proxy_is_a_closed_port_until_it_resumes() {
        let (_server, proxy) = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(&ping(&mut stream).await.unwrap(), b"ping");
        proxy.refuse();
        assert!(timeout(SOON, ping(&mut stream)).await.unwrap().is_err());
        assert!(TcpStream::connect(proxy.address()).await.is_err());
        proxy.resume();
        tokio::task::yield_now().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(&ping(&mut stream).await.unwrap(), b"ping");
    }
}
