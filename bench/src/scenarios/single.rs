//! One outstanding task: what each step costs when nothing can be gathered.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::load::Connection;

use super::PAYLOAD;
use super::flood::Run;
use crate::driver::{Submitted, WAIT, accepted};
use crate::meter::Meter;
use crate::row::Row;
use crate::stand::Stand;
use crate::work::{Submit, Work};

/// Two kinds in turn: a submit that is answered at once and whose result is waited for then, and a submit that is answered
/// with the result.
pub(super) async fn run(stand: &Stand, name: &str, tasks: usize) -> Result<Row> {
    let work = Work::Echo(PAYLOAD);
    let (mut submit, mut wait) = (Submit::of(work, ""), Submit::of(work, WAIT));
    let mut connection = Connection::open(stand.address()).await?;
    let ended = stand.ended().await?;
    let meter = Meter::read(&stand.processes())?;
    let mut submitted = Submitted::nothing(tasks);
    for number in 0..tasks {
        let start = Instant::now();
        if number % 2 == 0 {
            let id = accepted(&connection.send(submit.nth(number)).await?, 202)?.to_owned();
            submitted.submits.add(start.elapsed());
            let (status, task) = connection.wait(&id, Duration::from_mins(1)).await?;
            ensure!(status == 200, "task {id} is answered {status}: {task}");
            submitted.ids[number] = id;
        } else {
            let answer = connection.send(wait.nth(number)).await?;
            submitted.results.add(start.elapsed());
            accepted(&answer, 200)?.clone_into(&mut submitted.ids[number]);
        }
    }
    submitted.elapsed = submitted.start.elapsed();
    let (_, end) = stand.await_ended(ended + tasks).await?;
    let row = Run { stand, meter }.row(name, work, submitted, end).await?;
    // One at a time, both are the same.
    Ok(Row { accepted: None, ..row })
}
