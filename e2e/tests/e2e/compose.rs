//! docker-compose.yml, run without Docker: the built services with exactly its environment, against a node with the
//! same configuration and definitions.
//!
//! Four things cannot be taken as they are, and only these are replaced ([`natively`]): the host name `rabbitmq:5672`
//! by the node's address, the address to listen on by a free loopback port, the volume `/data` by a scratch directory,
//! and the mounted secret by its file. What this does not show is the images, the network between them and the volumes' owners.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::broker::{Broker, Options};
use e2e::{Client, Env, Service, Users, guard, ports, service, users};
use reqwest::Method;
use serde_json::{Value, json};

const HOST: &str = "rabbitmq:5672";
const DEFINITIONS: &str = "deploy/rabbitmq/definitions.json";
/// What follows a user's name in its password.
const DEVELOPMENT: &str = "-development";
const SOON: Duration = Duration::from_secs(30);

fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The file as Compose understands it. The script fails if Compose rejects it.
fn compose() -> Result<Value> {
    let output = Command::new(repository().join("deploy/compose-check")).output()?;
    ensure!(output.status.success(), "deploy/compose-check: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A node with the file's `rabbitmq.conf` and definitions; only the definitions' path inside the container is another.
async fn broker() -> Result<Broker> {
    let config = std::fs::read_to_string(repository().join("deploy/rabbitmq/rabbitmq.conf"))?;
    let config = config.lines().filter(|line| !line.starts_with("load_definitions")).collect::<Vec<_>>().join("\n");
    Broker::start(Options {
        definitions: Some(repository().join(DEFINITIONS)),
        credentials: (users::ADMIN.to_owned(), format!("{}{DEVELOPMENT}", users::ADMIN)),
        config,
        ..Options::default()
    })
    .await
}

fn environment(compose: &Value, service: &str) -> Result<Env> {
    let variables = compose["services"][service]["environment"].as_object().context("no environment")?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(variables.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

fn natively(mut env: Env, broker: &Broker, data: &str, secret: &str) -> Result<Env> {
    for (name, value) in &mut env {
        *value = match name.as_str() {
            "AMQP_URL" => {
                ensure!(value.contains(HOST), "AMQP_URL leads elsewhere: {value}");
                value.replace(HOST, &broker.endpoint().amqp.to_string())
            }
            "PRODUCER_LISTEN" | "CONSUMER_LISTEN" => format!("127.0.0.1:{}", ports::free()?),
            "DATABASE_URL" => value.replace("/data/", data),
            "API_KEY_FILE" => {
                ensure!(value == "/run/secrets/api_key", "API_KEY_FILE leads elsewhere: {value}");
                secret.to_owned()
            }
            _ => continue,
        };
    }
    Ok(env)
}

/// Runs the health check that the file declares, as the container would: its arguments, the service's environment.
fn health_check(compose: &Value, name: &str, env: &Env) -> Result<bool> {
    let test = compose["services"][name]["healthcheck"]["test"].as_array().context("no health check")?;
    let words: Vec<&str> = test.iter().filter_map(Value::as_str).collect();
    let ["CMD", program, arguments @ ..] = words.as_slice() else { anyhow::bail!("not a CMD: {words:?}") };
    ensure!(*program == format!("/usr/local/bin/{name}"), "the image has no {program}");
    let status = Command::new(service::built(name)?).args(arguments).env_clear().envs(env).status()?;
    Ok(status.success())
}

#[tokio::test]
async fn the_compose_file_is_a_working_system() -> Result<()> {
    let compose = compose()?;
    let (producer_env, consumer_env) = (environment(&compose, "producer")?, environment(&compose, "consumer")?);
    let broker = broker().await?;
    let data = guard::scratch_dir("compose-")?;
    let directory = format!("{}/", data.path().display());
    let secret = compose["secrets"]["api_key"]["file"].as_str().context("no secret")?;
    let producer_env = natively(producer_env, &broker, &directory, secret)?;
    let consumer_env = natively(consumer_env, &broker, &directory, secret)?;

    let producer = Service::start("producer", "producer", data.path(), &producer_env).await?;
    let mut consumer = Service::start("consumer", "consumer", data.path(), &consumer_env).await?;
    let stranger = Client::new(producer.address())?;
    assert_eq!(stranger.submit(&json!({"task": "add", "args": [20, 22]})).await?.status, 401);
    let client = stranger.with_key(std::fs::read_to_string(secret)?.trim());
    let id = client.accepted(&json!({"task": "add", "args": [20, 22]})).await?;
    let task = client.await_terminal(&id, SOON).await?;
    assert_eq!((&task["state"], &task["result"]), (&json!("SUCCESS"), &json!(42)));
    assert!(data.path().join("errand.db").exists(), "the store is on the volume");

    assert!(health_check(&compose, "producer", &producer_env)?);
    assert!(health_check(&compose, "consumer", &consumer_env)?);
    consumer.kill()?;
    assert!(!health_check(&compose, "consumer", &consumer_env)?, "a dead consumer is not healthy");
    Ok(())
}

#[tokio::test]
async fn the_definitions_leave_no_guest() -> Result<()> {
    let broker = broker().await?;
    let users = broker.management().call(Method::GET, &["users"], None).await?;
    let names: Vec<_> = users.as_array().into_iter().flatten().map(|user| &user["name"]).collect();
    assert_eq!(names, [users::ADMIN, users::CONSUMER, users::PRODUCER]);
    Ok(())
}

/// Salts differ, so hashes do: that they are those of the passwords shows in that the services log in with them.
#[test]
fn the_definitions_are_those_that_the_producer_prints() -> Result<()> {
    let dir = guard::scratch_dir("definitions-")?;
    for user in [users::PRODUCER, users::CONSUMER, users::ADMIN] {
        std::fs::write(dir.path().join(format!("{user}.password")), format!("{user}{DEVELOPMENT}"))?;
    }
    let mut printed = Users::of(dir.path())?.definitions("/", &Env::new())?;
    let mut kept: Value = serde_json::from_slice(&std::fs::read(repository().join(DEFINITIONS))?)?;
    for definitions in [&mut printed, &mut kept] {
        for user in definitions["users"].as_array_mut().context("no users")? {
            assert!(user["password_hash"].take().is_string());
        }
    }
    assert_eq!(kept, printed, "{DEFINITIONS} is to be made anew");
    Ok(())
}

#[test]
fn only_the_loopback_address_is_published() -> Result<()> {
    let compose = compose()?;
    for (name, service) in compose["services"].as_object().context("no services")? {
        for port in service["ports"].as_array().into_iter().flatten() {
            // Compose 1 says it as a text, Compose 2 as an object.
            let host = port["host_ip"].as_str().or(port.as_str()).unwrap_or_default();
            assert!(host.starts_with("127.0.0.1"), "{name} publishes {port}");
        }
    }
    Ok(())
}
