//! AMQP over TLS: a broker that is verified is worked with, and any other is refused with the setting to look at.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::broker::{Broker, Options};
use e2e::certificates::{Authority, Certificate};
use e2e::{Env, Pair, Service, client, guard, ports};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::life::SOON;

const POLL: Duration = Duration::from_millis(50);

/// A node with a TLS port, whose certificate is for `localhost` and which looks at the certificates of clients.
async fn node(authority: &Authority) -> Result<(Broker, u16)> {
    let (port, Certificate { certificate, key }) = (ports::free()?, authority.issue("broker", "DNS:localhost")?);
    let config = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false",
        authority.certificate().display(),
        certificate.display(),
        key.display(),
    );
    Ok((Broker::start(Options { config, ..Options::default() }).await?, port))
}

fn identity(Certificate { certificate, key }: &Certificate) -> [(String, String); 2] {
    [("AMQP_CERT_FILE", certificate), ("AMQP_KEY_FILE", key)]
        .map(|(name, file)| (name.to_owned(), file.display().to_string()))
}

#[tokio::test]
async fn a_verified_broker_is_worked_with_over_tls_and_no_other_is() -> Result<()> {
    let (authority, stranger) = (Authority::new()?, Authority::new()?);
    let (node, port) = node(&authority).await?;
    let url = |host: &str| format!("amqps://guest:guest@{host}:{port}/%2f");
    let trusted = authority.certificate().display().to_string();

    let pair = Pair::on(&node).env("AMQP_URL", &url("localhost")).env("AMQP_CA_FILE", &trusted);
    let [certificate, key] = identity(&authority.issue("errand-producer", "DNS:errand-producer")?);
    let pair = pair.producer_env(&certificate.0, &certificate.1).producer_env(&key.0, &key.1).start().await?;
    let id = pair.client().accepted(&json!({"task": "flaky", "args": [1], "retry": {"backoff": 1}})).await?;
    assert_eq!(pair.client().await_terminal(&id, SOON).await?["retries"], 1);
    await_certificate(&node).await?;
    pair.stop().await?;

    let plain = node.endpoint().amqp.port();
    let [certificate, key] = identity(&stranger.issue("impostor", "DNS:errand-producer")?);
    let (wrong, localhost) = (stranger.certificate().display().to_string(), url("localhost"));
    let trust = |file: &str| ("AMQP_CA_FILE".to_owned(), file.to_owned());
    let cases = [
        ("authority", localhost.clone(), vec![trust(&wrong)], "AMQP_CA_FILE must hold the authority"),
        ("mozilla", localhost.clone(), vec![], "AMQP_CA_FILE must hold the authority"),
        ("host", url("127.0.0.1"), vec![trust(&trusted)], "AMQP_URL must name the host that the certificate is for"),
        ("client", localhost, vec![trust(&trusted), certificate, key], "AMQP_CERT_FILE and AMQP_KEY_FILE must be"),
        ("plain", format!("amqps://guest:guest@localhost:{plain}/%2f"), vec![trust(&trusted)], "this is no TLS port"),
        ("clear", format!("amqp://guest:guest@localhost:{port}/%2f"), vec![], "AMQP_URL must be amqps://"),
    ];
    let dir = guard::scratch_dir("tls-")?;
    let mut refused = Vec::new();
    for (name, url, settings, said) in cases {
        let mut env = Env::from_iter(settings);
        env.insert("AMQP_URL".to_owned(), url);
        let mut worker = Service::spawn("consumer", name, dir.path(), &env)?;
        await_refusals(&mut worker, said).await?;
        refused.push(worker);
    }

    // The broker gets a certificate of the authority that the first of them trusts.
    let (renewed, served) = (stranger.issue("broker", "DNS:localhost")?, authority.certificate());
    std::fs::copy(renewed.certificate, served.with_file_name("broker.pem"))?;
    std::fs::copy(renewed.key, served.with_file_name("broker.key"))?;
    node.ctl(&["eval", "ssl:clear_pem_cache()."]).await?;
    refused[0].await_ready(SOON).await
}

/// The producer shows its certificate, the worker none, and all is TLS.
async fn await_certificate(node: &Broker) -> Result<()> {
    let start = Instant::now();
    loop {
        let connections = node.management().call(Method::GET, &["connections"], None).await?;
        let of = |name: &str| -> Vec<&Value> {
            let all = connections.as_array().into_iter().flatten();
            all.filter(|one| {
                one["client_properties"]["connection_name"].as_str().is_some_and(|it| it.starts_with(name))
            })
            .collect()
        };
        let (producers, workers) = (of("errand-producer"), of("errand-"));
        let shown =
            !producers.is_empty() && producers.iter().all(|one| one["peer_cert_subject"] == "CN=errand-producer");
        if shown && workers.len() > producers.len() && workers.iter().all(|one| one["ssl"] == true) {
            return Ok(());
        }
        ensure!(start.elapsed() < SOON, "{connections:#}");
        sleep(POLL).await;
    }
}

/// It says what is wrong, tries again, and never gets through.
async fn await_refusals(worker: &mut Service, said: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let log = worker.log_tail(100);
        if log.matches(said).count() >= 4 {
            ensure!(!log.contains("connected broker="), "{log}");
            let ready = client::http()?.get(worker.url("/readyz")).send().await?;
            assert_eq!(ready.status(), 503);
            let text = ready.text().await?;
            ensure!(text.contains(said), "{text}");
            worker.silence();
            return Ok(());
        }
        ensure!(worker.try_wait()?.is_none() && start.elapsed() < SOON, "it does not say {said:?}:\n{log}");
        sleep(POLL).await;
    }
}
