//! No secret in any log, whatever `RUST_LOG` asks for.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use e2e::{MailServer, Pair, Postgres, Proxy, Service, broker, client, guard, postgres};
use reqwest::Method;
use serde_json::{Value, json};

use crate::life::SOON;

/// Everything, and by name what is quiet otherwise.
const EVERYTHING: &str = "trace,lapin=trace,amq_protocol=trace,amq_protocol_tcp=trace,deadpool=trace,lettre=trace,\
                          sqlx=trace,sqlx::query=trace,actix_http=trace,rustls=trace,hyper=trace,reqwest=trace";
const USER: &str = "marked";
/// Each has a sign that a URL must encode.
const AMQP: &str = "amqp/s3cret";
const WRONG: &str = "wrong/s3cret";
const SMTP: &str = "smtp/s3cret";
const ABSENT: &str = "absent/s3cret";

/// A secret as it may be spelled: by itself, in a URL, in a login, in a debug print of bytes.
fn spellings(user: &str, secret: &str) -> Vec<String> {
    let login = format!("\0{user}\0{secret}");
    let numbers = |text: &str| text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let hex = format!("{:02x?}", secret.as_bytes()).replace(['[', ']'], "");
    let base64 = [login.as_str(), secret].map(|text| BASE64_STANDARD.encode(text).trim_end_matches('=').to_owned());
    let plain = [secret.to_owned(), encoded(secret), encoded(secret).to_lowercase(), numbers(secret), hex];
    plain.into_iter().chain(base64).collect()
}

fn encoded(secret: &str) -> String {
    secret.replace('/', "%2F")
}

/// A user of the shared node with a password that can be told from everything else.
async fn marked(pair: &e2e::pair::Builder) -> Result<()> {
    let management = broker::shared().await?.management();
    management.add_vhost(pair.vhost()).await?;
    management.call(Method::PUT, &["users", USER], Some(&json!({"password": AMQP, "tags": ""}))).await?;
    let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
    management.call(Method::PUT, &["permissions", pair.vhost(), USER], Some(&all)).await.map(drop)
}

fn queries(postgres: &Postgres, dir: &Path) -> Result<String> {
    let absent = format!("postgres://errand:{}@127.0.0.1:1/postgres", encoded(ABSENT));
    let wrong = postgres.url().replace(postgres::PASSWORD, &encoded(WRONG));
    let query = |database: &str| json!({"database": database, "sql": "select 1 as one", "params": [], "max_rows": 1});
    let queries = json!({"good": query(&postgres.url()), "wrong": query(&wrong), "absent": query(&absent)});
    let file = dir.join("queries.json");
    std::fs::write(&file, queries.to_string())?;
    Ok(file.display().to_string())
}

async fn state(pair: &Pair, task: &str, args: Value) -> Result<Value> {
    let wish = json!({"task": task, "args": args, "retry": {"max_retries": 1, "backoff": 1, "jitter": false}});
    let id = pair.client().accepted(&wish).await?;
    Ok(pair.client().await_terminal(&id, SOON).await?["state"].clone())
}

#[tokio::test]
async fn no_secret_is_in_any_log_at_trace() -> Result<()> {
    let (shared, dir) = (broker::shared().await?, guard::scratch_dir("secrets-")?);
    let (postgres, mut mail) = (Postgres::start().await?, MailServer::with_login("errand", SMTP)?);
    mail.start().await?;
    let proxy = Proxy::start(shared.endpoint().amqp).await?;
    let pair = Pair::on(shared).env("RUST_LOG", EVERYTHING);
    marked(&pair).await?;
    let url = |password: &str| format!("amqp://{USER}:{}@{}/{}", encoded(password), proxy.address(), pair.vhost());
    let (good, bad) = (url(AMQP), url(WRONG));
    let certificate = mail.certificate().display().to_string();
    let smtp = format!("smtps://errand:{}@localhost:{}", encoded(SMTP), mail.port());
    let pair = pair.env("AMQP_URL", &good).consumer_env("SMTP_URL", &smtp).consumer_env("SSL_CERT_FILE", &certificate);
    let pair = pair.consumer_env("QUERIES_FILE", &queries(&postgres, dir.path())?).start().await?;

    let succeeded = json!("SUCCESS");
    assert_eq!(state(&pair, "query_database", json!(["good", {}])).await?, succeeded);
    assert_eq!(state(&pair, "query_database", json!(["wrong", {}])).await?, "FAILURE");
    assert_eq!(state(&pair, "query_database", json!(["absent", {}])).await?, "FAILURE");
    assert_eq!(state(&pair, "send_email", json!(["ada@example.com", "plain", "text"])).await?, succeeded);
    proxy.cut();
    assert_eq!(state(&pair, "flaky", json!([1])).await?, succeeded);

    let env = [("AMQP_URL", &bad), ("RUST_LOG", &EVERYTHING.to_owned())];
    let env = env.map(|(name, value)| (name.to_owned(), value.clone())).into();
    let mut refused = Service::spawn("consumer", "refused", pair.dir(), &env)?;
    await_refusal(&mut refused).await?;
    let logs = logs(pair.dir())?;
    pair.stop().await?;
    for said in ["TRACE", "lost the broker", "ACCESS_REFUSED"] {
        assert!(logs.contains(said), "{said} is in no log: nothing is shown by what is not there");
    }
    let secrets = [(USER, AMQP), (USER, WRONG), ("errand", SMTP), ("errand", ABSENT), ("errand", postgres::PASSWORD)];
    for (user, secret) in secrets {
        for spelling in spellings(user, secret) {
            let found = logs.lines().find(|line| line.contains(&spelling));
            assert!(found.is_none(), "{spelling} is in a log: {found:?}");
        }
    }
    Ok(())
}

async fn await_refusal(service: &mut Service) -> Result<()> {
    let start = std::time::Instant::now();
    while !service.log_tail(10_000).contains("ACCESS_REFUSED") {
        ensure!(start.elapsed() < SOON && service.try_wait()?.is_none(), "no refusal in\n{}", service.log_tail(20));
        // It serves its health meanwhile, and that says why.
        let _ = client::http()?.get(service.url("/readyz")).send().await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    service.silence();
    Ok(())
}

/// Every log of the directory in one text.
fn logs(dir: &Path) -> Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
            all.push_str(&String::from_utf8_lossy(&text));
        }
    }
    Ok(all)
}
