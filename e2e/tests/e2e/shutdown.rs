//! SIGTERM under load: nothing is lost, nothing runs twice that had the time to end, and the process ends in its grace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use e2e::load::{self, Connection};
use e2e::{Pair, Web, broker, until};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::faults::runs_started;
use crate::life::SOON;

const LONG: Duration = Duration::from_mins(2);
const GRACE: Duration = Duration::from_secs(5);
/// What a busy machine takes for the rest of a shutdown.
const SLACK: Duration = Duration::from_secs(10);

/// A task that asks the web server for a page that comes after so many seconds: the server counts its runs.
fn page(web: &Web, seconds: f64, name: &str) -> Value {
    json!({"task": "fetch_url", "args": [web.url(&path(seconds, name))], "time_limit": 60})
}

fn path(seconds: f64, name: &str) -> String {
    format!("/after/{seconds}/{name}")
}

/// Quick ones, some that end within the grace and some that do not, on two workers of which one is told to end.
#[tokio::test]
async fn a_worker_told_to_end_under_load_loses_and_doubles_nothing_and_ends_in_its_grace() -> Result<()> {
    const QUICK: usize = 600;
    let web = Web::start().await?;
    let pair = Pair::on(broker::shared().await?).consumer_env("FETCH_ALLOW", "127.0.0.1");
    let grace = GRACE.as_secs().to_string() + "s";
    let pair = pair.consumer_env("CONCURRENCY", "16").consumer_env("SHUTDOWN_GRACE", &grace).consumers(2);
    let mut pair = pair.start().await?;
    let mut paths = Vec::new();
    for (seconds, kind, count) in [(15.0, "long", 6), (2.0, "slow", 8), (0.05, "quick", QUICK)] {
        paths.extend((0..count).map(|number| (seconds, format!("{kind}-{number}"))));
    }
    let wishes: Vec<Value> = paths.iter().map(|(seconds, name)| page(&web, *seconds, name)).collect();
    let count = wishes.len();
    let ids = load::submit(pair.client().address(), count, 4, move |number| wishes[number].clone()).await?.ids;
    let is_quick = |path: &&String| path.contains("quick");
    until("work under way", SOON, async || {
        let requests = web.requests();
        ensure!(requests.keys().filter(is_quick).count() >= 100 && requests.len() >= 110, "{}", requests.len());
        Ok(())
    })
    .await?;
    let start = Instant::now();
    let status = pair.consumers[0].terminate(GRACE + SLACK).await?;
    println!("a worker under load ends {:?} after SIGTERM, its grace is {GRACE:?}", start.elapsed());
    assert!(status.success(), "{status}");
    pair.consumers.remove(0).silence();

    let ends = load::await_all(pair.client().address(), &ids, 8, LONG).await?;
    assert_eq!(ends, [("SUCCESS".to_owned(), count)].into());
    let requests = web.requests();
    let runs = |(seconds, name): &(f64, String)| requests.get(&path(*seconds, name)).copied().unwrap_or(0);
    let (long, rest): (Vec<_>, Vec<_>) = paths.iter().partition(|(_, name)| name.starts_with("long"));
    let not_once: Vec<_> = rest.iter().filter(|path| runs(path) != 1).collect();
    assert!(not_once.is_empty(), "not run once: {not_once:?}");
    let repeated = long.iter().filter(|path| runs(path) == 2).count();
    assert!(long.iter().all(|path| (1..=2).contains(&runs(path))) && repeated >= 1, "{requests:?}");
    println!("of {} tasks beyond the grace {repeated} ran again elsewhere", long.len());
    pair.stop().await
}

/// What clients know of the tasks that they submitted.
#[derive(Debug, Default)]
struct Answers {
    accepted: Vec<String>,
    /// Answered with 503.
    refused: Vec<String>,
    /// The connection ended without an answer.
    unknown: Vec<String>,
}

/// Submits under ids of its own until the producer is there no more.
async fn submit_to_the_end(address: SocketAddr, client: usize, accepted: Arc<AtomicUsize>) -> Result<Answers> {
    let (mut answers, mut connection) = (Answers::default(), Connection::open(address).await?);
    for number in 0.. {
        let id = format!("c{client}-{number}");
        let task = json!({"task": "echo", "args": [number], "task_id": id}).to_string();
        match connection.exchange("POST", "/v1/tasks", &task).await {
            Ok((202, _)) => {
                accepted.fetch_add(1, Ordering::Relaxed);
                answers.accepted.push(id);
            }
            Ok((503, _)) => answers.refused.push(id),
            Ok((status, answer)) => bail!("{id} is answered {status}: {answer}"),
            Err(_) => {
                answers.unknown.push(id);
                match Connection::open(address).await {
                    Ok(again) => connection = again,
                    Err(_) => break,
                }
            }
        }
    }
    Ok(answers)
}

#[tokio::test]
async fn a_producer_told_to_end_under_load_loses_and_doubles_nothing_and_ends_in_its_grace() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).start().await?;
    let (address, accepted) = (pair.client().address(), Arc::<AtomicUsize>::default());
    let mut clients = JoinSet::new();
    for client in 0..8 {
        clients.spawn(submit_to_the_end(address, client, Arc::clone(&accepted)));
    }
    until("submits under way", SOON, async || {
        let accepted = accepted.load(Ordering::Relaxed);
        ensure!(accepted >= 500, "{accepted}");
        Ok(())
    })
    .await?;
    let start = Instant::now();
    let status = pair.producer.terminate(SLACK).await?;
    println!("a producer under load ends {:?} after SIGTERM", start.elapsed());
    assert!(status.success(), "{status}");
    let mut all = Answers::default();
    while let Some(answers) = clients.join_next().await {
        let answers = answers??;
        all.accepted.extend(answers.accepted);
        all.refused.extend(answers.refused);
        all.unknown.extend(answers.unknown);
    }
    pair.restart_producer().await?;
    // What was not answered is there whole or not at all; what was refused is not.
    let mut there = all.accepted.clone();
    for (id, is_refused) in all.refused.iter().map(|id| (id, true)).chain(all.unknown.iter().map(|id| (id, false))) {
        match pair.client().get_path(&format!("/v1/tasks/{id}")).await?.status {
            200 if !is_refused => there.push(id.clone()),
            404 => {}
            status => bail!("{id}, refused: {is_refused}, is answered {status}"),
        }
    }
    println!("{} accepted, {} refused, {} unknown", all.accepted.len(), all.refused.len(), all.unknown.len());
    let ends = load::await_all(address, &there, 8, LONG).await?;
    assert_eq!(ends, [("SUCCESS".to_owned(), there.len())].into());
    assert_eq!(runs_started(&pair).await?, there.len() as u64, "each ran once, and nothing else did");
    pair.stop().await
}
