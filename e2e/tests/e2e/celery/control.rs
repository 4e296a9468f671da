//! Celery's own command line and Flower see the workers, and command them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guard::{Launch, Process};
use e2e::{Env, Pair, broker, client, ports, until};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tokio::process::Command;
use tokio::time::timeout;
use tokio::try_join;

use super::{DEADLINE, VERSIONS, python};
use crate::life::SOON;

/// What a tool that was told whom to ask waits for all of them at most.
const PATIENCE: &str = "20";
/// What one that asks all waits, whoever answers.
const BROADCAST: &str = "5";
const START: Duration = Duration::from_mins(1);

/// What each worker said to `celery GROUP COMMAND`, run by that version; `[]` when none did.
pub(crate) async fn celery(pair: &Pair, version: &str, command: &[&str]) -> Result<Map<String, Value>> {
    let [group, rest @ ..] = command else { anyhow::bail!("no command") };
    let run = Command::new(python(version)?)
        .args(["-s", "-E", "-B", "-m", "celery", "-b", &pair.broker().amqp_url(pair.vhost()), group, "--json"])
        .args(rest)
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .current_dir(pair.dir())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = timeout(DEADLINE, run).await.with_context(|| format!("celery {command:?} does not end"))??;
    let (out, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    ensure!(run.status.success(), "celery {command:?}: {out}{errors}");
    let told = serde_json::from_str(&out).with_context(|| format!("celery {command:?} says {out}"))?;
    Ok(match told {
        Value::Object(told) => told,
        // `celery control` prints one object a worker.
        Value::Array(told) => told.into_iter().filter_map(|one| one.as_object().cloned()).flatten().collect(),
        other => anyhow::bail!("celery {command:?} says {other}"),
    })
}

/// What `celery inspect` is told by these workers.
async fn inspect(pair: &Pair, workers: &[&str], question: &str) -> Result<Vec<Value>> {
    let of = workers.join(",");
    let mut told = celery(pair, "newest", &["inspect", "-t", PATIENCE, "-d", &of, question]).await?;
    ensure!(told.len() == workers.len(), "{question}: {told:?}");
    workers.iter().map(|worker| told.remove(*worker).context("another worker")).collect()
}

async fn post(pair: &Pair, path: &str, wanted: StatusCode) -> Result<()> {
    let answer = pair.client().send(pair.client().request(Method::POST, path)).await?;
    ensure!(answer.status == wanted.as_u16(), "{path}: {answer:?}");
    Ok(())
}

fn names(told: &Map<String, Value>) -> Vec<&str> {
    told.keys().map(String::as_str).collect()
}

/// All ids in a list of tasks as `celery inspect` shows them.
fn ids(told: &[Value]) -> Vec<&str> {
    told.iter()
        .flat_map(|tasks| tasks.as_array().into_iter().flatten())
        .filter_map(|task| task["id"].as_str())
        .collect()
}

#[tokio::test]
async fn the_command_line_sees_and_commands_each_of_two_workers() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).consumers(2).start().await?;
    for version in VERSIONS {
        let told = celery(&pair, version, &["inspect", "-t", BROADCAST, "ping"]).await?;
        assert_eq!(told.len(), 2, "{version}: {told:?}");
        assert!(told.values().all(|answer| answer == &json!({"ok": "pong"})), "{version}: {told:?}");
    }
    let told = celery(&pair, "newest", &["inspect", "-t", BROADCAST, "ping"]).await?;
    let all = names(&told);
    let first =
        *all.iter().find(|name| name.starts_with(&format!("errand-{}@", pair.consumers[0].pid()))).context("who")?;

    shows_what_it_is(&pair, &all).await?;
    revokes_what_runs_and_what_waits(&pair, &all).await?;
    let refused =
        celery(&pair, "newest", &["control", "-t", PATIENCE, "-d", first, "rate_limit", "add", "1/s"]).await?;
    assert!(refused[first]["error"].as_str().is_some_and(|error| error.contains("rate_limit")), "{refused:?}");

    let _ = celery(&pair, "newest", &["control", "-t", PATIENCE, "-d", first, "shutdown"]).await?;
    ensure!(pair.consumers[0].wait(SOON).await?.success(), "the worker did not end well");
    let left = celery(&pair, "newest", &["inspect", "-t", BROADCAST, "ping"]).await?;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!left.contains_key(first), "{left:?}");
    pair.consumers.remove(0).silence();
    pair.stop().await
}

async fn shows_what_it_is(pair: &Pair, all: &[&str]) -> Result<()> {
    let (registered, queues, stats, conf) = try_join!(
        inspect(pair, all, "registered"),
        inspect(pair, all, "active_queues"),
        inspect(pair, all, "stats"),
        inspect(pair, all, "conf"),
    )?;
    for told in [&registered, &queues, &stats, &conf] {
        assert_eq!(told.len(), all.len(), "{told:?}");
    }
    let tasks = registered[0].as_array().context("no list")?;
    assert!(tasks.contains(&json!("add")) && tasks.contains(&json!("long_running_task")), "{tasks:?}");
    assert_eq!((&queues[0][0]["name"], &queues[0][0]["alias"]), (&json!("errand.default"), &Value::Null));
    assert_eq!((&stats[0]["pool"]["max-concurrency"], &stats[0]["total"]), (&json!(256), &json!({})), "{stats:?}");
    let shown = json!([stats, conf]).to_string();
    assert!(conf[0]["broker_url"].as_str().is_some_and(|url| url.starts_with("amqp://")), "{conf:?}");
    assert!(!shown.contains("guest"), "{shown}");
    Ok(())
}

async fn revokes_what_runs_and_what_waits(pair: &Pair, all: &[&str]) -> Result<()> {
    let client = pair.client();
    let endless = client.accepted(&json!({"task": "long_running_task", "args": [1, 600], "time_limit": 700})).await?;
    client.await_state(&endless, |task| task["state"] == "STARTED", SOON).await?;
    post(pair, "/v1/queues/default/pause", StatusCode::OK).await?;
    let later = client.accepted(&json!({"task": "add", "args": [1, 2]})).await?;
    let (active, reserved) = try_join!(inspect(pair, all, "active"), inspect(pair, all, "reserved"))?;
    assert_eq!((ids(&active), ids(&reserved)), (vec![endless.as_str()], Vec::new()), "{active:?}");
    let task = active.iter().find_map(|tasks| tasks.get(0)).context("none")?;
    assert_eq!((&task["name"], &task["args"]), (&json!("long_running_task"), &json!("[1, 600]")), "{task}");

    let of = all.join(",");
    let control = ["control", "-t", PATIENCE, "-d", &of];
    let flagged = celery(pair, "newest", &[&control[..], &["revoke", &endless, &later]].concat()).await?;
    assert!(flagged.values().all(|told| told["ok"].as_str().is_some_and(|ok| ok.contains(&later))), "{flagged:?}");
    let revoked = inspect(pair, all, "revoked").await?;
    assert!(revoked.iter().all(|ids| ids.as_array().is_some_and(|ids| ids.contains(&json!(later)))), "{revoked:?}");
    post(pair, "/v1/queues/default/resume", StatusCode::OK).await?;
    assert_eq!(client.await_terminal(&later, SOON).await?["state"], "REVOKED");

    assert_eq!(client.get(&endless).await?["state"], "STARTED", "what runs is not ended without `terminate`");
    celery(pair, "newest", &[&control[..], &["terminate", "SIGTERM", &endless]].concat()).await?;
    let ended = client.await_terminal(&endless, SOON).await?;
    assert_eq!(ended["state"], "REVOKED", "{ended:#}");
    assert!(ids(&inspect(pair, all, "active").await?).is_empty());
    Ok(())
}

/// Flower, from the same environment as the newest Celery.
struct Flower {
    address: SocketAddr,
    log: PathBuf,
    _process: Process,
}

impl Flower {
    async fn start(pair: &Pair) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let url = pair.broker().amqp_url(pair.vhost());
        let port = format!("--port={}", address.port());
        let args = ["-s", "-E", "-B", "-m", "celery", "-b", &url, "flower", "--address=127.0.0.1", &port];
        let log = pair.dir().join("flower.log");
        let dir = pair.dir().to_owned();
        let env = [("FLOWER_UNAUTHENTICATED_API", "true"), ("FLOWER_INSPECT_TIMEOUT", "3000"), ("LC_ALL", "C.UTF-8")];
        let launch = Launch {
            program: python("newest")?,
            args: args.into_iter().map(Into::into).collect(),
            env: env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Env>(),
            dir,
            log: log.clone(),
            user: None,
        };
        let flower = Self { address, log, _process: Process::spawn(&launch)? };
        until("Flower", START, async || flower.page("/").await.map(drop)).await?;
        Ok(flower)
    }

    async fn page(&self, path: &str) -> Result<String> {
        let answer = client::http()?.get(format!("http://{}{path}", self.address)).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status == StatusCode::OK, "{path}: {status} {text}\n{}", broker::tail(&self.log, 40));
        Ok(text)
    }

    async fn json(&self, path: &str) -> Result<Value> {
        let page = self.page(path).await?;
        serde_json::from_str(&page).with_context(|| format!("{path}: {page}"))
    }
}

#[tokio::test]
async fn flower_shows_the_worker_and_its_tasks_and_no_secret() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let flower = Flower::start(&pair).await?;
    let worker = until("the worker in Flower", START, async || {
        let workers = flower.json("/api/workers?refresh=1").await?;
        let name = workers.as_object().and_then(|workers| workers.keys().next().cloned()).context("no worker")?;
        ensure!(workers[&name]["registered"].as_array().is_some_and(|all| all.contains(&json!("add"))), "{workers}");
        ensure!(workers[&name]["active_queues"][0]["name"] == "errand.default", "{workers}");
        Ok(name)
    })
    .await?;
    assert!(worker.starts_with(&format!("errand-{}@", pair.consumers[0].pid())), "{worker}");

    // Flower switches the events on by itself; what ran before it shows nowhere.
    let seen = until("a task in Flower", START, async || {
        let id = pair.client().accepted(&json!({"task": "add", "args": [20, 22]})).await?;
        shown(&flower, &id, "SUCCESS", Duration::from_secs(2)).await
    })
    .await?;
    assert_eq!((&seen["name"], &seen["args"], &seen["result"]), (&json!("add"), &json!("[20, 22]"), &json!("42")));
    assert!(seen["runtime"].as_f64().is_some_and(|runtime| runtime < 60.0), "{seen}");
    ends_are_told(&pair, &flower).await?;

    let listed = until("the worker's load", START, async || {
        let listed = flower.json("/workers?json=1").await?;
        let row = listed["data"].as_array().and_then(|rows| rows.iter().find(|row| row["hostname"] == *worker));
        let row = row.context("not in the list")?;
        ensure!(row["status"] == true && row["task-received"].as_u64() > Some(0), "{row}");
        Ok(row.clone())
    })
    .await?;
    assert_eq!(listed["sw_ident"], "errand");
    for page in ["/tasks".to_owned(), format!("/worker/{worker}"), "/api/task/types".to_owned(), "/metrics".to_owned()]
    {
        flower.page(&page).await?;
    }
    pair.stop().await
}

/// A failure after a retry, a revocation, and an argument that the task hides.
async fn ends_are_told(pair: &Pair, flower: &Flower) -> Result<()> {
    let client = pair.client();
    let retry = json!({"max_retries": 1, "backoff": 1, "jitter": false});
    let hopeless = client.accepted(&json!({"task": "always_fails", "args": ["no"], "retry": retry})).await?;
    let endless = client.accepted(&json!({"task": "long_running_task", "args": [1, 600], "time_limit": 700})).await?;
    let secret = json!({"headers": {"authorization": "s3cret-1"}});
    let fetch = json!({
        "task": "fetch_url", "args": ["http://127.0.0.1:1/"], "kwargs": secret, "retry": {"max_retries": 0},
    });
    let fetch = client.accepted(&fetch).await?;
    client.await_state(&endless, |task| task["state"] == "STARTED", SOON).await?;
    post(pair, &format!("/v1/tasks/{endless}/revoke"), StatusCode::ACCEPTED).await?;
    shown(flower, &endless, "REVOKED", SOON).await?;

    let failed = shown(flower, &hopeless, "FAILURE", SOON).await?;
    assert_eq!((&failed["exception"], &failed["retries"]), (&json!("AlwaysFails('no')"), &json!(1)), "{failed:#}");
    let fetched = shown(flower, &fetch, "FAILURE", SOON).await?;
    assert_eq!(fetched["kwargs"], "{'headers': '<redacted>'}");
    let tasks = flower.page("/api/tasks").await?;
    assert!(tasks.contains(&hopeless) && !tasks.contains("s3cret"), "{tasks}");
    Ok(())
}

/// A task as Flower's API shows it, once it is in that state.
async fn shown(flower: &Flower, id: &str, state: &str, deadline: Duration) -> Result<Value> {
    until("a task's state in Flower", deadline, async || {
        let task = flower.json(&format!("/api/task/info/{id}")).await?;
        ensure!(task["state"] == state && !task["name"].is_null(), "{task}");
        Ok(task)
    })
    .await
}
