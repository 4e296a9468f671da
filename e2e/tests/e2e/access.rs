//! The pair under the broker users that may do the least, and what the broker refuses these users.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::broker::{Answer, Endpoint, Login, Method, Wire};
use e2e::pair::Builder;
use e2e::users::{CONSUMER, PRODUCER};
use e2e::{Env, Pair, Users, broker, guard};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::celery::control::celery;
use crate::life::SOON;

const ACCESS_REFUSED: u16 = 403;
/// What the services say and do when an object is gone.
const WAIT: Duration = Duration::from_millis(50);

/// Users are those of the whole node, so the tests share them.
static USERS: LazyLock<Users> = LazyLock::new(|| {
    let dir = guard::scratch_dir("users-").expect("a directory").keep();
    Users::of(&dir.join("secrets")).expect("users")
});

/// A pair to be started whose users may do the least, on a virtual host with the definitions.
async fn least(queues: &str) -> Result<(Builder, Value)> {
    let node = broker::shared().await?;
    let pair = Pair::on(node).env("QUEUES", queues).env("AMQP_DECLARE", "false");
    let definitions = USERS.definitions(pair.vhost(), &Env::from([("QUEUES".to_owned(), queues.to_owned())]))?;
    load(node.management(), &definitions).await?;
    let url = |user| USERS.url(user, node.endpoint().amqp, pair.vhost());
    let (producer, consumer) = (url(PRODUCER)?, url(CONSUMER)?);
    Ok((pair.producer_env("AMQP_URL", &producer).consumer_env("AMQP_URL", &consumer), definitions))
}

/// One at a time: RabbitMQ 4.3 refuses those that name a user whom others are just making.
async fn load(management: &e2e::broker::Management, definitions: &Value) -> Result<()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let _turn = TURN.lock().await;
    management.call(reqwest::Method::POST, &["definitions"], Some(definitions)).await.map(drop)
}

async fn post(pair: &Pair, path: &str) -> Result<u16> {
    let request = pair.client().request(reqwest::Method::POST, path);
    Ok(pair.client().send(request).await?.status)
}

#[tokio::test]
async fn the_pair_needs_no_more_than_the_least_privileges() -> Result<()> {
    let (pair, definitions) = least("default,mail").await?;
    let pair = pair.start().await?;
    let client = pair.client();
    let flaky = json!({"task": "flaky", "args": [1], "queue": "mail", "retry": {"backoff": 1, "jitter": false}});
    let retried = client.accepted(&flaky).await?;
    let hopeless =
        client.accepted(&json!({"task": "always_fails", "args": ["no"], "retry": {"max_retries": 0}})).await?;
    let endless = client.accepted(&json!({"task": "long_running_task", "args": [1, 600], "time_limit": 700})).await?;
    let parent = client.accepted(&json!({"task": "echo", "args": [0], "countdown": 600})).await?;

    let ended = client.await_terminal(&retried, SOON).await?;
    assert_eq!((&ended["state"], &ended["retries"]), (&json!("SUCCESS"), &json!(1)), "{ended:#}");
    assert_eq!(client.await_terminal(&hopeless, SOON).await?["state"], "FAILURE");
    let letters = pair.broker().management.peek(pair.vhost(), "errand.dead-letters", 10).await?;
    assert!(letters.iter().any(|letter| letter.headers["id"] == hopeless.as_str()));

    client.await_state(&endless, |task| task["state"] == "STARTED", SOON).await?;
    assert_eq!(post(&pair, &format!("/v1/tasks/{endless}/revoke")).await?, 202);
    assert_eq!(client.await_terminal(&endless, SOON).await?["state"], "REVOKED");

    assert_eq!(post(&pair, "/v1/queues/mail/pause").await?, 200);
    pair.broker().await_depth(pair.vhost(), "errand.mail", |depth| depth.consumers == 0, SOON).await?;
    assert_eq!(post(&pair, "/v1/queues/mail/resume").await?, 200);
    pair.broker().await_depth(pair.vhost(), "errand.mail", |depth| depth.consumers == 1, SOON).await?;

    crate::children::submit(&pair, "child", &parent, "default").await?;
    assert_eq!(crate::children::ended(&pair, "child").await?["result"], 3);

    let told = celery(&pair, "newest", &["inspect", "-t", "5", "ping"]).await?;
    assert_eq!(told.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>(), [json!({"ok": "pong"})]);

    what_is_missing_is_named_until_it_is_there(&pair, &definitions).await?;
    pair.stop().await
}

/// A service that may not declare cannot mend: it says what is missing, lives, and goes on when it is there again.
async fn what_is_missing_is_named_until_it_is_there(pair: &Pair, definitions: &Value) -> Result<()> {
    let management = &pair.broker().management;
    management.delete_queue(pair.vhost(), "errand.dead-letters").await?;
    let hopeless = json!({"task": "always_fails", "args": ["no"], "retry": {"max_retries": 0}});
    let id = pair.client().accepted(&hopeless).await?;
    let start = std::time::Instant::now();
    loop {
        let health = e2e::client::http()?.get(pair.consumers[0].url("/readyz")).send().await?.text().await?;
        if health.contains("queue errand.dead-letters") && health.contains("AMQP_DECLARE=false") {
            break;
        }
        ensure!(start.elapsed() < SOON, "the worker does not say what is missing: {health}");
        tokio::time::sleep(WAIT).await;
    }
    load(management, definitions).await?;
    // The report may be recorded before: each publish is repeated by itself.
    pair.broker().await_depth(pair.vhost(), "errand.dead-letters", |depth| depth.ready > 0, SOON).await?;
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["state"], "FAILURE");
    let letters = management.peek(pair.vhost(), "errand.dead-letters", 10).await?;
    assert!(letters.iter().any(|letter| letter.headers["id"] == id.as_str()));
    Ok(())
}

#[tokio::test]
async fn a_service_that_may_not_declare_waits_for_the_definitions_and_names_what_it_needs() -> Result<()> {
    let (pair, definitions) = least("default").await?;
    let management = broker::shared().await?.management();
    management.delete_queue(pair.vhost(), "errand.default").await?;
    let mut pair = pair.consumers(0).start().await?;
    let id = pair.client().accepted(&json!({"task": "add", "args": [20, 22]})).await?;
    let why = |task: &Value| task["reason"].as_str().is_some_and(|why| why.contains("queue errand.default"));
    pair.client().await_state(&id, why, SOON).await.context("the reason names the queue")?;
    load(management, &definitions).await?;
    pair.start_consumer(&[]).await?;
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["result"], 42);
    pair.stop().await
}

/// What a user may try.
#[derive(Debug, Clone, Copy)]
enum Try<'a> {
    Consume(&'a str),
    Get(&'a str),
    Purge(&'a str),
    DeleteQueue(&'a str),
    DeleteExchange(&'a str),
    DeclareQueue(&'a str),
    DeclareExchange(&'a str),
    Bind(&'a str, &'a str),
    Unbind(&'a str, &'a str),
    BindExchange(&'a str, &'a str),
    Publish(&'a str, &'a str),
    Look(&'a str),
}

impl Try<'_> {
    fn method(self) -> Option<Method> {
        let method = |class, number| Method::new(class, number).bytes(&[0, 0]);
        Some(match self {
            Self::Consume(queue) => method(60, 20).short(queue).short("").bytes(&[0]).table(),
            Self::Get(queue) => method(60, 70).short(queue).bytes(&[0]),
            Self::Purge(queue) => method(50, 30).short(queue).bytes(&[0]),
            Self::DeleteQueue(queue) => method(50, 40).short(queue).bytes(&[0]),
            Self::DeleteExchange(exchange) => method(40, 20).short(exchange).bytes(&[0]),
            Self::DeclareQueue(queue) => method(50, 10).short(queue).bytes(&[2]).table(),
            Self::DeclareExchange(exchange) => method(40, 10).short(exchange).short("fanout").bytes(&[2]).table(),
            Self::Bind(queue, exchange) => method(50, 20).short(queue).short(exchange).short("#").bytes(&[0]).table(),
            Self::Unbind(queue, exchange) => method(50, 50).short(queue).short(exchange).short("default").table(),
            Self::BindExchange(to, from) => method(40, 30).short(to).short(from).short("#").bytes(&[0]).table(),
            Self::Look(queue) => method(50, 10).short(queue).bytes(&[1]).table(),
            Self::Publish(..) => return None,
        })
    }

    /// On a connection of its own: a refusal closes the channel.
    async fn by(self, user: &str, broker: &Endpoint, vhost: &str) -> Result<Answer> {
        let password = USERS.password(user)?;
        let mut wire = Wire::open(broker.amqp, Login { user, password: &password, vhost }).await?;
        let answer = match (self, self.method()) {
            (Self::Publish(exchange, key), _) => {
                wire.call(Method::new(85, 10).bytes(&[0])).await?;
                wire.publish(exchange, key, b"{}").await?
            }
            (_, Some(method)) => wire.call(method).await?,
            (_, None) => unreachable!("only a publish is none"),
        };
        // A reset instead of a goodbye is of no interest here.
        let _ = wire.close().await;
        Ok(answer)
    }
}

/// Every operation that neither user may do with what is not its own.
fn forbidden_to_both(results: &str) -> Vec<Try<'_>> {
    let shared = ["errand.default", "errand.dead-letters", "errand.delay.1s"];
    let exchanges = ["errand.tasks", "errand.lost", "errand.dead", "errand.delay", "errand.workers", "errand.control"];
    let of_celery = ["celeryev", "celery.pidbox", "reply.celery.pidbox"];
    let mut tries = Vec::new();
    tries.extend(shared.map(Try::DeleteQueue));
    tries.extend(exchanges.map(Try::DeleteExchange));
    tries.extend(of_celery.map(Try::DeleteExchange));
    for queue in ["errand.dead-letters", "errand.delay.1s"] {
        tries.extend([Try::Consume(queue), Try::Get(queue), Try::Purge(queue)]);
    }
    tries.extend(["errand.tapped", "errand.default"].map(Try::DeclareQueue));
    tries.extend(["errand.tapped", "errand.tasks"].map(Try::DeclareExchange));
    tries.extend([
        Try::Bind("errand.default", "errand.tasks"),
        Try::Unbind("errand.default", "errand.tasks"),
        Try::Bind("errand.dead-letters", "errand.tasks"),
        Try::Bind(results, "errand.tasks"),
        Try::BindExchange("errand.control", "errand.tasks"),
        Try::Publish("errand.lost", ""),
        Try::Publish("celery.pidbox", ""),
        Try::Publish("amq.topic", "default"),
    ]);
    tries
}

#[tokio::test]
async fn what_is_not_a_users_own_is_refused_by_the_broker() -> Result<()> {
    let (pair, _) = least("default").await?;
    let pair = pair.start().await?;
    let queues = pair.broker().management.queues(pair.vhost()).await?;
    let own = |prefix: &str| queues.iter().find(|queue| queue.starts_with(prefix)).context(prefix.to_owned());
    let (results, commands, heartbeats) = (own("errand.results.")?, own("errand.control.")?, own("errand.workers.")?);

    let mut forbidden: Vec<(&str, Try<'_>)> = Vec::new();
    for user in [PRODUCER, CONSUMER] {
        forbidden.extend(forbidden_to_both(results).into_iter().map(|tried| (user, tried)));
    }
    for (user, queue) in
        [(PRODUCER, "errand.default"), (PRODUCER, commands), (CONSUMER, results), (CONSUMER, heartbeats)]
    {
        let tries = [Try::Consume(queue), Try::Get(queue), Try::Purge(queue), Try::DeleteQueue(queue)];
        forbidden.extend(tries.map(|tried| (user, tried)));
    }
    forbidden.extend(["errand.delay", "errand.workers"].map(|exchange| (PRODUCER, Try::Publish(exchange, "default"))));
    forbidden.push((CONSUMER, Try::Publish("errand.control", "")));
    for (user, tried) in forbidden {
        let answer = tried.by(user, pair.broker(), pair.vhost()).await?;
        assert!(matches!(answer, Answer::Refused(ACCESS_REFUSED, _)), "{user} {tried:?}: {answer:?}");
    }

    // What each needs, and what comes with it: who consumes a queue may purge it, and who replies may publish to any.
    let allowed = [
        (PRODUCER, Try::Publish("errand.tasks", "nowhere")),
        (PRODUCER, Try::Publish("errand.control", "")),
        (PRODUCER, Try::Publish("", "errand.dead-letters")),
        (PRODUCER, Try::Purge(results)),
        (PRODUCER, Try::Look("errand.default")),
        (CONSUMER, Try::Publish("errand.delay", "nowhere")),
        (CONSUMER, Try::Publish("errand.dead", "")),
        (CONSUMER, Try::Publish("", "errand.dead-letters")),
        (CONSUMER, Try::Purge("errand.default")),
        (CONSUMER, Try::Look("errand.dead-letters")),
    ];
    for (user, tried) in allowed {
        let answer = tried.by(user, pair.broker(), pair.vhost()).await?;
        assert!(matches!(answer, Answer::Method(..)), "{user} {tried:?}: {answer:?}");
    }
    for user in [PRODUCER, CONSUMER] {
        let elsewhere = Try::Look("errand.default").by(user, pair.broker(), "/").await;
        assert!(
            elsewhere.is_err_and(|error| format!("{error:#}").contains("refused")),
            "{user} has no other virtual host"
        );
    }
    pair.stop().await
}
