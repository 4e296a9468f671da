//! Owns a name server that may change its mind between two questions.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

const HEADER: usize = 12;
const A: [u8; 2] = [0, 1];
const NAME_ERROR: u8 = 3;

type Zone = HashMap<String, Entry>;

#[derive(Debug)]
struct Entry {
    answers: Vec<Vec<Ipv4Addr>>,
    asked: usize,
}

/// A name server over UDP on a port of its own. It ends when it is dropped.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _task: JoinSet<()>,
}

impl NameServer {
    /// Knows no name yet.
    pub async fn start() -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, zone) = (socket.local_addr()?, Arc::<Mutex<Zone>>::default());
        let mut task = JoinSet::new();
        task.spawn(serve(socket, Arc::clone(&zone)));
        Ok(Self { address, zone, _task: task })
    }

    /// Where it is asked.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the first question for the name's addresses is answered with the first list, the second with the
    /// second, and any further with the last. They are not to be kept: their time to live is zero.
    pub fn set(&self, name: &str, answers: &[&[Ipv4Addr]]) {
        let answers = answers.iter().map(|addresses| addresses.to_vec()).collect();
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.insert(name.to_owned(), Entry { answers, asked: 0 });
    }

    /// How often it was asked for the name's IPv4 addresses.
    #[must_use]
    pub fn asked(&self, name: &str) -> usize {
        let zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.get(name).map_or(0, |entry| entry.asked)
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut query = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut query).await {
        let answer = answer(&query[..length], &mut zone.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// Names have no other address than IPv4 ones.
fn answer(query: &[u8], zone: &mut Zone) -> Option<Vec<u8>> {
    let (name, end) = read_name(query)?;
    let question = query.get(HEADER..end + 4)?;
    let entry = zone.get_mut(&name);
    let code = if entry.is_some() { 0 } else { NAME_ERROR };
    let addresses = match entry {
        Some(entry) if question.ends_with(&[A[0], A[1], 0, 1]) => {
            entry.asked += 1;
            entry.answers.get(entry.asked - 1).or(entry.answers.last()).cloned().unwrap_or_default()
        }
        _ => Vec::new(),
    };
    // An answer, recursion available; one question, so many answers.
    let head = [0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0];
    let mut answer = [&query[..2], &head, question].concat();
    for address in addresses {
        // The name as in the question, A, IN, no time to live, four bytes.
        answer.extend([0xc0, 12, A[0], A[1], 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The name in the question, lower-case, and where it ends.
fn read_name(query: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*query.get(at)?);
        let label = query.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(label).to_lowercase());
    }
}
