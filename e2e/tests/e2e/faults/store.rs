//! The producer's disk is locked, read-only, broken, full or damaged, loses its power, or is wanted by many.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::client::Answer;
use e2e::{Disk, Pair, Service, Strace, broker, guard, until};
use reqwest::Method;
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::{accepted, echo, metric, slow, succeed};
use crate::life::SOON;

/// A submit that the store does not take is a problem that says so, and when to come again.
async fn refused(pair: &Pair, submit: Answer) -> Result<()> {
    let kind = submit.body["type"].as_str().unwrap_or_default();
    ensure!(
        submit.status == 503 && kind == "urn:errand:problem:store-unavailable",
        "{} {}",
        submit.status,
        submit.text
    );
    ensure!(submit.header("retry-after").is_some(), "{:?}", submit.headers);
    let ready = pair.client().get_path("/readyz").await?;
    ensure!(ready.status == 503, "{}", ready.text);
    Ok(())
}

/// While the store takes nothing, tasks end at their worker. What that reports is recorded once it does.
async fn fails_meanwhile<F>(
    pair: &Pair,
    begin: impl AsyncFnOnce() -> Result<F>,
    end: impl AsyncFnOnce(F) -> Result<()>,
) -> Result<()> {
    let client = pair.client();
    let before = metric(&pair.consumers[0], "errand_runs_started_total").await?;
    let running = accepted(client, 5, slow(2)).await?;
    for id in &running {
        client.await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    let fault = begin().await?;
    refused(pair, client.submit(&echo(1)).await?).await?;
    until("the end of each at the worker", SOON, async || {
        let metrics = e2e::client::http()?.get(pair.consumers[0].url("/metrics")).send().await?.text().await?;
        let ended = metrics.lines().find_map(|line| line.strip_prefix("errand_attempts_total{state=\"SUCCESS\"} "));
        ensure!(ended.map_or(Ok(0), str::parse::<u64>)? == before + 5, "{ended:?}");
        Ok(())
    })
    .await?;
    for id in &running {
        assert_eq!(client.get(id).await?["state"], "STARTED", "it is read, and nothing is recorded");
    }
    end(fault).await?;
    succeed(client, &running).await?;
    until("an accepted submit", SOON, async || succeed(client, &[client.accepted(&echo(2)).await?]).await).await?;
    let started = metric(&pair.consumers[0], "errand_runs_started_total").await?;
    assert_eq!(started, before + 6, "what was refused did not run, and nothing ran twice");
    Ok(())
}

#[tokio::test]
async fn a_locked_store_refuses_submits_and_records_replies_later() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let lock = async || {
        let mut connection = SqliteConnectOptions::new().filename(pair.store()).connect().await?;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await?;
        Ok(connection)
    };
    let unlock = async |connection: SqliteConnection| Ok(connection.close().await?);
    fails_meanwhile(&pair, lock, unlock).await?;
    pair.stop().await
}

#[tokio::test]
async fn a_disk_that_takes_no_write_refuses_submits_and_records_replies_later() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    for (calls, error) in [("pwrite64,ftruncate,fallocate,?unlink,unlinkat", "EROFS"), ("fdatasync,fsync", "EIO")] {
        let begin = async || Strace::fail(&pair.producer, calls, error).await;
        fails_meanwhile(&pair, begin, async |strace: Strace| strace.detach().await).await.context(error)?;
    }
    pair.stop().await
}

#[tokio::test]
async fn on_a_full_disk_tasks_end_and_are_deleted_and_none_is_accepted() -> Result<()> {
    let disk = Disk::start(160 << 20).await?;
    let builder = Pair::on(broker::shared().await?).producer_under(disk.command(), &disk.path("errand.db"));
    let pair = builder.start().await?;
    let client = pair.client();
    let reserve = disk.outside("errand.db.reserve");
    assert!(reserve.exists(), "room is held");
    let ended = accepted(client, 3, echo).await?;
    succeed(client, &ended).await?;
    let later = client.accepted(&json!({"task": "echo", "args": [1], "countdown": 600})).await?;
    let mut running = accepted(client, 5, slow(5)).await?;
    for id in &running {
        client.await_state(id, |task| task["state"] == "STARTED", SOON).await?;
    }
    disk.fill()?;
    // Until the pages that the database has already are used up.
    let last = until("a refusal", SOON, async || {
        let answer = client.submit(&echo(4)).await?;
        running.extend(answer.body["task_id"].as_str().filter(|_| answer.status == 202).map(str::to_owned));
        ensure!(answer.status != 202, "accepted");
        Ok(answer)
    });
    refused(&pair, last.await?).await?;
    succeed(client, &running).await.context("they end on a full disk")?;
    assert!(!reserve.exists(), "its room is what they ended in");
    refused(&pair, client.submit(&echo(5)).await?).await?;
    let delete = client.request(Method::DELETE, &format!("/v1/tasks/{}", ended[0]));
    assert_eq!(client.send(delete).await?.status, 204);
    let revoke = client.request(Method::POST, &format!("/v1/tasks/{later}/revoke"));
    assert_eq!(client.send(revoke).await?.status, 200);
    disk.relieve()?;
    let more = until("an accepted submit", SOON, async || client.accepted(&echo(6)).await).await?;
    succeed(client, &[more]).await?;
    assert!(reserve.exists(), "room is held again");
    pair.stop().await
}

#[tokio::test]
async fn a_producer_starts_on_a_full_disk_and_ends_what_it_had_accepted() -> Result<()> {
    let disk = Disk::start(160 << 20).await?;
    let builder = Pair::on(broker::shared().await?).producer_under(disk.command(), &disk.path("errand.db"));
    let mut pair = builder.consumers(0).start().await?;
    let accepted = accepted(pair.client(), 3, echo).await?;
    // Which leaves the database alone, so that opening it again takes room.
    pair.producer.terminate(SOON).await?;
    disk.fill()?;
    pair.producer.respawn().await?;
    pair.start_consumer(&[]).await?;
    until("ends", SOON, async || succeed(pair.client(), &accepted).await).await?;
    refused(&pair, pair.client().submit(&echo(4)).await?).await?;
    disk.relieve()?;
    let more = until("an accepted submit", SOON, async || pair.client().accepted(&echo(5)).await).await?;
    succeed(pair.client(), &[more]).await?;
    pair.stop().await
}

#[tokio::test]
async fn a_damaged_store_is_not_opened_and_left_as_it_is() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let later = |number| json!({"task": "echo", "args": [number, "x".repeat(500)], "countdown": 600});
    let ids = accepted(pair.client(), 200, later).await?;
    pair.producer.terminate(SOON).await?;
    let mut connection = SqliteConnectOptions::new().filename(pair.store()).connect().await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await?;
    connection.close().await?;
    let good = fs::read(pair.store())?;
    let with = |from: usize, to: usize| {
        let mut bad = good.clone();
        bad[from..to].fill(0xA5);
        bad
    };
    // Its head, its second half, and its end cut off.
    for bad in [with(0, 100), with(good.len() / 2, good.len()), good[..good.len() / 2].to_vec()] {
        fs::write(pair.store(), &bad)?;
        let refused = pair.producer.restart().await.err().context("it must not serve")?;
        let said = format!("{refused:#}");
        let said = said.lines().last().unwrap_or_default();
        assert!(said.contains("DATABASE_URL") && said.contains("damaged") && said.contains("restore it"), "{said}");
        assert!(fs::read(pair.store())? == bad, "it was written to");
    }
    fs::write(pair.store(), &good)?;
    pair.producer.restart().await?;
    for id in &ids {
        pair.client().get(id).await?;
    }
    pair.stop().await
}

#[tokio::test]
async fn of_eight_producers_that_start_at_once_one_owns_the_store() -> Result<()> {
    let shared = broker::shared().await?;
    let vhost = Pair::on(shared).vhost().to_owned();
    shared.management().add_vhost(&vhost).await?;
    let dir = guard::scratch_dir("eight-")?;
    let url = format!("sqlite:{}", dir.path().join("errand.db").display());
    let env = [("DATABASE_URL", url), ("AMQP_URL", shared.amqp_url(&vhost))];
    let env = env.map(|(name, value)| (name.to_owned(), value)).into();
    let mut producers = Vec::new();
    for number in 0..8 {
        producers.push(Service::spawn("producer", &format!("producer-{number}"), dir.path(), &env)?);
    }
    let mut owners = until("the end of seven", SOON, async || {
        let mut left = Vec::new();
        for (place, producer) in producers.iter_mut().enumerate() {
            match producer.try_wait()? {
                None => left.push(place),
                Some(status) => {
                    let log = producer.log_tail(5);
                    ensure!(status.code() == Some(1) && log.contains("another producer uses this store"), "{log}");
                }
            }
        }
        ensure!(left.len() == 1, "{} are left", left.len());
        Ok(left)
    })
    .await?;
    let mut owner = producers.swap_remove(owners.pop().context("an owner")?);
    owner.await_ready(SOON).await?;
    let client = e2e::Client::new(owner.address())?;
    let id = client.accepted(&echo(1)).await?;
    owner.restart().await?;
    assert_eq!(client.get(&id).await?["state"], "PENDING", "what was migrated and stored is whole");
    Ok(())
}

/// Which line of the record tells that the log of the database was synced, between these.
fn synced(calls: &[String], from: usize, to: usize) -> Option<usize> {
    let pid = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let mut unfinished = Vec::new();
    (from..to).find(|&place| {
        let line = &calls[place];
        let (of_log, done) = (line.contains("sync(") && line.contains("errand.db-wal"), line.ends_with("= 0"));
        if of_log && !done {
            unfinished.push(pid(line));
        }
        done && (of_log || (line.contains("sync resumed>") && unfinished.contains(&pid(line))))
    })
}

/// What the disk has acknowledged survives the loss of power, so the disk must have acknowledged each task before its client
/// is told.
#[tokio::test]
async fn no_task_is_accepted_before_the_disk_has_it() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let strace = Strace::record(&pair.producer, "pwrite64,fsync,fdatasync,write,writev,sendto,sendmsg").await?;
    let ids = ["power-loss-1", "power-loss-2", "power-loss-3"];
    for id in ids {
        pair.client().accepted(&json!({"task": "echo", "args": [1], "countdown": 600, "task_id": id})).await?;
    }
    let calls = until("the record of each answer", SOON, async || {
        let calls = strace.calls()?;
        let answers = calls.iter().filter(|line| line.contains("HTTP/1.1 202")).count();
        ensure!(answers == ids.len(), "{answers} answers");
        Ok(calls)
    })
    .await?;
    let mut answered = 0;
    for id in ids {
        let place = |what: &dyn Fn(&str) -> bool| calls.iter().position(|line| line.contains(id) && what(line));
        let written = place(&|line| line.contains("pwrite64(") && line.contains("errand.db-wal"));
        let written = written.context("the task was not written to the log of the database")?;
        let answer = place(&|line| line.contains("HTTP/1.1 202")).context("no answer")?;
        let synced = synced(&calls, written, answer);
        assert!(synced.is_some(), "{id} was answered before it was on disk: {:#?}", &calls[written..=answer]);
        assert!(written > answered, "they were accepted one after the other");
        answered = answer;
    }
    strace.detach().await?;
    pair.stop().await
}
