//! Rounds on one pair: the same tasks, another window each.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::{Client, Pair, Service, broker, guard, until};
use futures_util::future::{try_join, try_join_all};
use reqwest::Method;
use serde_json::{Value, json};

use crate::life::SOON;
use crate::rows;

/// Of a round; every third fails at its first attempt.
pub(super) const TASKS: usize = 24;
/// Tasks at the broker and in the worker, at most: what a death can make run twice.
pub(super) const IN_FLIGHT: usize = 8;

/// A pair of which a service is killed in each round, and a file to which tasks append a line when they start.
struct Rounds {
    pair: Pair,
    ledger: PathBuf,
}

/// Starts the service again, to die at the point, which may be as it starts.
pub(super) async fn arm(service: &mut Service, faults: &str) -> Result<()> {
    service.set_env("FAULTS", Some(faults));
    match service.restart().await {
        Err(_) if service.try_wait()?.is_some_and(|status| status.signal() == Some(9)) => Ok(()),
        started => started,
    }
}

/// Waits until it has killed itself and starts it again, to live.
pub(super) async fn await_death(service: &mut Service) -> Result<()> {
    let status = service.wait(SOON).await.context("the point was not passed")?;
    ensure!(status.signal() == Some(9), "{} ended by itself: {status}", service.name());
    service.set_env("FAULTS", None);
    service.restart().await
}

/// Submits until it is accepted, as a client does that does not know what became of its request.
pub(super) async fn submit(client: &Client, key: &str, task: &Value) -> Result<String> {
    until("an answer to a submit", SOON, async || {
        let request = client.request(Method::POST, "/v1/tasks").header("idempotency-key", key).json(task);
        let answer = client.send(request).await?;
        ensure!(answer.status == 202, "{} {}", answer.status, answer.text);
        Ok(answer.body["task_id"].as_str().context("accepted without an id")?.to_owned())
    })
    .await
}

impl Rounds {
    async fn start() -> Result<Self> {
        // Kept: the processes of isolated tasks read the file anew.
        let dir = guard::scratch_dir("failpoints-")?.keep();
        let (ledger, commands) = (dir.join("ledger"), dir.join("commands.json"));
        std::fs::write(&ledger, "")?;
        let script = format!("echo $1 >>{} && echo $1", ledger.display());
        let start = json!({"program": "/bin/sh", "args": ["-c", script, "sh"], "max_args": 1});
        std::fs::write(&commands, json!({"start": start}).to_string())?;
        let in_flight = IN_FLIGHT.to_string();
        let pair = Pair::on(broker::shared().await?)
            .with_faults()
            .producer_env("RELAY_WINDOW", &in_flight)
            .consumer_env("CONCURRENCY", &in_flight)
            .consumer_env("COMMANDS_FILE", &commands.display().to_string())
            .start()
            .await?;
        Ok(Self { pair, ledger })
    }

    /// Lets the victim die at the point while tasks go through, looks at what became of each, and says how many ran twice.
    async fn kill(&mut self, victim: fn(&mut Pair) -> &mut Service, faults: &str) -> Result<String> {
        let client = self.pair.client().clone();
        let (started, failed) = (self.started()?, self.failed()?);
        let victim = victim(&mut self.pair);
        arm(victim, faults).await?;
        let (window, _) = faults.split_once('=').context("no failpoint")?;
        let keys: Vec<String> = (0..TASKS).map(|number| format!("{window}-{number}")).collect();
        let wishes: Vec<(&String, Value)> =
            keys.iter().enumerate().map(|(number, key)| (key, wish(number, key))).collect();
        let submits = wishes.iter().map(|(key, wish)| submit(&client, key, wish));
        let (ids, ()) = try_join(try_join_all(submits), await_death(victim)).await?;
        for (number, (id, key)) in ids.iter().zip(&keys).enumerate() {
            let ended = client.await_terminal(id, SOON).await.with_context(|| faults.to_owned())?;
            assert_eq!((&ended["state"], &shown(&ended)), (&json!("SUCCESS"), &result(number, key)), "{ended:#}");
        }
        let (flaky, plain): (Vec<_>, Vec<_>) = keys.iter().enumerate().partition(|(number, _)| is_flaky(*number));
        let runs = self.started()?;
        ensure!(plain.iter().all(|(_, key)| runs.contains_key(*key)), "{faults}: not all ran: {runs:?}");
        let twice = runs.iter().filter(|(key, runs)| !started.contains_key(*key) && **runs > 1).count();
        let failed_twice = (self.failed()? - failed).saturating_sub(flaky.len());
        ensure!(twice <= IN_FLIGHT && failed_twice <= IN_FLIGHT, "{faults}: more than were in flight: {runs:?}");
        Ok(format!("{faults}: {twice} of {TASKS} ran twice, and {failed_twice} first attempts"))
    }

    /// That no submit made two tasks, though it was sent until it was answered, and that nothing is left at the broker.
    async fn end(self, count: usize) -> Result<()> {
        assert_eq!(rows::count(self.pair.store()).await?, i64::try_from(count * TASKS)?);
        for queue in ["errand.default", "errand.delay.1s", "errand.dead-letters"] {
            self.pair.broker().await_depth(self.pair.vhost(), queue, |depth| depth.ready == 0, SOON).await?;
        }
        self.pair.stop().await
    }

    /// How often which task was started, as those that leave a line say.
    fn started(&self) -> Result<BTreeMap<String, usize>> {
        let mut runs = BTreeMap::new();
        for key in std::fs::read_to_string(&self.ledger)?.lines() {
            *runs.entry(key.to_owned()).or_default() += 1;
        }
        Ok(runs)
    }

    /// How many attempts the worker has seen fail, all its lives together.
    fn failed(&self) -> Result<usize> {
        let log = std::fs::read_to_string(self.pair.consumers[0].log())?;
        Ok(log.lines().filter(|line| line.contains("settle: retry")).count())
    }
}

fn is_flaky(number: usize) -> bool {
    number.is_multiple_of(3)
}

fn wish(number: usize, key: &str) -> Value {
    if is_flaky(number) {
        json!({"task": "flaky", "args": [1], "retry": {"backoff": 1, "jitter": false}})
    } else {
        json!({"task": "run_command", "args": ["start", [key]]})
    }
}

/// What a task is to end with: the attempt that succeeded, or what was printed.
fn result(number: usize, key: &str) -> Value {
    if is_flaky(number) { json!(1) } else { json!(format!("{key}\n")) }
}

fn shown(task: &Value) -> Value {
    task["result"].get("stdout").unwrap_or(&task["result"]).clone()
}

fn producer(pair: &mut Pair) -> &mut Service {
    &mut pair.producer
}

fn consumer(pair: &mut Pair) -> &mut Service {
    &mut pair.consumers[0]
}

#[tokio::test]
async fn a_producer_killed_in_any_window_of_a_tasks_way_loses_nothing() -> Result<()> {
    let mut rounds = Rounds::start().await?;
    for faults in [
        "store.committing=kill@5",
        "store.committed=kill@5",
        "relay.taken=kill@2",
        "publish.sent=kill@10",
        "relay.confirmed=kill@2",
        "replies.received=kill@2",
        "replies.stored=kill@2",
    ] {
        println!("{}", rounds.kill(producer, faults).await?);
    }
    rounds.end(7).await
}

#[tokio::test]
async fn a_worker_killed_in_any_window_of_a_tasks_way_loses_nothing() -> Result<()> {
    let mut rounds = Rounds::start().await?;
    for faults in ["run.ended=kill@5", "publish.sent=kill@10", "settle.confirmed=kill@5", "retry.confirmed=kill@3"] {
        println!("{}", rounds.kill(consumer, faults).await?);
    }
    rounds.end(4).await
}
