//! The chaos run, short, and whether its checker is worth anything: it must see each bug that the services can be given.

use std::time::Duration;

use anyhow::Result;
use e2e::chaos::accounting::Account;
use e2e::chaos::fault::Fault;
use e2e::chaos::table::Table;
use e2e::chaos::{self, Options};
use e2e::{Env, config};
use futures_util::future::try_join_all;

fn options(seed: u64, seconds: u64, tasks: u64, faults: &[Fault]) -> Options {
    Options {
        seed,
        time: Duration::from_secs(seconds),
        tasks,
        workers: 2,
        faults: faults.to_vec(),
        release: None,
        sabotage: Env::new(),
        patience: Duration::from_mins(1),
        keep: None,
    }
}

fn broken(account: &Account) -> Vec<&'static str> {
    account.broken().map(|rule| rule.name).collect()
}

/// Few enough for each to come about within the short run.
const SHORT: [Fault; 9] = [
    Fault::ProducerKilled,
    Fault::WorkerKilled,
    Fault::BrokerKilled,
    Fault::LinkCut,
    Fault::MemoryAlarm,
    Fault::BindingDeleted,
    Fault::ResultsMissing,
    Fault::QueueFull,
    Fault::WorkerTerminated,
];

#[tokio::test]
async fn a_short_run_breaks_no_rule() -> Result<()> {
    let options = Options { release: Some(config::release()), ..options(7, 30, 1_500, &SHORT) };
    let account = chaos::run(&options).await?;
    println!("seed {}\n{}", options.seed, Table(&account));
    assert_eq!(broken(&account), Vec::<&str>::new());
    Ok(())
}

/// What shows a bug.
struct Scene {
    /// As `SEEDED_BUG` names it.
    bug: &'static str,
    /// What makes a window wide, as `FAULTS` says it.
    held: &'static str,
    faults: &'static [Fault],
    /// The rule that is seen to be broken.
    rule: &'static str,
}

const LOST: &str = "lost";
const TAKEN: &str = "taken for lost without a fault";

const SCENES: [Scene; 9] = [
    Scene { bug: "ack-before-result", held: "", faults: &[Fault::WorkerKilled], rule: LOST },
    Scene {
        bug: "accept-before-commit",
        held: "store.committing=pause:30ms",
        faults: &[Fault::ProducerKilled],
        rule: LOST,
    },
    Scene { bug: "no-confirm", held: "", faults: &[Fault::QueueFull], rule: LOST },
    Scene { bug: "no-mandatory", held: "", faults: &[Fault::ResultsMissing], rule: LOST },
    Scene { bug: "shared-channel", held: "", faults: &[Fault::QueueFull, Fault::ResultsMissing], rule: LOST },
    Scene {
        bug: "last-write-wins",
        held: "settle.confirmed=pause:500ms",
        faults: &[Fault::WorkerKilled],
        rule: "gone backwards",
    },
    Scene { bug: "no-dead-letter-exchange", held: "", faults: &[], rule: LOST },
    Scene {
        bug: "reply-acked-before-commit",
        held: "replies.received=pause:30ms",
        faults: &[Fault::ProducerKilled],
        rule: LOST,
    },
    Scene { bug: "dropped-row", held: "", faults: &[], rule: LOST },
];

async fn play(scene: &Scene) -> Result<Account> {
    let mut sabotage = Env::from([("SEEDED_BUG".to_owned(), scene.bug.to_owned())]);
    if !scene.held.is_empty() {
        sabotage.insert("FAULTS".to_owned(), scene.held.to_owned());
    }
    // Less patience than the reconciler has: what the bug loses is not to be found again.
    let patience = Duration::from_secs(10);
    chaos::run(&Options { workers: 1, sabotage, patience, ..options(7, 10, 600, scene.faults) }).await
}

#[tokio::test]
async fn the_checker_is_red_on_each_seeded_bug() -> Result<()> {
    for scenes in SCENES.chunks(3) {
        let accounts = try_join_all(scenes.iter().map(play)).await?;
        for (scene, account) in scenes.iter().zip(accounts) {
            println!("{}\n{}", scene.bug, Table(&account));
            assert!(broken(&account).contains(&scene.rule), "{} is not seen", scene.bug);
        }
    }
    Ok(())
}
