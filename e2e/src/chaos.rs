//! The chaos run: many tasks with known results, faults while they run, and then the accounting.
//!
//! What is decided is apart from what is done: a seed makes the orders ([`workload`]) and the faults ([`fault`]), the
//! run leaves [`logs`], and [`accounting`] makes an account of them. Only [`stage`], [`clients`] and [`watch`] touch
//! anything.

pub mod accounting;
pub mod clients;
pub mod fault;
pub mod logs;
pub mod stage;
pub mod table;
pub mod watch;
pub mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tokio::time::Instant;

use self::accounting::Account;
use self::clients::Orders;
use self::fault::{Fault, schedule};
use self::logs::{Entry, Logs, Ms, Strike, Submit};
use self::stage::Stage;
use self::watch::Seen;
use crate::Env;
use crate::broker::Release;

/// Clients that order at once.
const CLIENTS: usize = 16;
/// How long the queues may take to be empty when all tasks have ended.
const EMPTY: Duration = Duration::from_secs(30);
/// The same when nobody is there any more, and the broker has only to notice.
const NOTICED: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// What orders and faults are drawn from.
    pub seed: u64,
    /// How long faults are made at least: each kind is made once.
    pub time: Duration,
    /// How many tasks are ordered in that time; at the same pace as long as faults are made.
    pub tasks: u64,
    /// How many workers there are.
    pub workers: usize,
    /// The kinds of faults.
    pub faults: Vec<Fault>,
    /// The RabbitMQ of a node of its own; the one that all tests share when `None`, which faults must leave alone.
    pub release: Option<Release>,
    /// `SEEDED_BUG` and `FAULTS` of the services. Without either they are those that know neither.
    pub sabotage: Env,
    /// How long nothing may end, when nothing is broken any more, before what is open counts as lost.
    pub patience: Duration,
    /// Where logs, store and ledger are copied to at the end.
    pub keep: Option<PathBuf>,
}

/// Does it.
pub async fn run(options: &Options) -> Result<Account> {
    let mut stage = Stage::start(options).await?;
    let account = perform(&mut stage, options).await;
    if let Some(dir) = &options.keep {
        stage.keep(dir)?;
    }
    if account.as_ref().is_ok_and(|account| account.broken().next().is_none()) {
        stage.silence();
    }
    account
}

async fn perform(stage: &mut Stage, options: &Options) -> Result<Account> {
    let (client, mut seen, mut logs) = (stage.client(), Seen::default(), Logs::default());
    let enough = Arc::new(AtomicBool::new(false));
    let orders = Orders {
        seed: options.seed,
        count: options.tasks,
        over: options.time,
        enough: Arc::clone(&enough),
        producer: client.address(),
    };
    let ordering = tokio::task::JoinSet::from_iter([clients::order_all(orders, CLIENTS)]);
    let calm = async {
        break_all(stage, options, &mut logs.strikes).await?;
        enough.store(true, Ordering::Relaxed);
        await_end(stage, options.patience, ordering, &mut logs).await
    };
    tokio::select! {
        calm = calm => calm?,
        () = seen.look_on(&client) => {}
    }
    // What they still ran has ended when the rows are read, and what nobody holds any more can be seen in its queue.
    stage.stop_workers().await?;
    logs.rows = watch::rows(&client).await?;
    stage.stop_producer().await?;
    logs.left = stage.left_after(NOTICED).await?;
    logs.asked.clone_from(&options.faults);
    (logs.workers, logs.places) = (options.workers, stage::CONCURRENCY);
    (logs.samples, logs.pulses, logs.unshown) = (seen.samples, seen.pulses, seen.unshown);
    (logs.deaths, logs.presumed) = (std::mem::take(&mut stage.deaths), stage.presumed()?);
    let ledger = std::fs::read_to_string(&stage.ledger)?;
    let entries = ledger.lines().map(|line| Entry::parse(line).with_context(|| format!("no entry: {line}")));
    logs.ledger = entries.collect::<Result<_>>()?;
    let fewest = usize::try_from(options.tasks / 2)?;
    Ok(accounting::account(&logs, fewest))
}

/// Makes faults as long as there is time, and each kind once.
async fn break_all(stage: &mut Stage, options: &Options, strikes: &mut Vec<Strike>) -> Result<()> {
    let end = Instant::now() + options.time;
    for plan in schedule(options.seed, options.faults.clone(), options.workers) {
        if Instant::now() + plan.pause > end && strikes.len() >= options.faults.len() {
            break;
        }
        strikes.push(stage.strike(plan).await?);
    }
    Ok(())
}

/// Lets everything come to its end.
async fn await_end(
    stage: &mut Stage,
    patience: Duration,
    mut ordering: tokio::task::JoinSet<Result<Vec<Submit>>>,
    logs: &mut Logs,
) -> Result<()> {
    let client = stage.client();
    let calm = async {
        logs.submits = ordering.join_next().await.context("nobody orders")???;
        logs.undrained = watch::drained(&client, patience).await;
        Ok(())
    };
    beside(stage, calm).await?;
    // Copies of tasks that have ended are run to their end too.
    let empty = Instant::now() + patience.min(EMPTY);
    while Instant::now() < empty && !stage.left().await?.is_empty() {
        stage.hold(Duration::from_millis(200)).await?;
    }
    Ok(())
}

/// Waits for something while what dies is started again.
async fn beside<T>(stage: &mut Stage, awaited: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::pin!(awaited);
    loop {
        tokio::select! {
            done = &mut awaited => return done,
            held = stage.hold(Duration::from_secs(1)) => held?,
        }
    }
}

fn now() -> Ms {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
