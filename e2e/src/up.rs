//! Owns the demonstration: the whole system on one machine, a first task, and its end without a trace.

use std::fmt::Display;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::broker::{Broker, Options};
use crate::config::Config;
use crate::users::{self, Users};
use crate::{Client, Env, Service, guard, ports};

/// A second longer than the consumer's own grace.
const STOP: Duration = Duration::from_secs(31);
const FIRST_TASK: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(100);
/// The pause before a restart doubles from the first to the second, and starts anew for what ran this long.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
const STEADY: Duration = Duration::from_mins(1);

/// Starts everything, shows a first task, and keeps it all running until Ctrl-C or SIGTERM. A second signal does not
/// wait for what still runs.
pub async fn run(config: &Config) -> Result<()> {
    let mut interrupts = Interrupts::new()?;
    let stage = tokio::select! {
        stage = Stage::start(config) => Some(stage?),
        () = interrupts.next() => None,
    };
    let Some(mut stage) = stage else { return Ok(()) };
    let outcome = tokio::select! {
        outcome = stage.perform(config) => outcome,
        () = interrupts.next() => Ok(()),
    };
    if outcome.is_err() {
        stage.print_logs();
    }
    say("stopping");
    tokio::select! {
        stopped = stage.stop(config.data.is_some()) => outcome.and(stopped),
        () = interrupts.next() => outcome,
    }
}

struct Stage {
    dir: PathBuf,
    broker: Option<Broker>,
    producer: Supervised,
    consumer: Supervised,
}

impl Stage {
    async fn start(config: &Config) -> Result<Self> {
        let dir = match &config.data {
            Some(dir) => existing(dir)?,
            None => guard::scratch_dir("up-")?.keep(),
        };
        let log = ("RUST_LOG".to_owned(), config.log.clone());
        let (broker, [mut producer, mut consumer]) = match &config.amqp_url {
            Some(url) => (None, [(); 2].map(|()| Env::from([("AMQP_URL".to_owned(), url.clone())]))),
            None => start_broker(&dir).await.map(|(broker, envs)| (Some(broker), envs))?,
        };
        say("starting the producer and the consumer");
        let store = format!("sqlite:{}", dir.join("errand.db").display());
        producer.extend([("DATABASE_URL".to_owned(), store), log.clone()]);
        consumer.extend([log]);
        let producer = Supervised::start("producer", 8080, &dir, producer).await?;
        let consumer = Supervised::start("consumer", 8081, &dir, consumer).await?;
        Ok(Self { dir, broker, producer, consumer })
    }

    /// The first task, the addresses, and then keeping the services alive, for ever unless it is to be `once`.
    async fn perform(&mut self, config: &Config) -> Result<()> {
        self.first_task().await?;
        self.print_addresses(config);
        if config.once {
            return Ok(());
        }
        say("running; Ctrl-C stops all of it");
        loop {
            self.producer.revive().await?;
            self.consumer.revive().await?;
            if let Some(broker) = &mut self.broker
                && !broker.is_running()?
            {
                say("the broker died; starting it again");
                broker.start_again().await?;
            }
            sleep(LOOK).await;
        }
    }

    async fn first_task(&self) -> Result<()> {
        let client = Client::new(self.producer.service.address())?;
        let task = json!({"task": "long_running_task", "kwargs": {"data": 21, "seconds": 3}});
        say(format!("POST {} {task}", client.url("/v1/tasks")));
        let id = client.accepted(&task).await?;
        say(format!("202 {}", client.url(&format!("/v1/tasks/{id}"))));
        let (start, mut shown) = (Instant::now(), String::new());
        loop {
            let task = client.get(&id).await?;
            let line = summary(&task);
            if line != shown {
                say(format!("GET  {line}"));
                shown = line;
            }
            match task["state"].as_str() {
                Some("SUCCESS") => return Ok(()),
                Some("FAILURE" | "REVOKED") => bail!("the first task did not succeed: {task:#}"),
                _ if start.elapsed() > FIRST_TASK => bail!("the first task did not end in {FIRST_TASK:?}: {task:#}"),
                _ => sleep(LOOK).await,
            }
        }
    }

    fn print_addresses(&self, config: &Config) {
        say(format!("API         {}", self.producer.service.url("/v1/tasks")));
        say(format!("metrics     {}", self.producer.service.url("/metrics")));
        say(format!("            {}", self.consumer.service.url("/metrics")));
        say(format!("health      {}", self.producer.service.url("/readyz")));
        say(format!("            {}", self.consumer.service.url("/readyz")));
        match &self.broker {
            Some(broker) => {
                let (user, password) = broker.management().credentials();
                say(format!("management  {} (user {user}, password {password})", broker.management_url()));
                let (address, secrets) = (broker.endpoint().amqp, secrets(&self.dir));
                say(format!("AMQP        {address} (passwords in {})", secrets.display()));
            }
            None => say("AMQP        as AMQP_URL says"),
        }
        say(format!("store       {}", self.dir.join("errand.db").display()));
        say(format!("logs        {}/*.log", self.dir.display()));
        if config.data.is_none() {
            say("            store and logs go when this ends; ERRAND_DATA=<directory> keeps them");
        }
    }

    /// They may be gone when somebody wants to look.
    fn print_logs(&self) {
        for service in [&self.producer.service, &self.consumer.service] {
            say(format!("the end of {}\n{}", service.log().display(), service.log_tail(30)));
        }
    }

    /// Workers first, then what they report to, then what lies between. A node whose data go anyway is not asked to
    /// put them in order, which takes seconds: dropping it kills it.
    async fn stop(mut self, keeps_data: bool) -> Result<()> {
        for service in [&mut self.consumer.service, &mut self.producer.service] {
            service.terminate(STOP).await?;
        }
        if let Some(broker) = &mut self.broker
            && keeps_data
            && broker.is_running()?
        {
            broker.stop().await?;
        }
        Ok(())
    }
}

/// A node with a user for each service that may do no more than it must, and how each reaches it: producer, consumer.
async fn start_broker(dir: &Path) -> Result<(Broker, [Env; 2])> {
    say("starting RabbitMQ");
    let users = Users::of(&secrets(dir))?;
    let options = Options {
        definitions: Some(users.definitions_file("/")?),
        credentials: (users::ADMIN.to_owned(), users.password(users::ADMIN)?),
        dir: Some(dir.join("rabbitmq")),
        management_port: Some(15672),
        ..Options::default()
    };
    let broker = Broker::start(options).await?;
    // A new node has none, but data may be kept from one that had.
    let _ = broker.management().call(Method::DELETE, &["users", "guest"], None).await;
    let env = |user| -> Result<Env> {
        let url = users.url_file(user, broker.endpoint().amqp, "/")?.display().to_string();
        Ok(Env::from([("AMQP_URL_FILE".to_owned(), url), ("AMQP_DECLARE".to_owned(), "false".to_owned())]))
    };
    let envs = [env(users::PRODUCER)?, env(users::CONSUMER)?];
    Ok((broker, envs))
}

/// Where the users' passwords are.
fn secrets(dir: &Path) -> PathBuf {
    dir.join("secrets")
}

/// A service that is started again when it dies.
struct Supervised {
    service: Service,
    since: Instant,
    pause: Duration,
}

impl Supervised {
    async fn start(binary: &str, port: u16, dir: &Path, env: Env) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", ports::free_or(port)?);
        let mut usual = env.clone();
        usual.insert(format!("{}_LISTEN", binary.to_uppercase()), listen);
        let mut service = match Service::start(binary, binary, dir, &usual).await {
            // Somebody else took the usual port meanwhile.
            Err(error) if error.to_string().contains("in use") => Service::start(binary, binary, dir, &env).await?,
            started => started?,
        };
        service.silence();
        Ok(Self { service, since: Instant::now(), pause: BACKOFF.0 })
    }

    async fn revive(&mut self) -> Result<()> {
        let Some(status) = self.service.try_wait()? else { return Ok(()) };
        if self.since.elapsed() > STEADY {
            self.pause = BACKOFF.0;
        }
        say(format!("the {} died ({status}); starting it again in {:?}", self.service.name(), self.pause));
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(BACKOFF.1);
        // It may die again at once: the next look tells.
        if let Err(error) = self.service.restart().await {
            say(format!("{error:#}"));
        }
        self.since = Instant::now();
        Ok(())
    }
}

struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn existing(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir.canonicalize()?)
}

/// What of a task changes while one watches it.
fn summary(task: &Value) -> String {
    let fields = ["progress", "result", "error", "worker", "reason"].into_iter().filter(|field| !task[field].is_null());
    let state = task["state"].as_str().unwrap_or_default().to_owned();
    [state].into_iter().chain(fields.map(|field| format!("{field} {}", task[field]))).collect::<Vec<_>>().join("  ")
}

/// A closed terminal is no reason to stop in the middle.
fn say(line: impl Display) {
    let _ = writeln!(stdout().lock(), "up: {line}");
}
