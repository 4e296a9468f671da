//! Clients that follow their tasks by server-sent events.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::Events;
use e2e::load::Connection;
use futures_util::future::try_join_all;

use super::PAYLOAD;
use super::flood::Run;
use crate::driver::{Submitted, accepted};
use crate::meter::Meter;
use crate::row::Row;
use crate::stand::Stand;
use crate::work::{Submit, Work};

const DEADLINE: Duration = Duration::from_mins(1);
const WORK: Work = Work::Echo(PAYLOAD);

/// So many clients at once, each with its next task when the one before has ended. The latency is that of the last event.
pub(super) async fn run(stand: &Stand, name: &str, tasks: usize, clients: usize) -> Result<Row> {
    let connections = try_join_all((0..clients).map(|_| Connection::open(stand.address()))).await?;
    let ended = stand.ended().await?;
    let meter = Meter::read(&stand.processes())?;
    let (next, submitted) = (Cell::new(0), RefCell::new(Submitted::nothing(tasks)));
    try_join_all(connections.into_iter().map(|connection| client(stand, connection, &next, &submitted))).await?;
    let mut submitted = submitted.into_inner();
    submitted.elapsed = submitted.start.elapsed();
    let (_, end) = stand.await_ended(ended + tasks).await?;
    Run { stand, meter }.row(name, WORK, submitted, end).await
}

async fn client(
    stand: &Stand,
    mut connection: Connection,
    next: &Cell<usize>,
    submitted: &RefCell<Submitted>,
) -> Result<()> {
    let mut submit = Submit::of(WORK, "");
    let tasks = submitted.borrow().ids.len();
    while next.get() < tasks {
        let number = next.replace(next.get() + 1);
        let start = Instant::now();
        let id = accepted(&connection.send(submit.nth(number)).await?, 202)?.to_owned();
        submitted.borrow_mut().submits.add(start.elapsed());
        let events = Events::open(stand.address(), &id, None).await?.rest(DEADLINE).await?;
        let last = events.last().map(|event| &event.data["state"]);
        ensure!(last.is_some_and(|state| state == "SUCCESS"), "the events of {id} end in {last:?}");
        let mut submitted = submitted.borrow_mut();
        submitted.results.add(start.elapsed());
        submitted.ids[number] = id;
    }
    Ok(())
}
