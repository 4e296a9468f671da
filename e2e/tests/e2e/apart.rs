//! What kills its worker: it is found, ends as FAILURE, and takes nobody with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::is_terminal;
use e2e::{Client, Pair, broker, procfs, until};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::life::SOON;

const LONG: Duration = Duration::from_mins(3);

async fn ends(client: &Client, ids: &[String]) -> Result<Vec<Value>> {
    let mut tasks = Vec::with_capacity(ids.len());
    for id in ids {
        tasks.push(client.await_terminal(id, LONG).await?);
    }
    Ok(tasks)
}

fn state_and_error(task: &Value) -> (&str, &str) {
    (task["state"].as_str().unwrap_or_default(), task["error"]["type"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_task_that_kills_its_workers_fails_and_says_so() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumer_env("ENABLE_FAULT_TASKS", "true").start().await?;
    let mut innocents = Vec::new();
    for number in 0..200 {
        let kwargs = json!({"data": number, "seconds": 1});
        innocents.push(pair.client().accepted(&json!({"task": "long_running_task", "kwargs": kwargs})).await?);
    }
    let crash = pair.client().accepted(&json!({"task": "crash"})).await?;
    let start = Instant::now();
    let mut worker = pair.consumers.remove(0);
    let client = pair.client();
    let ((crashed, ended), deaths) = worker
        .supervise(async {
            let crashed = client.await_terminal(&crash, LONG).await?;
            println!("the crash has ended after {:?}", start.elapsed());
            Ok((crashed, ends(client, &innocents).await?))
        })
        .await?;
    println!("{deaths} deaths; all have ended after {:?}", start.elapsed());
    assert_eq!(state_and_error(&crashed), ("FAILURE", "WorkerLost"), "{crashed:#}");
    assert!(crashed["error"]["message"].as_str().is_some_and(|why| why.contains("signal 6")), "{crashed:#}");
    assert_eq!(deaths, 2, "then it was a suspect and ran apart");
    for (number, task) in ended.iter().enumerate() {
        assert_eq!((state_and_error(task).0, &task["result"]), ("SUCCESS", &json!(2 * number)), "{task:#}");
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_dies_thirty_times_at_its_start_loses_and_fails_nothing() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(pair.client().accepted(&json!({"task": "sleep", "args": [2]})).await?);
    }
    pair.start_consumer(&[]).await?;
    for _ in 1..30 {
        // Ready means that it consumes: it has its whole prefetch, or is about to.
        pair.consumers[0].restart().await?;
    }
    pair.consumers[0].restart().await?;
    for task in ends(pair.client(), &ids).await? {
        assert_eq!((state_and_error(&task).0, &task["retries"]), ("SUCCESS", &json!(0)), "{task:#}");
    }
    Ok(())
}

/// Waits until the task was started once more.
async fn started_again(client: &Client, id: &str, last: &mut Value) -> Result<()> {
    let again = |task: &Value| task["state"] == "STARTED" && task["started_at"] != *last;
    let task = client.await_state(id, again, SOON).await?;
    *last = task["started_at"].clone();
    Ok(())
}

/// Kills the worker while it runs these tasks, so often that they are suspected.
async fn make_suspects(pair: &mut Pair, ids: &[String]) -> Result<()> {
    let mut last = vec![Value::Null; ids.len()];
    for _ in 0..2 {
        for (id, last) in ids.iter().zip(&mut last) {
            started_again(pair.client(), id, last).await?;
        }
        assert_eq!(procfs::children_of(pair.consumers[0].pid())?.len(), 0, "not suspected yet");
        pair.consumers[0].kill()?;
        pair.consumers[0].restart().await?;
    }
    for (id, last) in ids.iter().zip(&mut last) {
        started_again(pair.client(), id, last).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_suspect_runs_apart_with_progress_and_dies_with_its_worker() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let wish = json!({"task": "long_running_task", "kwargs": {"data": 21, "seconds": 3}});
    let ids = [pair.client().accepted(&wish).await?];
    make_suspects(&mut pair, &ids).await?;
    let children = procfs::children_of(pair.consumers[0].pid())?;
    assert_eq!(children.len(), 1, "the suspect's process");
    pair.consumers[0].kill()?;
    until("the child's end with its worker", SOON, async || {
        ensure!(!procfs::lives(children[0]), "it lives");
        Ok(())
    })
    .await?;
    pair.consumers[0].restart().await?;
    let halfway = |task: &Value| is_terminal(task) || task["progress"]["current"] == 2;
    let progressed = pair.client().await_state(&ids[0], halfway, SOON).await?;
    assert_eq!(progressed["state"], "STARTED", "progress comes out of the child");
    let ended = pair.client().await_terminal(&ids[0], SOON).await?;
    assert_eq!((&ended["state"], &ended["result"]), (&json!("SUCCESS"), &json!(42)), "{ended:#}");
    assert_eq!(procfs::children_of(pair.consumers[0].pid())?.len(), 0, "and the process is gone with it");
    Ok(())
}

#[tokio::test]
async fn a_suspect_ends_in_the_grace_and_its_death_in_a_shutdown_is_no_verdict() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumer_env("SHUTDOWN_GRACE", "1m").start().await?;
    let mut ids = Vec::new();
    for seconds in [8, 40] {
        let task = json!({"task": "long_running_task", "kwargs": {"data": 1, "seconds": seconds}});
        ids.push(pair.client().accepted(&task).await?);
    }
    make_suspects(&mut pair, &ids).await?;
    let worker = pair.consumers[0].pid();
    let children = procfs::children_of(worker)?;
    assert_eq!(children.len(), 2, "two suspects run apart");
    pair.consumers[0].signal(Signal::SIGTERM)?;
    for child in children {
        signal::kill(Pid::from_raw(child.cast_signed()), Signal::SIGTERM)?;
    }
    let first = pair.client().await_terminal(&ids[0], SOON).await.context("deaf to SIGTERM, it ends in the grace")?;
    assert_eq!(first["state"], "SUCCESS", "{first:#}");
    for child in procfs::children_of(worker)? {
        signal::kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL)?;
    }
    assert!(pair.consumers[0].wait(SOON).await?.success());
    pair.start_consumer(&[]).await?;
    started_again(pair.client(), &ids[1], &mut Value::Null.clone()).await?;
    let open = pair.client().get(&ids[1]).await?;
    assert_eq!((&open["state"], &open["retries"], &open["error"]), (&json!("STARTED"), &json!(0), &Value::Null));
    Ok(())
}

#[tokio::test]
async fn a_revoked_task_that_runs_apart_and_does_not_listen_is_killed_with_its_process() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumer_env("ENABLE_FAULT_TASKS", "true").start().await?;
    let ids = [pair.client().accepted(&json!({"task": "hold_slot", "args": [60]})).await?];
    make_suspects(&mut pair, &ids).await?;
    let children = procfs::children_of(pair.consumers[0].pid())?;
    assert_eq!(children.len(), 1, "the suspect's process");
    let revoke = pair.client().request(reqwest::Method::POST, &format!("/v1/tasks/{}/revoke", ids[0]));
    let start = Instant::now();
    assert_eq!(pair.client().send(revoke).await?.status, 202);
    let ended = pair.client().await_terminal(&ids[0], SOON).await?;
    println!("ended {:?} after it was revoked", start.elapsed());
    assert_eq!(state_and_error(&ended), ("REVOKED", "TaskRevokedError"), "{ended:#}");
    assert!((9..20).contains(&start.elapsed().as_secs()) && !procfs::lives(children[0]));
    pair.stop().await
}

#[tokio::test]
async fn an_isolated_task_is_held_to_its_memory_and_its_cpu_time() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumer_env("ENABLE_FAULT_TASKS", "true").start().await?;
    for (kwargs, how) in [
        (json!({"memory_mib": 16}), None),
        (json!({"memory_mib": 1024}), Some("256 MiB")),
        (json!({"cpu_seconds": 60}), Some("its CPU time was used up")),
    ] {
        let id = pair.client().accepted(&json!({"task": "exhaust", "kwargs": kwargs})).await?;
        let ended = pair.client().await_terminal(&id, SOON).await?;
        let said = ended["error"]["message"].as_str();
        match how {
            None => assert_eq!((&ended["state"], &ended["result"]), (&json!("SUCCESS"), &json!(16 << 20)), "{ended:#}"),
            Some(how) => {
                assert_eq!((state_and_error(&ended), &ended["retries"]), (("FAILURE", "WorkerLost"), &json!(0)));
                assert!(said.is_some_and(|said| said.contains(how)), "{ended:#}");
            }
        }
    }
    pair.stop().await
}
