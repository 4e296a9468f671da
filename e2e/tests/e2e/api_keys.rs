//! API keys: who may do what, and that nobody sees what another's key has submitted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::client::Answer;
use e2e::keys::{self, Key};
use e2e::{Client, Env, Events, Pair, Service, broker, guard};
use reqwest::Method;
use serde_json::{Value, json};

use crate::life::SOON;

const OPEN: &str = "";

/// What every route asks for. A route that is not in here fails the test that walks them.
const ROUTES: &[(&str, &str, &str)] = &[
    ("POST", "/v1/tasks", "submit"),
    ("POST", "/v1/tasks/batch", "submit"),
    ("GET", "/v1/tasks", "read"),
    ("GET", "/v1/tasks/{id}", "read"),
    ("GET", "/v1/tasks/{id}/events", "read"),
    ("GET", "/v1/tasks/{id}/attempts", "read"),
    ("POST", "/v1/tasks/{id}/revoke", "submit"),
    ("DELETE", "/v1/tasks/{id}", "submit"),
    ("POST", "/v1/tasks/{id}/retry", "submit"),
    ("GET", "/v1/dead-letters", "read"),
    ("POST", "/v1/dead-letters/replay", "submit"),
    ("GET", "/v1/dead-letters/{id}", "read"),
    ("DELETE", "/v1/dead-letters/{id}", "submit"),
    ("POST", "/v1/dead-letters/{id}/replay", "submit"),
    ("GET", "/v1/queues", "admin"),
    ("GET", "/v1/queues/{queue}", "admin"),
    ("POST", "/v1/queues/{queue}/pause", "admin"),
    ("POST", "/v1/queues/{queue}/resume", "admin"),
    ("POST", "/v1/queues/{queue}/purge", "admin"),
    ("GET", "/v1/workers", "admin"),
    ("GET", "/v1/task-types", "read"),
    ("GET", "/v1/stats", "admin"),
    ("GET", "/metrics", "admin"),
    ("GET", "/livez", OPEN),
    ("GET", "/readyz", OPEN),
    ("GET", "/openapi.json", OPEN),
    ("GET", "/docs", OPEN),
];

/// Waits until the producer, which had no keys before, asks for one.
pub(crate) async fn needed(client: &Client) -> Result<()> {
    answered(client, 401, SOON).await.map(drop)
}

/// How long it takes until a list is answered with this status.
async fn answered(client: &Client, status: u16, deadline: Duration) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let answer = client.get_path("/v1/tasks?limit=1").await?;
        if answer.status == status {
            return Ok(start.elapsed());
        }
        anyhow::ensure!(start.elapsed() < deadline, "still {} {}", answer.status, answer.text);
    }
}

/// A key that the running producer knows, and a client with it.
pub(crate) async fn client(pair: &Pair, scopes: &str, flags: &[&str]) -> Result<(Key, Client)> {
    let key = keys::create(pair.store(), scopes, flags)?;
    let client = pair.client().with_key(&key.token);
    needed(pair.client()).await?;
    let start = Instant::now();
    while client.send(client.request(Method::POST, "/v1/none")).await?.status == 401 {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(5), "the new key is not known");
    }
    Ok((key, client))
}

/// The documented operations: method, path, and the scope that the document says.
async fn documented(client: &Client) -> Result<BTreeMap<(String, String), String>> {
    let document = client.get_path("/openapi.json").await?.body;
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().context("no paths")? {
        for (method, operation) in item.as_object().context("no operations")? {
            let scope = operation["security"][0]["key"][0].as_str().unwrap_or(OPEN);
            operations.insert((method.to_uppercase(), path.clone()), scope.to_owned());
        }
    }
    Ok(operations)
}

async fn call(client: &Client, method: &str, path: &str) -> Result<Answer> {
    client.send(client.request(method.parse()?, path)).await
}

fn assert_problem(answer: &Answer, status: u16, what: &str) {
    let kind = answer.header("content-type");
    assert_eq!((answer.status, kind), (status, Some("application/problem+json")), "{what}: {}", answer.text);
}

#[tokio::test]
async fn every_scope_is_held_against_every_route() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let known = documented(pair.client()).await?;
    let listed =
        ROUTES.iter().map(|(method, path, scope)| (((*method).to_owned(), (*path).to_owned()), (*scope).to_owned()));
    assert_eq!(known, listed.collect());
    let (_, submit) = client(&pair, "submit", &[]).await?;
    let (_, read) = client(&pair, "read", &[]).await?;
    let (_, both) = client(&pair, "submit,read", &[]).await?;
    let (key, admin) = client(&pair, "admin", &[]).await?;
    let other = keys::create(pair.store(), "admin", &[])?;
    let (prefix, secret) = key.token.rsplit_once('_').context("no secret")?;
    let another = other.token.rsplit_once('_').context("no secret")?.1;
    let last = if secret.ends_with('0') { "1" } else { "0" };
    let strangers = [
        prefix.to_owned(),
        format!("{prefix}_{}{last}", &secret[..63]),
        format!("{prefix}_{another}"),
        format!("errand_000000000000_{secret}"),
        "x y".to_owned(),
    ];
    for ((method, route), scope) in &known {
        let path = route.replace("{id}", "none").replace("{queue}", "none");
        let what = format!("{method} {path}");
        for stranger in std::iter::once(pair.client().clone()).chain(strangers.iter().map(|key| admin.with_key(key))) {
            let answer = call(&stranger, method, &path).await?;
            if scope == OPEN {
                assert_eq!(answer.status, 200, "{what}");
                continue;
            }
            assert_problem(&answer, 401, &what);
            assert!(answer.header("www-authenticate").is_some_and(|header| header.starts_with("Bearer")), "{what}");
        }
        for (caller, own) in [(&submit, "submit"), (&read, "read"), (&both, "submit,read"), (&admin, "admin")] {
            let answer = call(caller, method, &path).await?;
            let allowed = own == "admin" || scope == OPEN || own.split(',').any(|own| own == scope);
            if allowed {
                assert!(![401, 403].contains(&answer.status), "{what} as {own}: {}", answer.text);
            } else {
                assert_problem(&answer, 403, &what);
                assert!(answer.text.contains(scope.as_str()), "{what}: {}", answer.text);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_may_not_call_is_told_before_the_body_is_read() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let (key, own) = client(&pair, "submit", &[]).await?;
    let ask = |key: &str| {
        format!(
            "POST /v1/tasks/batch HTTP/1.1\r\nhost: e2e\r\n{key}content-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
    };
    let good = format!("authorization: bearer {}\r\n", key.token);
    for (head, status) in
        [(String::new(), "401"), (format!("{good}{good}"), "401"), (good.replace("bearer", "Basic"), "401")]
    {
        let (start, wait) = (Instant::now(), Duration::from_secs(3));
        let answer = String::from_utf8(pair.client().raw(ask(&head).as_bytes(), wait).await?)?;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(start.elapsed() < Duration::from_secs(9), "it waited for the body");
    }
    let answer = pair.client().raw(format!("{}[{{}}, {{}} ]", ask(&good)).as_bytes(), Duration::from_secs(3)).await?;
    assert!(answer.starts_with(b"HTTP/1.1 422"), "{}", String::from_utf8_lossy(&answer));
    let large = pair.client().request(Method::POST, "/v1/tasks/batch").body(vec![b' '; 8_000_000]);
    assert_problem(&pair.client().send(large.header("content-type", "application/json")).await?, 401, "a large body");
    assert_eq!(own.submit(&json!({"task": "add", "args": [1, 2]})).await?.status, 202);
    Ok(())
}

#[tokio::test]
async fn two_keys_do_not_see_each_other_on_any_route() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let early = pair.client().accepted(&json!({"task": "echo", "args": ["early"], "countdown": 600})).await?;
    let (one, mine) = client(&pair, "submit,read", &[]).await?;
    let (_, theirs) = client(&pair, "submit,read", &[]).await?;
    let (_, admin) = client(&pair, "admin", &[]).await?;
    let open =
        mine.accepted(&json!({"task": "echo", "args": ["my secret"], "countdown": 600, "task_id": "open"})).await?;
    let ended = mine.accepted(&json!({"task": "echo", "args": ["my secret"]})).await?;
    mine.await_terminal(&ended, SOON).await?;
    let before = [mine.get(&open).await?, mine.get(&ended).await?];

    let routes: Vec<_> =
        documented(pair.client()).await?.into_keys().filter(|(_, path)| path.contains("{id}")).collect();
    assert!(routes.len() >= 5, "{routes:?}");
    for (method, route) in &routes {
        for id in [&open, &ended, &early] {
            let path = route.replace("{id}", id);
            let unknown = call(&theirs, method, &route.replace("{id}", "unknown")).await?;
            let answer = call(&theirs, method, &path).await?;
            assert_problem(&answer, 404, &format!("{method} {path}"));
            assert_eq!(answer.text, unknown.text, "{method} {path}");
        }
    }
    let wait = theirs.request(Method::GET, &format!("/v1/tasks/{open}")).header("prefer", "wait=1");
    assert_eq!(theirs.send(wait).await?.status, 404);
    assert_eq!(theirs.get_path("/v1/tasks").await?.body["tasks"], json!([]));
    assert_eq!(theirs.get_path("/v1/tasks?state=SUCCESS,PENDING").await?.body["tasks"], json!([]));
    let taken = theirs.submit(&json!({"task": "echo", "args": [1], "task_id": "open"})).await?;
    assert_problem(&taken, 409, "a taken id");
    let batch = theirs
        .request(Method::POST, "/v1/tasks/batch")
        .json(&json!([{"task": "echo", "args": [1], "task_id": "open"}]));
    let batch = theirs.send(batch).await?;
    assert_eq!(batch.status, 422, "{}", batch.text);
    for answer in [&taken, &batch] {
        assert!(!answer.text.contains("secret") && !answer.text.contains(&one.id), "{}", answer.text);
    }
    assert_eq!([mine.get(&open).await?, mine.get(&ended).await?], before);

    let listed = |answer: Answer| -> BTreeSet<String> {
        let tasks = answer.body["tasks"].as_array().cloned().unwrap_or_default();
        tasks.iter().filter_map(|task| Some(task["task_id"].as_str()?.to_owned())).collect()
    };
    assert_eq!(listed(mine.get_path("/v1/tasks").await?), [open.clone(), ended.clone()].into());
    assert_eq!(listed(mine.get_path("/v1/tasks?state=PENDING").await?), [open.clone()].into());
    assert_eq!(listed(admin.get_path("/v1/tasks").await?), [early, open.clone(), ended.clone()].into());
    assert_eq!(call(&admin, "POST", &format!("/v1/tasks/{open}/revoke")).await?.status, 200);
    assert_eq!(call(&mine, "DELETE", &format!("/v1/tasks/{ended}")).await?.status, 204);
    pair.stop().await
}

#[tokio::test]
async fn an_idempotency_key_and_a_child_belong_to_their_api_key() -> Result<()> {
    let pair = Pair::on(broker::shared().await?).start().await?;
    let (_, mine) = client(&pair, "submit,read", &[]).await?;
    let (_, theirs) = client(&pair, "submit,read", &[]).await?;
    let mut ids = BTreeSet::new();
    for (client, argument) in [(&mine, 1), (&theirs, 2)] {
        for replayed in [None, Some("true")] {
            let task = json!({"task": "echo", "args": [argument]});
            let request = client.request(Method::POST, "/v1/tasks").header("idempotency-key", "order-17").json(&task);
            let answer = client.send(request).await?;
            assert_eq!((answer.status, answer.header("idempotency-replayed")), (202, replayed), "{}", answer.text);
            ids.insert(answer.body["task_id"].to_string());
        }
    }
    assert_eq!(ids.len(), 2);
    let parent = mine.accepted(&json!({"task": "echo", "args": [0], "countdown": 600})).await?;
    crate::children::submit(&pair, "child", &parent, "default").await?;
    let start = Instant::now();
    while mine.get_path("/v1/tasks/child").await?.status == 404 {
        anyhow::ensure!(start.elapsed() < SOON, "the child is not its parent's owner's");
    }
    assert_eq!(theirs.get_path("/v1/tasks/child").await?.status, 404);
    pair.stop().await
}

#[tokio::test]
async fn a_revoked_key_is_refused_within_a_second_and_the_last_one_opens_no_door() -> Result<()> {
    let mut pair = Pair::on(broker::shared().await?).producer_env("RUST_LOG", "trace").consumers(0).start().await?;
    assert_eq!(
        pair.client().get_path("/v1/tasks").await?.status,
        200,
        "none is needed on loopback while there is none"
    );
    let (kept, keeps) = client(&pair, "submit,read", &[]).await?;
    let (gone, goes) = client(&pair, "submit,read", &[]).await?;
    let id = goes.accepted(&json!({"task": "echo", "args": [1]})).await?;
    let mut events = Events::open_with(pair.client().address(), &id, None, Some(&gone.token)).await?;
    assert_eq!(events.status()?, 200);
    let listed = keys::said(pair.store(), &["list"])?;
    assert!(listed.contains(&kept.id) && listed.contains("submit,read"), "{listed}");

    let wait = goes.send(goes.request(Method::GET, &format!("/v1/tasks/{id}")).header("prefer", "wait=60"));
    let revoke = async {
        keys::revoke(pair.store(), &gone.id)?;
        answered(&goes, 401, Duration::from_secs(1)).await
    };
    let (waited, after) = tokio::join!(wait, revoke);
    assert_problem(&waited?, 401, "whoever waited");
    let after = after?;
    println!("refused {after:?} after its revocation");
    assert_eq!(events.rest(Duration::from_secs(1)).await?.len(), 1, "its stream has ended");
    assert_eq!(keeps.get_path("/v1/tasks").await?.status, 200);
    keys::revoke(pair.store(), &kept.id)?;
    answered(&keeps, 401, Duration::from_secs(1)).await?;
    pair.restart_producer().await?;
    for client in [pair.client(), &keeps, &goes] {
        assert_eq!(client.get_path("/v1/tasks").await?.status, 401);
    }
    assert!(!keys::command(pair.store(), &["revoke", "nobody"])?.status.success());

    let mut kept_text = std::fs::read_to_string(pair.producer.log())?;
    for file in std::fs::read_dir(pair.dir())? {
        kept_text.push_str(&String::from_utf8_lossy(&std::fs::read(file?.path())?));
    }
    for key in [&kept, &gone] {
        let secret = key.token.rsplit('_').next().context("no secret")?;
        assert!(kept_text.contains(&key.id) && !kept_text.contains(secret), "a secret is on disk");
        assert!(!keys::said(pair.store(), &["list"])?.contains(secret));
    }
    Ok(())
}

/// Starts a producer that must end by itself, and answers what it said.
async fn refused(env: &[(&str, &str)], store: &std::path::Path) -> Result<String> {
    let dir = guard::scratch_dir("refused-")?;
    let mut all = Env::from([("DATABASE_URL".to_owned(), format!("sqlite:{}", store.display()))]);
    all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let mut producer = Service::spawn("producer", "producer", dir.path(), &all)?;
    producer.silence();
    assert!(!producer.wait(SOON).await?.success());
    Ok(producer.log_tail(20))
}

#[tokio::test]
async fn no_producer_faces_a_network_without_a_key() -> Result<()> {
    let dir = guard::scratch_dir("exposed-")?;
    let store = dir.path().join("errand.db");
    // Somebody has the port on loopback: a producer that gets as far as to listen ends as well.
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let listen = format!("0.0.0.0:{}", taken.local_addr()?.port());
    let said = refused(&[("PRODUCER_LISTEN", &listen)], &store).await?;
    assert!(said.contains("PRODUCER_LISTEN") && said.contains("producer keys create --name"), "{said}");
    keys::create(&store, "submit,read", &[])?;
    let said = refused(&[("PRODUCER_LISTEN", &listen)], &store).await?;
    assert!(said.contains("cannot listen") && !said.contains("keys create"), "{said}");

    let file = dir.path().join("key");
    let secret = "5ec7e7".repeat(10);
    std::fs::write(&file, format!("errand_id_{secret}"))?;
    let path = file.display().to_string();
    let said = refused(&[("API_KEY_FILE", &path)], &store).await?;
    assert!(said.contains("API_KEY_FILE") && !said.contains(&secret), "{said}");
    let other = keys::create(&store, "read", &[])?;
    std::fs::write(&file, format!("errand_{}_{}", other.id, "0".repeat(64)))?;
    let said = refused(&[("API_KEY_FILE", &path)], &store).await?;
    assert!(said.contains("API_KEY_FILE: the store has another key"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_key_costs_a_submit_little() -> Result<()> {
    const SUBMITS: u32 = 300;
    let pair = Pair::on(broker::shared().await?).consumers(0).start().await?;
    let task = json!({"task": "echo", "args": [Value::Null]});
    let mut times = Vec::new();
    for flags in [None, Some(&["--open-tasks", "100000", "--requests-per-second", "100000"])] {
        let client = match flags {
            Some(flags) => client(&pair, "submit,read", flags).await?.1,
            None => pair.client().clone(),
        };
        let start = Instant::now();
        for _ in 0..SUBMITS {
            client.accepted(&task).await?;
        }
        times.push(start.elapsed() / SUBMITS);
    }
    println!("a submit takes {:?} without keys and {:?} with one", times[0], times[1]);
    assert!(times[1] < times[0] * 3, "{times:?}");
    Ok(())
}
