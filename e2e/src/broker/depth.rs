//! Owns one AMQP question: what a passive declare answers about a queue. The management API is no substitute, its
//! counts lag.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use super::wire::{Answer, Id, Login, Method, Wire};

const DECLARE_OK: Id = (50, 11);

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages ready for delivery, without those delivered and not yet acknowledged.
    pub ready: u32,
    /// Consumers.
    pub consumers: u32,
}

pub(super) async fn query(address: SocketAddr, login: Login<'_>, queue: &str) -> Result<Depth> {
    ask(address, login, queue).await.with_context(|| format!("a passive declare of {queue}"))
}

async fn ask(address: SocketAddr, login: Login<'_>, queue: &str) -> Result<Depth> {
    let mut wire = Wire::open(address, login).await?;
    let passive = 1;
    match wire.call(Method::new(50, 10).bytes(&[0, 0]).short(queue).bytes(&[passive]).table()).await? {
        Answer::Method(DECLARE_OK, answer) => {
            wire.close().await?;
            counts(&answer).context("a short declare-ok")
        }
        Answer::Method(id, _) => bail!("{id:?} instead of {DECLARE_OK:?}"),
        Answer::Refused(_, text) => bail!("{text}"),
    }
}

/// Past the queue's name: two 32-bit numbers.
fn counts(answer: &[u8]) -> Option<Depth> {
    let numbers = answer.get(1 + usize::from(*answer.first()?)..)?;
    let number = |at: usize| Some(u32::from_be_bytes(numbers.get(at..at + 4)?.try_into().ok()?));
    Some(Depth { ready: number(0)?, consumers: number(4)? })
}
